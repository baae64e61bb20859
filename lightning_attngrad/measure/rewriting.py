"""Rewriting the frozen images: what is asked, what comes of it, and the numbers of that."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.attention import Area
from lightning_attngrad.explain import Explanation, Multilabel, NonFiniteOutputError, Question, within_area
from lightning_attngrad.measure.maps import Maps, maps_key
from lightning_attngrad.measure.questions import question_of_maps, say_once
from lightning_attngrad.metrics.functional import (
    image_quality,
    map_spearman,
    times_uniform_share,
)
from lightning_attngrad.probe import Evaluation
from lightning_attngrad.rewrite import (
    TARGET_KINDS,
    Rewrite,
    check_options,
    choose_targets,
    rewrite_to,
    survives_8_bits,
)

#: Pairs that are drawn.
SHOWN = 6
#: Radii at which success is reported, and between which the area under it is taken.
RADII: dict[str, tuple[float, ...]] = {
    "linf": tuple(level / 255 for level in (1, 2, 4, 8, 16)),
    "l2": (0.25, 0.5, 1.0, 2.0, 4.0),
    "l0": (1.0, 4.0, 16.0, 64.0, 256.0),
    "l0_patches": (0.05, 0.1, 0.2, 0.4, 0.8),
}


@dataclass(frozen=True)
class RewriteSettings:
    """What is asked of each image; numbers of other settings do not compare.

    Args:
        norm: ``linf``, ``l2``, ``l0`` or ``l0_patches``.
        steps: gradients an image.
        target: ``random``, ``runner_up``, ``least_likely``, ``all``, or a class.
        radii: at which success is reported; () takes :data:`RADII` of the norm.
        top_share: only this share of the patches may change.

    Raises:
        ValueError: for a setting that cannot be meant.
    """

    norm: str = "linf"
    steps: int = 16
    target: str | int = "random"
    radii: Sequence[float] = ()
    top_share: float | None = None

    def __post_init__(self) -> None:
        check_options(self.norm, self.steps, None, self.top_share)
        named = isinstance(self.target, str) and self.target in TARGET_KINDS
        if not named and (isinstance(self.target, bool) or not isinstance(self.target, int) or self.target < 0):
            raise ValueError(
                f"target: got {self.target!r}; expected a class from 0, or one of {', '.join(TARGET_KINDS)}"
            )
        radii = (tuple(self.radii) or RADII[self.norm]) if isinstance(self.radii, Iterable) else (math.nan,)
        if not all(_is_length(radius) for radius in radii):
            raise ValueError(f"radii: got {self.radii!r}; expected positive numbers in pixel units, such as 4/255")
        if self.norm == "l0" and min(radii) < 1:
            raise ValueError(f"radii: got {self.radii!r}; expected numbers of pixels, 1 or more")
        object.__setattr__(self, "radii", tuple(sorted({float(radius) for radius in radii})))
        if len(self.radii) < 2:
            raise ValueError(f"radii: got {self.radii!r}; expected two or more, between which the area is taken")
        if len({self.radius_name(radius) for radius in self.radii}) < len(self.radii):
            raise ValueError(f"radii: got {self.radii!r}; expected radii that differ in their first six digits")

    def plain(self) -> dict[str, Any]:
        """As plain values, for a checkpoint and for JSON."""
        return {**asdict(self), "radii": list(self.radii)}

    def radius_name(self, radius: float) -> str:
        """A radius as a part of the name of a scalar: ``4_255`` for L∞, else the number."""
        levels = radius * 255
        if self.norm == "linf" and math.isclose(levels, round(levels), abs_tol=1e-6):
            return f"{round(levels)}_255"
        return f"{radius:g}"


@dataclass(frozen=True, eq=False)
class FrozenTargets:
    """Which classes the images are of, and which they are rewritten to: the same for a whole run.

    Attributes:
        own: (N,) the true class, or the one that was predicted at the first evaluation where the data have none; in
            multi-label classification (N, K) bool, which labels are there.
        targets: (N, T).
    """

    own: Tensor
    targets: Tensor

    @classmethod
    def choose(cls, evaluation: Evaluation, target: str | int, seed: int) -> FrozenTargets:
        """From what the model says of the images, for what the data do not tell; a collective operation."""
        task = evaluation.task
        task.need_classes("an image is rewritten from one to another")
        scores = evaluation.scores()
        classes = scores.shape[1]
        if classes < 2:
            raise ValueError(
                f"model: its output has {classes} number an image, not one row of logits an image (2 or more classes); "
                "set ProbeImages(model=…) to the part that classifies, or say ProbeImages(task='binary') if the one "
                "output tells class 1 from class 0"
            )
        if isinstance(task, Multilabel):
            return cls._of_labels(task, evaluation.targets, scores, target, seed)
        own = evaluation.classes()
        if isinstance(target, str):
            return cls(own, choose_targets(scores, target, avoid=own, seed=seed, task=task))
        if target >= classes:
            raise ValueError(f"target: got {target}; the model's classes are 0 to {classes - 1}")
        return cls(own, torch.full_like(own, target)[:, None])

    @classmethod
    def _of_labels(
        cls, task: Multilabel, targets: Tensor | None, scores: Tensor, target: str | int, seed: int
    ) -> FrozenTargets:
        """Each image's labels, and some of them to be switched."""
        own = task.predicted(scores) if targets is None else targets
        labels = own.shape[1]
        if isinstance(target, str):
            return cls(own, choose_targets(scores, target, avoid=own, seed=seed, task=task))
        if target >= labels:
            raise ValueError(f"target: got {target}; the model's labels are 0 to {labels - 1}")
        return cls(own, torch.where(own[:, target], target + labels, target)[:, None])

    @classmethod
    def of_this_run(cls, evaluation: Evaluation, target: str | int) -> FrozenTargets:
        """Those that any callback of this run has chosen for the same images, else new ones; a collective operation."""
        choose = partial(cls.choose, evaluation, target, evaluation.seed)
        found: FrozenTargets = evaluation.in_this_run.once(("targets", target), choose)
        return found

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Number of the image, and target, of each of M image–target pairs; an image of its target class has none.

        Raises:
            ValueError: if no pair is left.
        """
        index = torch.arange(len(self.own)).repeat_interleave(self.targets.shape[1])
        targets = self.targets.flatten()
        if self.own.dim() == 2:
            labels = self.own.shape[1]
            there = self.own[index].gather(1, targets[:, None] % labels)[:, 0]
            other = there != (targets < labels)
        else:
            other = targets != self.own[index]
        if not other.any():
            raise ValueError(
                f"target: every one of the {len(self.own)} images is of this class already; choose another"
            )
        return index[other], targets[other]

    def own_of(self, index: Tensor, targets: Tensor) -> Tensor:
        """(M,) the class of each pair's image; of labels, the one that is to be switched as it is now."""
        if self.own.dim() == 1:
            return self.own[index]
        labels = self.own.shape[1]
        return (targets + labels) % (2 * labels)

    def plain(self) -> dict[str, Tensor]:
        """As a checkpoint can hold it."""
        return {"own": self.own, "targets": self.targets}


@dataclass(frozen=True, eq=False)
class RewrittenPairs:
    """What came of M image–target pairs, on the CPU.

    Attributes:
        image: (M,) number of the image.
        own: (M,) its class.
        target: (M,) the class that it was to be rewritten to.
        distance: (M,) ∞ where it failed.
        predicted: (M,) class of the original, as the model sees it now; of labels, whether the one to be switched is
            seen.
        psnr: (M,) of the rewritten image, in decibels.
        ssim: (M,) likewise.
        survives: (M,) bool, still rewritten after rounding to 8 bits.
        zero_gradient: (M,) share of steps without a gradient.
        unconverged: (M,) bool.
        one_step_better: (M,) bool.
        also_changed: (M,) how many other labels changed; None where classes exclude each other.
        map_shift: (M,) one minus the rank correlation of the maps of the predicted classes before and after; None
            where no map can be made of the model.
    """

    image: Tensor
    own: Tensor
    target: Tensor
    distance: Tensor
    predicted: Tensor
    psnr: Tensor
    ssim: Tensor
    survives: Tensor
    zero_gradient: Tensor
    unconverged: Tensor
    one_step_better: Tensor
    map_shift: Tensor | None = None
    also_changed: Tensor | None = None

    @property
    def success(self) -> Tensor:
        """(M,) bool."""
        return self.distance < math.inf


@dataclass(frozen=True, eq=False)
class ShownPair:
    """What a figure shows of one pair, on the CPU.

    Attributes:
        pair: its number.
        original: (C, H, W) pixels.
        rewritten: likewise.
        before: (K,) scores of the classes.
        after: (K,) likewise.
        maps: (2, h, w) before and after, in times the uniform share; None where no map can be made of the model.
        signed: whether maps have values below 0.
    """

    pair: int
    original: Tensor
    rewritten: Tensor
    before: Tensor
    after: Tensor
    maps: Tensor | None
    signed: bool = False


def conditions_of(evaluation: Evaluation) -> dict[str, Any]:
    """What else changes distances: the unit of pixels.

    Raises:
        UnknownNormalisationError: where it is not certain how the images were normalised.
    """
    known = evaluation.known_normalisation().in_pixels
    return {"mean": list(known.mean), "std": list(known.std)}


def comparison_hash(
    evaluation: Evaluation, settings: RewriteSettings, frozen: FrozenTargets | None, *, method: str | None = None
) -> str:
    """SHA-256 of images, classes, settings, normalisation, task, part of the model and precision.

    Distances of another do not compare; nor do numbers of maps beside them, whose ``method`` then belongs to it.
    Without frozen classes it is of those alone.
    """
    described = {
        "images": evaluation.images_hash,
        **({} if evaluation.task.plain() is None else {"task": evaluation.task.plain()}),
        "part of the model": evaluation.model_path,
        "precision": evaluation.precision,
        **({} if frozen is None else {"own": frozen.own.tolist(), "targets": frozen.targets.tolist()}),
        **settings.plain(),
        **({} if frozen is None else conditions_of(evaluation)),
        **({} if method is None else {"method": method}),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def rewrite_images(
    evaluation: Evaluation,
    settings: RewriteSettings,
    frozen: FrozenTargets,
    *,
    shown: int = SHOWN,
    most: int | None = None,
) -> tuple[RewrittenPairs, list[ShownPair]]:
    """Rewrite the frozen images; asked again at the same moment, they are there already. A collective operation.

    Args:
        evaluation: images and model.
        settings: what is asked.
        frozen: which classes.
        shown: of so many pairs the images come along.
        most: only so many pairs, from the first.

    Returns:
        All pairs and the first few images, on every process alike.
    """
    key = "rewrites", str(settings.plain()), str(frozen.own.tolist()), str(frozen.targets.tolist()), shown, most
    return evaluation.once(key, lambda: _rewritten(evaluation, settings, frozen, shown, most))


def _rewritten(
    evaluation: Evaluation, settings: RewriteSettings, frozen: FrozenTargets, shown: int, most: int | None
) -> tuple[RewrittenPairs, list[ShownPair]]:
    known = evaluation.known_normalisation()
    index, targets = frozen.pairs()
    if most is not None:
        index, targets = index[:most], targets[:most]
    question, why_not = question_of_maps(evaluation)
    there = None if question is None else _maps_that_are_there(evaluation, question)

    def work(part: Tensor) -> tuple[RewrittenPairs, list[ShownPair]]:
        images = evaluation.images[index[part].to(evaluation.images.device)]
        forward = evaluation.forward_of(index[part])
        try:
            result = rewrite_to(
                evaluation.model,
                images,
                targets[part].to(images.device),
                norm=settings.norm,
                steps=settings.steps,
                top_share=settings.top_share,
                mean=known.mean,
                std=known.std,
                pixel_range=known.pixel_range,
                forward=forward,
                task=evaluation.task,
            )
        except NonFiniteOutputError:
            # Of these images only, perhaps: other processes go on, and a sharded model waits for the passes they make.
            grey = torch.zeros_like(images)
            with torch.no_grad():
                forward(grey)
            if question is None:
                raise
            with contextlib.suppress(ValueError):  # the first error is the one to be told
                _map_shares(evaluation, question, forward, grey, grey if there is None else there[index[part]])
            raise
        survives = survives_8_bits(evaluation.model, result, known, forward=forward)
        before = known.to_images(result.original) if there is None else there[index[part]]
        maps, area = (
            (None, None) if question is None else _map_shares(evaluation, question, forward, result.images, before)
        )
        found = _found(result, survives, maps, index[part], frozen.own_of(index[part], targets[part]))
        signed = question is not None and question.signed
        return found, [
            _shown(result, maps, area, place, int(pair), signed=signed)
            for place, pair in enumerate(part)
            if pair < shown
        ]

    parts = evaluation.each(len(targets), work)
    if why_not:
        say_once(evaluation, why_not)
    joined: dict[str, Tensor | None] = {}
    for name in (field.name for field in fields(RewrittenPairs)):
        values = [getattr(pairs, name) for pairs, _ in parts]
        joined[name] = None if values[0] is None else torch.cat(values)
    return RewrittenPairs(**joined), [pair for _, some in parts for pair in some]  # type: ignore[arg-type]


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _maps_that_are_there(evaluation: Evaluation, question: Question) -> Tensor | None:
    """(N, h, w) of the classes predicted now, where another callback has asked for the images' maps at this moment."""
    found: Maps | None = evaluation.at_this_moment.get(maps_key(question))
    if found is None or found.target is None:
        return None
    predicted = evaluation.task.chosen(found.scores(evaluation))
    others = (predicted != found.target).nonzero().flatten()
    heatmaps = found.heatmap.clone()
    if len(others):

        def work(part: Tensor) -> Tensor:
            images = evaluation.images[others[part].to(evaluation.images.device)]
            forward = evaluation.forward_of(others[part])
            return question.explain(evaluation.model, images, forward=forward, task=evaluation.task).heatmap.cpu()

        heatmaps[others] = torch.cat(evaluation.each(len(others), work))
    return heatmaps


def _map_shares(
    evaluation: Evaluation, question: Question, forward: Callable[[Tensor], Any], after: Tensor, before: Tensor
) -> tuple[Tensor, Area]:
    """Maps (M, 2, h, w) of the predicted classes, in times the uniform share, and what part of the images they cover.

    Args:
        evaluation: for the model.
        question: by which the maps are made.
        forward: of the samples that the images are of.
        after: images (M, C, H, W).
        before: likewise, or their maps (M, h, w) where they are known.
    """

    def of(images: Tensor) -> Explanation:
        return question.explain(evaluation.model, images, forward=forward, task=evaluation.task)

    first, second = before if before.dim() == 3 else of(before).heatmap, of(after)
    shares = torch.stack([times_uniform_share(first).cpu(), times_uniform_share(second.heatmap).cpu()], dim=1)
    return shares, second.area


def _found(result: Rewrite, survives: Tensor, maps: Tensor | None, index: Tensor, own: Tensor) -> RewrittenPairs:
    quality = image_quality(result.original, result.pixels)
    task = result.task
    before = task.of_logits(result.logits_before)
    if isinstance(task, Multilabel):
        labels = result.logits_before.shape[1]
        label = result.target % labels
        there = result.logits_before.gather(1, label[:, None])[:, 0] > 0
        predicted, also = torch.where(there, label, label + labels), result.also_changed.sum(dim=1).float().cpu()
    else:
        predicted, also = task.chosen(before), None
    values = {
        "image": index,
        "own": own,
        "target": result.target,
        "distance": result.distance,
        "predicted": predicted,
        "psnr": quality.psnr,
        "ssim": quality.ssim,
        "survives": survives,
        "zero_gradient": result.health.zero_gradient,
        "unconverged": result.health.unconverged,
        "one_step_better": ~result.health.beats_one_step,
    }
    shift = None if maps is None else 1 - map_spearman(maps[:, 0], maps[:, 1])
    on_cpu = {name: value.detach().cpu() for name, value in values.items()}
    return RewrittenPairs(**on_cpu, map_shift=shift, also_changed=also)


def _shown(
    result: Rewrite, maps: Tensor | None, area: Area | None, place: int, pair: int, *, signed: bool
) -> ShownPair:
    original, rewritten = result.original[place].cpu(), result.pixels[place].cpu()
    if area is not None:  # what the model does not see cannot have changed
        original, rewritten = within_area(original, area), within_area(rewritten, area)
    return ShownPair(
        pair=pair,
        original=original,
        rewritten=rewritten,
        before=result.task.of_logits(result.logits_before[place]).cpu(),
        after=result.task.of_logits(result.logits_after[place]).cpu(),
        maps=None if maps is None else maps[place],
        signed=signed,
    )
