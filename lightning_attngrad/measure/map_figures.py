"""What is drawn of maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.explain import Question, within_area
from lightning_attngrad.measure.maps import SHOWN_IN_STRIPS, Maps
from lightning_attngrad.metrics.functional import times_uniform_share
from lightning_attngrad.probe import Evaluation
from lightning_attngrad.reporting.figures import (
    Caption,
    ColourScale,
    class_panels,
    film_strip,
    layer_strip,
    map_grid,
)
from lightning_attngrad.reporting.film import save_film
from lightning_attngrad.reporting.style import PLAIN, FigureStyle
from lightning_attngrad.reporting.text import with_minus

#: Images of the overlay.
_OVERLAID = 8


@dataclass(frozen=True, eq=False)
class Frame:
    """One evaluation in the film of an image.

    Attributes:
        label: of the evaluation.
        map: (h, w), in times the uniform share.
        caption: what was predicted.
    """

    label: str
    map: Tensor
    caption: Caption

    def plain(self) -> dict[str, Any]:
        """As a checkpoint can hold it."""
        said = self.caption
        caption = [said.predicted, said.probability, said.true, said.true_probability, said.mapped, said.what]
        return {"label": self.label, "map": self.map, "caption": caption}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Frame:
        """Back from :meth:`plain`."""
        return cls(plain["label"], plain["map"], Caption(*plain["caption"]))


def caption_of(evaluation: Evaluation, question: Question, maps: Maps, index: int) -> Caption:
    """What an image is predicted to be, what it is, and of which class its map is where that is not plain."""
    task = evaluation.task
    if said := question.objective_in_words(evaluation.class_name):
        value = float(maps.value[index])
        return Caption(predicted="not there" if math.isnan(value) else _in_words(value), probability=None, what=said)
    if maps.target is None or (task.has_classes and maps.logits.shape[1] < 2 and task.name != "multilabel"):
        return Caption(
            predicted=f"output {_in_words(float(maps.value[index]))}", probability=None
        )  # no class is predicted
    if not task.has_classes:
        return Caption(predicted=_number(evaluation, maps, index), probability=None)
    scores = maps.scores(evaluation)[index]
    probabilities = task.probabilities(scores).tolist()
    predicted = task.predicted_classes(scores)
    targets = evaluation.targets
    true = [] if targets is None else task.true_classes(targets[index])
    return Caption(
        predicted=tuple(map(evaluation.class_name, predicted)) or ("none",),
        probability=tuple(probabilities[one] for one in predicted) or None,
        true=None if targets is None or not (true or targets.dim() == 2) else evaluation.true_names(index) or ("none",),
        true_probability=tuple(probabilities[one] for one in true if one < len(probabilities)) or None,
        mapped="" if len(true) == 1 else evaluation.class_name(int(maps.target[index])),
    )


def _number(evaluation: Evaluation, maps: Maps, index: int) -> str:
    """The number that is explained, by its name, and what it is to be where that is known."""
    assert maps.target is not None
    place, several = int(maps.target[index]), maps.logits.shape[1] > 1
    name = evaluation.class_name(place)
    called = name if name != str(place) else f"number {place}" if several else "output"
    targets = evaluation.targets
    known = targets is not None and targets.dim() == 2 and targets.shape[1] == maps.logits.shape[1]
    truth = f", true {_in_words(float(targets[index, place]))}" if known and targets is not None else ""
    return f"{called} {_in_words(float(maps.logits[index, place]))}{truth}"


def _in_words(number: float) -> str:
    return with_minus(f"{number:.3g}")


def map_figures(
    evaluation: Evaluation,
    question: Question,
    maps: Maps,
    film: Sequence[Frame],
    beside: tuple[Tensor, Tensor] | None,
    *,
    film_image: int = 0,
    style: FigureStyle = PLAIN,
) -> Callable[[], dict[str, Figure]]:
    """The figures of one evaluation, to be drawn.

    Args:
        evaluation: images and names.
        question: what was asked.
        maps: what was found.
        film: of one image, this evaluation last.
        beside: classes (n, K) and their maps (n, K, h, w) of the first images; None where there are none.
        film_image: which one, counted from 0.
        style: how they look.

    Returns:
        Draws ``overlay`` and ``film``; ``classes`` where there are any; ``layers`` for methods that have them;
        ``corrections`` where there are several.
    """
    method = question.method_in_words
    scale = ColourScale("signed" if question.signed else "share")

    def draw() -> dict[str, Figure]:
        pixels, masks = within_area(evaluation.pixels, maps.area), evaluation.masks
        shown_as = evaluation.display.words
        shown, some = min(len(maps.heatmap), _OVERLAID), pixels[:SHOWN_IN_STRIPS]
        figures = {
            "overlay": map_grid(
                pixels[:shown],
                times_uniform_share(maps.heatmap[:shown]),
                [caption_of(evaluation, question, maps, index) for index in range(shown)],
                title=f"Where the model looks · {evaluation.label} · {method}",
                scale=scale,
                shown_as=shown_as,
                style=style,
                masks=None if masks is None else within_area(masks[:shown], maps.area),
            ),
            "film": film_strip(
                pixels[film_image],
                torch.stack([frame.map for frame in film]),
                [frame.label for frame in film],
                [frame.caption for frame in film],
                title=f"One image through training · {method}",
                scale=scale,
                shown_as=shown_as,
                style=style,
            ),
        }
        if beside is not None:
            asked, of_classes = beside
            figures["classes"] = class_panels(
                some,
                times_uniform_share(of_classes),
                [[evaluation.class_name(int(index)) for index in row] for row in asked],
                evaluation.task.probabilities(maps.scores(evaluation)[:SHOWN_IN_STRIPS]).gather(1, asked),
                title=f"Evidence for each class · {evaluation.label} · {method}",
                scale=scale,
                shown_as=shown_as,
                style=style,
            )
        if maps.layers is not None:
            figures["layers"] = layer_strip(
                some,
                times_uniform_share(maps.layers[:SHOWN_IN_STRIPS]),
                maps.layer_names,
                title=f"What each part adds to the map · {evaluation.label} · {method}",
                scale=scale,
                shown_as=shown_as,
                style=style,
            )
        if maps.panel_names:
            figures["corrections"] = layer_strip(
                some,
                times_uniform_share(maps.panels[:SHOWN_IN_STRIPS]),
                maps.panel_names,
                title=f"The map by each correction · {evaluation.label} · {method}",
                scale=scale,
                shown_as=shown_as,
                style=style,
            )
        return figures

    return draw


@dataclass(frozen=True, eq=False)
class Filmed:
    """What a film is made of, beside its frames.

    Attributes:
        pixels: (3 or 1, H, W) of the image, as far as its maps cover it.
        shown_as: what was done to it so that it can be seen.
        signed: whether maps have negative parts.
    """

    pixels: Tensor
    shown_as: str
    signed: bool

    @classmethod
    def of(cls, evaluation: Evaluation, question: Question, maps: Maps, index: int) -> Filmed:
        """Of one image of an evaluation."""
        pixels = within_area(evaluation.pixels[index], maps.area).clone()  # not all images for the sake of one
        return cls(pixels, evaluation.display.words, question.signed)

    def save(self, path: str | Path, film: Sequence[Frame], *, seconds: float, style: FigureStyle) -> Path:
        """Write the film, see :func:`~lightning_attngrad.reporting.film.save_film`."""
        return save_film(
            path,
            self.pixels,
            torch.stack([frame.map for frame in film]),
            [frame.label for frame in film],
            [frame.caption for frame in film],
            seconds=seconds,
            scale=ColourScale("signed" if self.signed else "share"),
            shown_as=self.shown_as,
            style=style,
        )
