"""``explain``: images and a class to heatmaps, by any registered method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_attngrad.explain.explanation import Explanation
from lightning_attngrad.explain.inputs import ask_about_bytes, check_images, check_model, mismatch_in_words
from lightning_attngrad.explain.objectives import Objective
from lightning_attngrad.explain.outputs import Similarity, Task, check_task
from lightning_attngrad.explain.question import Quality, Question


def explain(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    *,
    method: str | None = None,
    quality: Quality = "default",
    objective: str | Objective | Similarity | Callable[[Any], Tensor] = "logit",
    forward: Callable[[Tensor], Any] | None = None,
    memory_budget: int | None = None,
    score_offsets: Sequence[Tensor | None] = (),
    task: str | Task | None = None,
    **options: Any,
) -> Explanation:
    """Where a Vision Transformer looks, for one class or several.

    The model is held still meanwhile (evaluation mode, parameters constant, no gradient checkpointing, no compiled
    graphs) and every flag is put back, also after an error. No ``.grad`` is written. Works under ``no_grad`` and
    ``inference_mode``. Frozen layers, and a backbone that is called under ``no_grad``, are read like any other. Under
    autocast the model runs as it does there; the map itself is computed in float32.

    Args:
        model: any module from images (B, C, H, W) to logits (B, classes): a tensor, or an output with ``.logits``.
        images: (B, C, H, W), normalised as the model takes them.
        target: the class to explain. None is the predicted one; an int the same for all images; a tensor (B,) one
            an image; a list of P ints, or a tensor (B, P), gives P panels an image.
        method: ``gradient_guided``, ``layernorm_statistics``, ``conservative``, ``attn_lrp``, ``guided_relevance``,
            ``raw_attention``, ``rollout``, ``grad_cam``, ``libragrad``, ``patch_sum``, or one that you registered. None
            is ``guided_relevance``; where the model does not permit it, ``gradient_guided`` (no embedding is found at
            which relevance can be measured, as with several towers) or ``attn_lrp`` (there is no attention), and a
            warning says so. A method that is named, or whose options are given, is that one or an error.
        quality: ``"default"``, one backward pass; or ``"best"``, some nine times as dear: of two maps the one that the
            model confirms when patches are hidden, image by image. One is integrated gradients from the image's mean
            colour; the other the mean of these, of the default's map and of ``attn_lrp``. Takes no ``method`` and no
            options, and an ``objective`` that is read off the output alone. Maps are signed shares: their absolute
            values sum to 1. See docs/methods.md.
        objective: ``"logit"``, ``"margin"``, ``Contrast(against)``, ``Mixture(weights)``, ``Region(mask)``; of outputs
            beyond one row of logits an image ``PixelClass(class, where)`` and ``PixelValue(where)`` (segmentation,
            depth), ``QueryClass(class, query)`` and ``QueryBox(coordinate, query)`` (detectors); ``Similarity(vectors,
            names)``, short for ``task=`` of the same; or a function from the model's output to one number an image.
            Monitors also take ``"start"``.
        forward: called instead of ``model(images)``, for keyword inputs or a precision context.
        memory_budget: bytes for the temporaries of a block of attention rows. None is 2 MiB on a CPU; on a GPU up to
            512 MiB, an eighth of what is free at most.
        score_offsets: added to the scores (B, H, N, M) of each attention call in order, see :func:`attention_step`.
        task: what the output means: ``"multiclass"``; ``"binary"``, one output z with classes 0 and 1, read as its twin
            of two outputs (−z/2, z/2); ``"multilabel"``, where class c is label c switched on and class K + c the same
            switched off; ``"regression"``, where a target is the place of a number; ``Similarity(vectors, names)``,
            whose vectors are the classes. None takes two or more outputs for classes, and one for a number.
        **options: the method's own: for ``gradient_guided`` ``correction="positive"``, or ``negative``, ``absolute``,
            ``signed``, ``transfer``, or several of them, one panel each; for ``guided_relevance``
            ``combine="gated_sum"``, or ``sum``, ``product``.

    Returns:
        An :class:`Explanation`.

    Raises:
        TypeError: for a model that is no module.
        ValueError: for an argument that does not fit, images on another device or of another type than the model among
            them; the message says what would.
        UnsupportedModelError: for a method that follows attention, where the model makes none or it cannot be followed;
            the message says why.
        NoEmbeddingError: for a method of relevance, if no embedding is found at which it can be measured.

    Warns:
        UserWarning: if another method than the default answers, where none was named: which one, why, and what to ask
            for so that nothing has to be said. ``Explanation.method`` names it.
        UserWarning: for images in 0…255, which most models take scaled.
        NonFiniteOutputError: if the output is NaN or infinite.
        NonFiniteGradientError: if the output is finite and its gradient is not.

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
        >>> attngrad.explain(model, torch.rand(2, 3, 160, 160), quality="best")
        Explanation(2 images, quality='best', 10 × 10 maps)
    """
    if isinstance(objective, Similarity):
        if task is not None:
            raise ValueError(
                "objective: got Similarity(…) beside task=; it says itself what the output means: leave task= out"
            )
        objective, task = "logit", objective
    question = Question(method, objective, options, quality)
    check_model(model)
    check_images(images)
    ask_about_bytes(images, "nothing has to be done")
    with mismatch_in_words(model, images):
        return question.explain(
            model,
            images,
            target,
            forward=forward,
            memory_budget=memory_budget,
            score_offsets=score_offsets,
            task=check_task(task),
        )
