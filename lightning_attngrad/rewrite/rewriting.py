"""``rewrite``: images and a target class to images that the model takes for that class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_attngrad.explain import UNSAID, Multilabel, NonFiniteOutputError, Task, check_task, of_rows
from lightning_attngrad.explain.inputs import ask_about_bytes, check_images, check_model, mismatch_in_words
from lightning_attngrad.explain.targets import classes_of
from lightning_attngrad.rewrite.fewest_pixels import fewest_pixels
from lightning_attngrad.rewrite.fixed_radius import fixed_radius
from lightning_attngrad.rewrite.margins import TargetMargin, class_scores, in_type
from lightning_attngrad.rewrite.minimal_norm import minimal_norm
from lightning_attngrad.rewrite.norms import NORMS
from lightning_attngrad.rewrite.patches import fewest_patches, rank_patches
from lightning_attngrad.rewrite.pixels import Normalisation, check_normalisation, require_normalisation
from lightning_attngrad.rewrite.result import Rewrite, joined
from lightning_attngrad.rewrite.search import Search
from lightning_attngrad.rewrite.targets import TARGET_KINDS, choose_targets
from lightning_attngrad.state import differentiable, held_still, outside_inference

Forward: TypeAlias = Callable[[Tensor], Any]
NORM_NAMES = (*NORMS, "l0", "l0_patches")
#: Rows that are searched at once where there are more of them than images.
_ROWS_AT_ONCE = 16


def rewrite(
    model: nn.Module,
    images: Tensor,
    target: int | str | Sequence[int] | Tensor = "random",
    *,
    norm: str = "linf",
    steps: int = 16,
    radius: float | None = None,
    top_share: float | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    pixel_range: Sequence[float] | None = None,
    forward: Forward | None = None,
    seed: int = 0,
    task: str | Task | None = None,
) -> Rewrite:
    """The smallest change of an image that makes the model see another class.

    Distances are in pixels, where black is 0 and white is 1, whatever normalisation the model wants: give ``mean`` and
    ``std``, or leave them out where it is certain (images in [0, 1], or a timm model with its own constants). Every
    success is one that the model shows on the returned images. What is found is an **upper bound** of the smallest
    change: another search may find a smaller one.

    The model is held still meanwhile, as in :func:`lightning_attngrad.explain`, nothing random is drawn from the
    process's streams, and each image costs the same number of passes whatever is found: ``steps`` forward and backward
    passes and at most 7 forward passes; a named target takes one forward pass more, and the map of ``l0_patches`` and
    ``top_share`` one forward and backward pass.

    Args:
        model: any module from images (B, C, H, W) to logits (B, K): a tensor, or an output with ``.logits``.
        images: (B, C, H, W), normalised as the model takes them.
        target: the class to be rewritten to, as :func:`lightning_attngrad.explain` takes it: an int for all images; a
            list of P ints, or a tensor (B, P), P rewrites of each image; a tensor (B,), one class an image. Or
            ``random``, ``runner_up`` or ``least_likely`` among the classes not predicted, or ``all`` of those. Several
            classes an image are as many rows of the result, image by image.
        norm: ``linf``; ``l2``; ``l0``: the number of pixels that have to change, in one channel or in all of them; or
            ``l0_patches``: the share of the patches, from the top of a gradient-guided map of the target, that have to
            change when their pixels may change freely.
        steps: gradients; 16 order checkpoints as a long search does, 8 did not.
        radius: the change may be this long, and no search for the shortest is made; a number of pixels for ``l0``, a
            share for ``l0_patches``.
        top_share: only this share of the patches, in whole patches, may change, from the top of the gradient-guided map
            of the target.
        mean: per channel, with which the images were normalised, in units of [0, 1] pixels, or of ``pixel_range``.
        std: likewise.
        pixel_range: black and white in the units of ``mean`` and ``std``, such as ``(0, 255)``, or ``(0, 10000)`` for
            reflectances; alone, the images lie in it as they are. Distances are in units of this range.
        forward: called instead of ``model(images)``, for keyword inputs or a precision context.
        seed: of random targets, which also depend on an image's place in the batch.
        task: what the output means, see :func:`lightning_attngrad.explain`. ``binary``: across z = 0. ``multilabel``:
            one label is switched, off where it is predicted now and on where it is not, the others free; a target from
            K on switches label target − K off in any case. :attr:`Rewrite.also_changed` tells what else changed.

    Returns:
        A :class:`Rewrite`, one row for each pair of image and target.

    Raises:
        TypeError: for a model that is no module.
        ValueError: for an argument that does not fit, images on another device or of another type than the model among
            them; the message says what would.
        UnknownNormalisationError: where it is not certain how the images were normalised.
        NonFiniteOutputError: if the model's output is NaN or infinite.
        UnsupportedModelError: for ``l0_patches`` and ``top_share``, if the model's attention cannot be read.

    Warns:
        UserWarning: for images in 0…255 of which nothing says that the model takes them so.

    Source:
        arXiv 2605.11392 (rewriting a class under gradient guidance); the search is our own, see docs/methods.md.

    Example:
        >>> import timm, torch, lightning_attngrad as attngrad
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> result = attngrad.rewrite(model, torch.rand(2, 3, 160, 160), 3, mean=0.5, std=0.5, steps=2)
        >>> leads = result.logits_after[:, 3] == result.logits_after.amax(dim=1)
        >>> result.distance.shape, bool(leads[result.success].all())
        (torch.Size([2]), True)
        >>> several = attngrad.rewrite(model, torch.rand(2, 3, 160, 160), [3, 4], mean=0.5, std=0.5, steps=2)
        >>> several.index.tolist(), several.target.tolist()
        ([0, 0, 1, 1], [3, 4, 3, 4])
    """
    meaning = check_task(task)
    check_model(model)
    check_images(images)
    if mean is None and std is None and pixel_range is None:
        ask_about_bytes(images, "say pixel_range=(0, 255)")

    def resolve(call: Forward, normalisation: Normalisation, pixels: Tensor) -> Tensor:
        return _resolve_target(target, call, normalisation, pixels, seed, meaning)

    with mismatch_in_words(model, images):
        return _rewrite(
            model, images, resolve, norm, steps, radius, top_share, mean, std, pixel_range, forward, meaning
        )


def rewrite_to(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    *,
    norm: str = "linf",
    steps: int = 16,
    top_share: float | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    pixel_range: Sequence[float] | None = None,
    forward: Forward | None = None,
    task: Task = UNSAID,
) -> Rewrite:
    """As :func:`rewrite`, to one class an image, (B,), as the task numbers them: a label that is to be on is to be on.

    Raises:
        ValueError: as :func:`rewrite` does.
    """
    return _rewrite(
        model,
        images,
        lambda *_: classes.to(images.device)[:, None],
        norm,
        steps,
        None,
        top_share,
        mean,
        std,
        pixel_range,
        forward,
        task,
    )


def _rewrite(
    model: nn.Module,
    images: Tensor,
    resolve: Callable[[Forward, Normalisation, Tensor], Tensor],
    norm: str,
    steps: int,
    radius: float | None,
    top_share: float | None,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    pixel_range: Sequence[float] | None,
    forward: Forward | None,
    task: Task,
) -> Rewrite:
    _check_arguments(model, images, norm, steps, radius, top_share)
    dtype = images.dtype
    call = in_type(model if forward is None else forward, dtype)
    with differentiable(), held_still(model):
        images = outside_inference(images.detach()).float()
        normalisation = require_normalisation(model, images, check_normalisation(mean, std, pixel_range))
        original = normalisation.to_pixels(images)
        targets = resolve(call, normalisation, original)  # (B, T)
        index = torch.arange(len(images), device=images.device).repeat_interleave(targets.shape[1])
        rows, at_once = targets.flatten(), max(len(images), _ROWS_AT_ONCE)
        parts = [
            _rewritten(
                model,
                TargetMargin(of_rows(call, which), normalisation, classes, task),
                dtype,
                original[which],
                which,
                norm,
                steps,
                radius,
                top_share,
            )
            for which, classes in zip(index.split(at_once), rows.split(at_once), strict=True)
        ]
        result = joined(parts)
    finite = torch.isfinite(result.logits_before).all(dim=1)
    if not finite.all():  # asked last: on every process the same passes have been made
        raise NonFiniteOutputError(
            f"model: {type(model).__name__} gives NaN or infinite outputs for {int((~finite).sum())} of {len(finite)} "
            "images; there is nothing to rewrite until it gives finite ones"
        )
    return result


def _rewritten(
    model: nn.Module,
    margin: TargetMargin,
    dtype: torch.dtype,
    original: Tensor,
    index: Tensor,
    norm: str,
    steps: int,
    radius: float | None,
    top_share: float | None,
) -> Rewrite:
    """The search that was asked for, for as many rows as there are images."""
    search = Search(margin, original)
    everywhere = torch.ones_like(search.cost, dtype=torch.bool)
    ranking = None
    if norm == "l0_patches" or top_share is not None:
        images = margin.normalisation.to_images(original)
        ranking = rank_patches(model, images, margin.target, margin.forward, margin.task)
    if norm == "l0_patches":
        assert ranking is not None
        most = None if radius is None else _most_patches(radius, ranking.total)
        fewest_patches(search, ranking, steps, most)
        beats = everywhere
        distance = search.cost
    else:
        allowed = None
        if ranking is not None and top_share is not None:
            allowed = ranking.top(torch.full_like(search.cost, max(1, round(top_share * ranking.total))))
        if norm == "l0":
            beats = fewest_pixels(search, steps, None if radius is None else math.floor(radius), allowed)
            distance = search.cost
        else:
            if radius is None:
                beats = minimal_norm(search, NORMS[norm], steps, allowed)
            else:
                beats = fixed_radius(search, NORMS[norm], steps, radius, allowed)
            distance = torch.where(search.found, NORMS[norm].length(search.best - original), torch.inf)
    return Rewrite(
        images=margin.normalisation.to_images(search.best).to(dtype),
        pixels=search.best,
        original=original,
        index=index,
        target=margin.target,
        success=search.found,
        distance=distance,
        logits_before=margin.task.logits(search.logits_before.float()),
        logits_after=margin.task.logits(search.logits.float()),
        margin=torch.stack(search.trace),
        norm=norm,
        task=margin.task,
        health=search.health(
            beats_one_step=beats,
            huge_radius=search.found if radius is None else everywhere,
            unit=1.0 if norm == "l0" else 0.0,
        ),
    )


def _resolve_target(
    target: int | str | Sequence[int] | Tensor,
    call: Forward,
    normalisation: Normalisation,
    pixels: Tensor,
    seed: int,
    task: Task,
) -> Tensor:
    """Classes (B, T) int64. Only names need a forward pass: whether a class exists is asked at the first gradient."""
    if isinstance(target, str):
        if target not in TARGET_KINDS:
            raise ValueError(f"target: got {target!r}; expected a class, or one of {', '.join(TARGET_KINDS)}")
        return choose_targets(_scores(call, normalisation, pixels, task), target, seed=seed, task=task)
    names = f"one of {', '.join(TARGET_KINDS)}"
    chosen = classes_of(target, len(pixels), pixels.device, otherwise=names)
    chosen = chosen[:, None] if chosen.dim() == 1 else chosen
    if isinstance(task, Multilabel):
        scores = _scores(call, normalisation, pixels, task)
        task.check_target(chosen, scores.shape[1])
        return torch.where(chosen < scores.shape[1] // 2, task.switched(chosen, scores), chosen)
    return chosen


def _scores(call: Forward, normalisation: Normalisation, pixels: Tensor, task: Task) -> Tensor:
    with torch.no_grad():
        return class_scores(call, normalisation, pixels, task)


def _most_patches(radius: float, total: int) -> int:
    """The whole patches within a share of them."""
    most = math.floor(radius * total + 1e-6)  # 29 % of 100 are 29, whatever the rounding
    if most < 1:
        raise ValueError(f"radius: got {radius!r}; expected {1 / total:.3g} or more, a share of the {total} patches")
    return most


def check_options(norm: str, steps: int, radius: float | None, top_share: float | None) -> None:
    """Refuse options of a search that cannot be meant.

    Raises:
        ValueError: naming what was given and what would do.
    """
    if norm not in NORM_NAMES:
        raise ValueError(f"norm: got {norm!r}; expected one of {', '.join(NORM_NAMES)}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: got {steps!r}; expected a number of gradients, 16 or more for numbers that compare")
    for name, value in (("radius", radius), ("top_share", top_share)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf
        ):
            raise ValueError(f"{name}: got {value!r}; expected a finite number above 0")
    largest = {"linf": "a change of a pixel in [0, 1], such as 4/255", "l0_patches": "a share of the patches"}.get(norm)
    if radius is not None and largest is not None and radius > 1:
        raise ValueError(f"radius: got {radius!r}; expected {largest}, at most 1")
    if norm == "l0" and radius is not None and radius < 1:
        raise ValueError(f"radius: got {radius!r}; expected a number of pixels, 1 or more")
    if top_share is not None and (top_share > 1 or norm == "l0_patches"):
        what = "norm='l0_patches' looks for the share itself; give radius to fix it" if top_share <= 1 else "at most 1"
        raise ValueError(f"top_share: got {top_share!r}; {what}")


def _check_arguments(
    model: nn.Module, images: Tensor, norm: str, steps: int, radius: float | None, top_share: float | None
) -> None:
    check_options(norm, steps, radius, top_share)
    check_model(model)
    check_images(images)
