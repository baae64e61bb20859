"""Attention step: how little the attention has to be redirected for the output to change.

Source: arXiv 2605.11392, in our reading (METHODS §2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionCall
from lightning_attngrad.attention.places import TokenPlaces
from lightning_attngrad.explain.displayed import as_pixels
from lightning_attngrad.explain.explaining import explain
from lightning_attngrad.explain.explanation import Explanation
from lightning_attngrad.explain.flow import first_tensors
from lightning_attngrad.explain.forward_pass import forward_pass
from lightning_attngrad.explain.objectives import Logit
from lightning_attngrad.explain.outputs import Task, check_task
from lightning_attngrad.explain.placing import row_images, sum_by_image, within_area
from lightning_attngrad.explain.shown import Shown, counted, is_signed, needs, shares


@dataclass(frozen=True, repr=False)
class AttentionStep(Shown):
    """What redirecting the attention towards a class did.

    Attributes:
        before: the explanation of the target class without the step.
        logits: (S, B, C), the logits after each of S step sizes.
        heatmaps: (S, B, h, w), the map of the target class after each.
        step_sizes: (S,), in the order given.
        smallest_step: (B,), the smallest step size after which the target class is predicted; 0 where it is so
            without any, ∞ where no step sufficed.
        layer_names: the attention calls that were redirected.
    """

    before: Explanation
    logits: Tensor
    heatmaps: Tensor
    step_sizes: tuple[float, ...]
    smallest_step: Tensor
    layer_names: tuple[str, ...]

    @property
    def logit_change(self) -> Tensor:
        """Change of all logits against ``before``, (S, B, C)."""
        return self.logits - self.before.logits

    def __repr__(self) -> str:
        done, sizes = int(self.smallest_step.isfinite().sum()), ", ".join(f"{size:g}" for size in self.step_sizes)
        redirected = counted(len(self.layer_names), "layer")
        return f"AttentionStep({done} of {len(self.smallest_step)} images predicted so, {redirected}, steps {sizes})"

    def plot(
        self,
        *,
        images: Tensor | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        style: Any = None,
    ) -> Any:
        """Draw the maps of the target without a step and after each.

        Args:
            images: shown in place of those that were explained, (B, C, H, W).
            mean: with which the images were normalised, see :meth:`Explanation.plot`.
            std: likewise.
            style: a :class:`lightning_attngrad.FigureStyle`.

        Returns:
            A ``matplotlib.figure.Figure``.
        """
        from lightning_attngrad.reporting.figures import ColourScale, layer_strip  # noqa: PLC0415
        from lightning_attngrad.reporting.style import PLAIN  # noqa: PLC0415

        maps = torch.cat([self.before.heatmap[None], self.heatmaps]).movedim(0, 1)  # (B, 1 + S, h, w)
        pixels, words = as_pixels(needs(self.before.images if images is None else images, maps), mean, std)
        return layer_strip(
            within_area(pixels, self.before.area),
            shares(maps),
            ["no step", *(f"step {size:g}" for size in self.step_sizes)],
            title=f"Attention redirected towards the target · {self.before.method}",
            scale=ColourScale("signed" if is_signed(maps) else "share"),
            shown_as=words,
            style=PLAIN if style is None else style,
        )


def attention_step(
    model: nn.Module,
    images: Tensor,
    target: int | Tensor,
    *,
    step_sizes: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
    layers: Sequence[str] | None = None,
    correction: str = "positive",
    forward: Callable[[Tensor], Any] | None = None,
    task: str | Task | None = None,
) -> AttentionStep:
    """Rerun the model with its attention scores moved along their gradient, ``S' = S + η·∂Φ/∂S / rms(∂Φ/∂S)``.

    Φ is the target's logit, the root mean square is taken over each image and layer, padding left out. Keeps the
    attention scores of each layer that is redirected, (B, H, N, N) or a window of them a row.

    Args:
        model: as for :func:`explain`.
        images: (B, C, H, W).
        target: the class towards which the attention is redirected, an int or a tensor (B,).
        step_sizes: η, in units of the scores' root mean square gradient; one rerun each.
        layers: names of the attention calls to redirect, such as ``blocks.3.attn``; None is all of them that the logit
            depends on.
        correction: of the maps, see :func:`explain`.
        forward: called instead of ``model(images)``.
        task: what the output means, see :func:`explain`.

    Raises:
        ValueError: for unknown layers, no step size, or several classes an image.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> step = attention_step(model, torch.rand(2, 3, 160, 160), target=1, step_sizes=(0.5, 1.0))
        >>> step.logits.shape, step.heatmaps.shape, step.smallest_step.shape
        (torch.Size([2, 2, 5]), torch.Size([2, 2, 10, 10]), torch.Size([2]))
    """
    sizes = tuple(float(size) for size in step_sizes)
    if not sizes:
        raise ValueError("step_sizes: got none; expected at least one number")
    options: dict[str, Any] = {"method": "gradient_guided", "correction": correction, "forward": forward, "task": task}
    before = explain(model, images, target, **options)
    if before.target is None or before.target.dim() != 1:
        raise ValueError(f"target: got {target!r}; expected one class an image, an int or a tensor ({len(images)},)")
    chosen = _chosen(layers, before.layer_names)
    meaning = check_task(task)
    directions = _score_directions(model, images, before.target, forward, chosen, meaning)

    logits, heatmaps = [], []
    for size in sizes:
        offsets = [None if direction is None else size * direction for direction in directions]
        after = explain(model, images, before.target, score_offsets=offsets, **options)
        logits.append(after.logits)
        heatmaps.append(after.heatmap)
    predicted = [meaning.margin(meaning.of_logits(some), before.target) > 0 for some in logits]  # S times (B,)
    smallest = torch.full_like(before.value, torch.inf)
    for size, sufficed in zip(sizes, predicted, strict=True):
        smallest = torch.where(sufficed, smallest.clamp_max(size), smallest)
    smallest = torch.where(meaning.margin(meaning.of_logits(before.logits), before.target) > 0, 0.0, smallest)
    return AttentionStep(
        before=before,
        logits=torch.stack(logits),
        heatmaps=torch.stack(heatmaps),
        step_sizes=sizes,
        smallest_step=smallest,
        layer_names=tuple(name for name in before.layer_names if name in chosen),
    )


def _chosen(layers: Sequence[str] | None, names: tuple[str, ...]) -> set[str]:
    if layers is None:
        return set(names)
    unknown = [name for name in layers if name not in names]
    if unknown or not layers:
        raise ValueError(f"layers: got {list(layers)!r}; expected some of {', '.join(names)}")
    return set(layers)


def _score_directions(
    model: nn.Module,
    images: Tensor,
    target: Tensor,
    forward: Callable[[Tensor], Any] | None,
    chosen: set[str],
    task: Task,
) -> list[Tensor | None]:
    """``∂Φ/∂S / rms(∂Φ/∂S)`` of each attention call, (R, H, N, M), None where it is not to be redirected."""
    directions: dict[int, Tensor] = {}

    @torch.no_grad()
    def keep(call: AttentionCall, gradient: Tensor) -> None:
        if call.name not in chosen:
            return
        parts = []
        for rows in call.blocks(ran.memory_budget):
            attention = call.attention(rows)
            product = call.attention_gradient(rows, gradient).mul_(attention)
            parts.append(product - attention * product.sum(dim=-1, keepdim=True))
        at_scores = torch.cat(parts, dim=2)
        size = _root_mean_square(at_scores, queries[call.name], ran.batch)
        directions[id(call)] = torch.where(size > 0, at_scores / size, 0.0)

    with forward_pass(model, images, forward=forward, task=task) as ran:
        queries = {places.name: places.queries for places in ran.places.calls}
        seeds = Logit().seeds(ran, target)
        ran.tap.on_gradient = keep
        seeds.gradients_at(first_tensors(ran.tap.calls))
        return [directions.get(id(call)) for call in ran.tap.calls]


def _root_mean_square(at_scores: Tensor, queries: TokenPlaces, batch: int) -> Tensor:
    """Of (R, H, N, M) over the rows of each image and the query tokens that are no padding, (R, 1, 1, 1)."""
    placed = (queries.place >= 0).to(at_scores.dtype)  # (R, G, N)
    number = placed.expand(-1, at_scores.shape[1], -1).sum(dim=(1, 2)) * at_scores.shape[3]
    squares = (at_scores.square() * placed.unsqueeze(-1)).sum(dim=(1, 2, 3))
    by_image = sum_by_image(torch.stack([squares, number], dim=1), queries, batch)  # (B, 2)
    size = (by_image[:, 0] / by_image[:, 1].clamp_min(1)).sqrt()
    return size[row_images(queries)].view(-1, 1, 1, 1)
