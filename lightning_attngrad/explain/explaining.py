"""``explain``: images and a class to heatmaps, by any registered method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import DEFAULT_MEMORY_BUDGET
from lightning_attngrad.explain.corrections import check_corrections
from lightning_attngrad.explain.explanation import Explanation
from lightning_attngrad.explain.forward_pass import ForwardPass, find_logits, forward_pass
from lightning_attngrad.explain.objectives import Objective, Region, check_objective
from lightning_attngrad.explain.registry import METHODS, CombineName, Method, Options, TokenScores
from lightning_attngrad.state import outside_inference

#: The most faithful map at the price of one backward pass: docs/faithfulness.md has the figures.
DEFAULT_METHOD = "guided_relevance"
DEFAULT_COMBINE: CombineName = "gated_sum"


def explain(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    method: str = DEFAULT_METHOD,
    objective: str | Objective | Callable[[Any], Tensor] = "logit",
    correction: str | Sequence[str] = "positive",
    combine: CombineName = DEFAULT_COMBINE,
    forward: Callable[[Tensor], Any] | None = None,
    memory_budget: int = DEFAULT_MEMORY_BUDGET,
    score_offsets: Sequence[Tensor | None] = (),
) -> Explanation:
    """Where a Vision Transformer looks, for one class or several.

    The model is held still meanwhile (evaluation mode, parameters constant, no gradient checkpointing, no compiled
    graphs) and every flag is put back, also after an error. No ``.grad`` is written. Works under ``no_grad`` and
    ``inference_mode``. Frozen layers, and a backbone that is called under ``no_grad``, are read like any other.

    Args:
        model: any module from images (B, C, H, W) to logits (B, classes): a tensor, or an output with ``.logits``.
        images: (B, C, H, W), normalised as the model takes them.
        target: the class to explain. None is the predicted one; an int the same for all images; a tensor (B,) one
            an image; a list of P ints, or a tensor (B, P), gives P panels an image.
        method: ``gradient_guided``, ``conservative``, ``attn_lrp``, ``guided_relevance``, ``raw_attention``,
            ``rollout``, ``grad_cam``, or one that you registered.
        objective: ``"logit"``, ``"margin"``, ``Contrast(against)``, ``Mixture(weights)``, ``Region(mask)``, or a
            function from the model's output to one number an image.
        correction: for ``gradient_guided``: ``positive``, ``negative``, ``absolute``, ``signed`` or ``transfer``;
            several of them give one panel each, from one backward pass.
        combine: for ``guided_relevance``: the ``sum`` or the ``product`` of its two maps, or the ``gated_sum``, in
            which relevance also decides how much the other map counts in a region.
        forward: called instead of ``model(images)``, for keyword inputs or a precision context.
        memory_budget: bytes for the temporaries of a block of attention rows.
        score_offsets: added to the scores (B, H, N, M) of each attention call in order, see :func:`attention_step`.

    Returns:
        An :class:`Explanation`.

    Raises:
        TypeError: for a model that is no module.
        ValueError: for an argument that does not fit; the message says what would.
        UnsupportedModelError: for a model without readable attention (a CNN, a hierarchical model).
        NonFiniteOutputError: if the output is NaN or infinite.

    Source:
        See the ``source`` of each entry of :data:`METHODS`; the formulas are in docs/methods.md.

    Example:
        >>> import timm, torch, lightning_attngrad as attngrad
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> explanation = attngrad.explain(model, torch.rand(2, 3, 160, 160))
        >>> explanation.heatmap.shape, explanation.target.shape
        (torch.Size([2, 10, 10]), torch.Size([2]))
        >>> attngrad.explain(model, torch.rand(2, 3, 160, 160), target=[0, 3]).heatmap.shape
        torch.Size([2, 2, 10, 10])
    """
    chosen, goal = _check_method(method), check_objective(objective)
    corrections = check_corrections(correction if isinstance(correction, str) else tuple(correction))
    several_corrections = not isinstance(correction, str)
    _check_combination(chosen, goal, corrections, several_corrections, target)
    if combine not in get_args(CombineName):
        raise ValueError(f"combine: got {combine!r}; expected one of {', '.join(get_args(CombineName))}")
    if memory_budget < 1:
        raise ValueError(f"memory_budget: got {memory_budget!r}; expected a number of bytes above 0")

    with forward_pass(
        model, images, forward=forward, start=chosen.start, rules=chosen.rules, score_offsets=score_offsets
    ) as ran:
        classes = _resolve_target(target, ran) if goal.needs_target else None
        panels: list[Tensor | None] = [classes] if classes is None or classes.dim() == 1 else list(classes.unbind(1))
        results = []
        values = []
        for index, panel in enumerate(panels):
            seeds = goal.seeds(ran, panel)
            options = Options(corrections, combine, memory_budget, retain_graph=index + 1 < len(panels))
            results.append(chosen.compute(ran, seeds, options))
            values.append(seeds.value)
        return _as_explanation(ran, chosen.name, results, values, classes, corrections, several_corrections)


def _check_method(method: str) -> Method:
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}; expected one of {', '.join(METHODS)}")
    return METHODS[method]


def _check_combination(
    method: Method,
    objective: Objective,
    corrections: tuple[str, ...],
    several_corrections: bool,
    target: int | Sequence[int] | Tensor | None,
) -> None:
    if isinstance(objective, Region) and not method.takes_region:
        raise ValueError(f"objective: Region has no meaning for method={method.name!r}; use method='gradient_guided'")
    if (several_corrections or corrections != ("positive",)) and not method.takes_corrections:
        raise ValueError(
            f"correction: got {corrections!r}, and method={method.name!r} has none to choose; use 'gradient_guided'"
        )
    several_classes = isinstance(target, list | tuple) or (isinstance(target, Tensor) and target.dim() == 2)
    if several_corrections and several_classes:
        raise ValueError("correction: several corrections and several classes at once; ask for one or the other")
    if target is not None and not objective.needs_target:
        raise ValueError(f"target: got {target!r}, and the objective {objective!r} takes none; leave it out")


def _resolve_target(target: int | Sequence[int] | Tensor | None, ran: ForwardPass) -> Tensor:
    """Classes, (B,) or (B, P) int64."""
    logits = ran.logits
    batch, number = logits.shape
    if target is None:
        return logits.detach().argmax(dim=1)
    try:
        classes = outside_inference(torch.as_tensor(target, device=logits.device))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"target: got {target!r}; expected None, an int, a list of ints or a tensor") from error
    if isinstance(target, list | tuple) and classes.dim() == 1:
        classes = classes.expand(batch, -1)
    elif classes.dim() == 0:
        classes = classes.expand(batch)
    integral = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
    if not integral or classes.dim() not in (1, 2) or classes.shape[0] != batch or classes.numel() == 0:
        raise ValueError(
            f"target: got {classes.dtype} of shape {tuple(classes.shape)} for {batch} images; expected None, an int, "
            f"an integer tensor ({batch},) or ({batch}, P), or a list of P ints for P panels an image"
        )
    if int(classes.min()) < 0 or int(classes.max()) >= number:
        raise ValueError(f"target: got {classes.unique().tolist()}; the model's classes are 0 to {number - 1}")
    return classes.long()


def _as_explanation(
    ran: ForwardPass,
    method: str,
    results: list[TokenScores],
    values: list[Tensor],
    classes: Tensor | None,
    corrections: tuple[str, ...],
    several_corrections: bool,
) -> Explanation:
    panels: tuple[str, ...] | None = None
    if several_corrections:
        panels = corrections
    elif classes is not None and classes.dim() == 2:
        panels = tuple(f"panel {index}" for index in range(classes.shape[1]))
        if bool((classes == classes[:1]).all()):
            panels = tuple(f"class {int(index)}" for index in classes[0])

    def join(parts: list[Tensor], over_corrections: bool) -> Tensor:
        """Several classes: one panel each. One class: its K maps, or the only one."""
        if len(parts) > 1 or (classes is not None and classes.dim() == 2):
            return torch.stack([part[:, 0] if over_corrections else part for part in parts], dim=1)
        return parts[0] if several_corrections or not over_corrections else parts[0][:, 0]

    scores = join([result.scores for result in results], over_corrections=True).float()
    layers = [result.layers for result in results if result.layers is not None]
    relevance = [result.relevance for result in results if result.relevance is not None]
    errors = [(tokens.sum(dim=1) - value).abs() / value.abs() for tokens, value in zip(relevance, values, strict=False)]
    found = find_logits(ran.output)
    if classes is not None:
        logits = ran.logits
    else:  # an objective without classes may explain a model without logits
        logits = found if found is not None and found.dim() == 2 else scores.new_zeros(ran.batch, 0)
    return Explanation(
        heatmap=ran.layout.to_grid(scores),
        logits=logits.detach().float(),
        target=classes,
        value=join(values, over_corrections=False).detach().float(),
        token_scores=scores,
        layers=ran.layout.to_grid(join(layers, over_corrections=True).float()) if layers else None,
        layer_names=tuple(call.name for call in ran.tap.calls),
        panels=panels,
        completeness_error=join(errors, over_corrections=False).float() if errors else None,
        zero_gradient=join([result.zero_gradient for result in results], over_corrections=False),
        method=method,
    )
