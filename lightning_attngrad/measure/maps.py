"""Maps of the frozen images for frozen classes: the same question at every evaluation, its work shared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.explain import Explanation, Objective, Question
from lightning_attngrad.measure.questions import say_once, settled, with_masks
from lightning_attngrad.probe import Evaluation

#: Images in the figures that show several maps of each.
SHOWN_IN_STRIPS = 4
#: Images whose classes are explained at once: each takes a backward pass a class.
_IMAGES_OF_SEVERAL_CLASSES = 2
#: Of its largest value: what differs by less is the same for every image.
_HARDLY = 1e-4


@dataclass(frozen=True, eq=False)
class Maps:
    """What was found of N images, on the CPU.

    Attributes:
        heatmap: (N, h, w); of several corrections the first.
        panels: (N, P, h, w), P = 1 unless several corrections are asked for.
        panel_names: P names; empty for a single map.
        area: top, left, bottom, right in pixels of the part of the images that the maps cover.
        logits: (N, C), with C = 0 where the model has no row of numbers an image.
        target: (N,) the class explained; None where the objective has no class.
        value: (N,) what was explained.
        zero_gradient: (N,) bool.
        layers: (N, L, h, w); None for methods that have no such parts.
        layer_names: L names.
        completeness_error: (N,) share of the output that the map does not account for; None where the method is no
            relevance.
    """

    heatmap: Tensor
    panels: Tensor
    logits: Tensor
    target: Tensor | None
    value: Tensor
    zero_gradient: Tensor
    layers: Tensor | None
    layer_names: tuple[str, ...]
    area: tuple[int, int, int, int]
    completeness_error: Tensor | None = None
    panel_names: tuple[str, ...] = ()

    def scores(self, evaluation: Evaluation) -> Tensor:
        """Scores of the classes (N, K), where the objective has classes."""
        return evaluation.task.of_logits(self.logits)

    def by_panel(self) -> list[tuple[str, Maps]]:
        """What stands behind the names of numbers, and the maps that they are of: ``""`` and the first, then others."""
        others = enumerate(self.panel_names[1:], start=1)
        return [("", self)] + [
            (f"/{name}", replace(self, heatmap=self.panels[:, p], layers=None)) for p, name in others
        ]


def maps_key(question: Question) -> Hashable:
    """Under which the maps of a question are kept, see :meth:`Evaluation.once`."""
    return "maps", question


def explain_images(
    evaluation: Evaluation, question: Question, images: Tensor | None = None, *, memory_budget: int | None = None
) -> Maps:
    """The maps of the frozen classes; asked again at the same moment, they are there already. Collective.

    Args:
        evaluation: images and model.
        question: what is asked; without a method, by the one that the model permits.
        images: (N, C, H, W) other versions of the same images, on the device; these are not kept.
        memory_budget: bytes for the temporaries of a block of attention rows; None follows the device.

    Raises:
        UnsupportedModelError: if no map can be made of the model.
    """
    question = settled(evaluation, question)
    if images is not None:
        return _explained(evaluation, question, images, memory_budget)
    return evaluation.once(
        maps_key(question), lambda: _explained(evaluation, question, evaluation.images, memory_budget)
    )


def explain_classes(
    evaluation: Evaluation, question: Question, classes: Tensor, *, memory_budget: int | None = None
) -> Tensor:
    """Maps of the first n images for K classes each, (n, K) to (n, K, h, w); a collective operation."""
    single = with_masks(evaluation, settled(evaluation, question).of_first_panel())

    def work(part: Tensor) -> Tensor:
        images = evaluation.images[part.to(evaluation.images.device)]
        asked = classes[part].to(images.device)
        return (
            single.of_images(part)
            .explain(
                evaluation.model,
                images,
                asked,
                forward=evaluation.forward_of(part),
                memory_budget=memory_budget,
                task=evaluation.task,
            )
            .heatmap.cpu()
        )

    return torch.cat(evaluation.each(len(classes), work, at_most=_IMAGES_OF_SEVERAL_CLASSES))


def explain_best_classes(
    evaluation: Evaluation,
    question: Question,
    maps: Maps,
    top_k: int,
    further: Sequence[int],
    *,
    memory_budget: int | None = None,
) -> tuple[Tensor, Tensor] | None:
    """The most probable classes of the first images, and those asked for, with their maps; a collective operation.

    Returns:
        Classes (n, K) and maps (n, K, h, w); None where there are no classes, and for an objective that knows none.

    Raises:
        ValueError: for a class that the model does not have.
    """
    scores = maps.scores(evaluation)[:SHOWN_IN_STRIPS]
    number = scores.shape[1]
    top = None if maps.target is None else evaluation.task.likeliest(scores, top_k)
    if top is None:
        return None
    if any(index >= number for index in further):
        raise ValueError(f"classes: got {tuple(further)}; the model's classes are 0 to {number - 1}")
    classes = torch.cat([top, torch.tensor(list(further), dtype=torch.long).expand(len(top), -1)], dim=1)
    return classes, explain_classes(evaluation, question, classes, memory_budget=memory_budget)


def _explained(evaluation: Evaluation, question: Question, images: Tensor, memory_budget: int | None) -> Maps:
    target = evaluation.classes() if question.needs_target else None
    question = with_masks(evaluation, question)

    def work(part: Tensor) -> Maps:
        some = images[part.to(images.device)]
        classes = None if target is None else target[part].to(images.device)
        asked = question.of_images(part)
        return _maps(
            asked.explain(
                evaluation.model,
                some,
                classes,
                forward=evaluation.forward_of(part),
                memory_budget=memory_budget,
                task=evaluation.task,
            )
        )

    # In two parts or more, which two processes can share.
    maps = _joined(evaluation.each(len(images), work, at_most=-(-len(images) // 2)))
    _say_if_it_hardly_varies(evaluation, question, maps.value)
    return maps


def _say_if_it_hardly_varies(evaluation: Evaluation, question: Question, value: Tensor) -> None:
    """A number that is the same for every image has a gradient of rounding errors, and a map of noise."""
    finite = value[value.isfinite()]
    if isinstance(question.objective, str | Objective) or len(finite) < 2:
        return
    if float(finite.max() - finite.min()) <= _HARDLY * float(finite.abs().max()):
        say_once(
            evaluation,
            f"objective: the function gives {float(finite[0]):.4g} for all {len(finite)} images, to within "
            f"{_HARDLY:.2%}: it says nothing of an image, and its maps are noise. Behind a layer norm, or normalised, "
            "the length of an embedding is such a constant; explain its likeness to something instead, with "
            "task=Similarity(vectors, names)",
        )


def _maps(explanation: Explanation) -> Maps:
    """What is kept of an explanation, and travels between processes."""
    layers, target, names = explanation.layers, explanation.target, explanation.panels or ()
    panels = explanation.heatmap if names else explanation.heatmap.unsqueeze(1)
    value, zero, error = explanation.value, explanation.zero_gradient, explanation.completeness_error
    if layers is not None and names:
        layers = layers[:, 0]
    return Maps(
        heatmap=panels[:, 0].cpu(),
        panels=panels.cpu(),
        logits=explanation.logits.cpu(),
        target=None if target is None else target.cpu(),
        value=(value[:, 0] if value.dim() > 1 else value).cpu(),
        zero_gradient=(zero[:, 0] if zero.dim() > 1 else zero).cpu(),
        layers=None if layers is None else layers.cpu(),
        layer_names=explanation.layer_names,
        area=explanation.area,
        completeness_error=None if error is None else (error[:, 0] if error.dim() > 1 else error).cpu(),
        panel_names=names,
    )


def _joined(parts: Sequence[Maps]) -> Maps:
    """The parts of a set of images as one."""
    values: dict[str, Any] = {}
    of_all = {name: getattr(parts[0], name) for name in ("layer_names", "panel_names", "area")}
    for name in (field.name for field in fields(Maps) if field.name not in of_all):
        rows = [getattr(part, name) for part in parts]
        values[name] = None if rows[0] is None else torch.cat(rows)
    return Maps(**values, **of_all)


def with_panels(maps: Maps, scalars: Callable[[Maps], Mapping[str, float]]) -> dict[str, float]:
    """Numbers of the first map by their names, and of each further correction with its name behind them."""
    return {f"{name}{behind}": value for behind, panel in maps.by_panel() for name, value in scalars(panel).items()}
