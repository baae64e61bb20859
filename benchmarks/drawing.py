"""What a figure takes, against the maps that it shows: ``python -m benchmarks.drawing``.

Each figure of the default monitors is built, drawn and encoded, for eight images of 64 pixels through
``vit_tiny_patch16_224`` and of 28 pixels through the demo's model, and divided by one `explain` of these images. All of
them take turns in one process on one thread; what stands in the table is the median over rounds of the ratio within a
round. Numbers, names and maps are others in every round, as they are in a run: nothing is drawn that was drawn before.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import timm
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.timing import interleaved, ratio
from lightning_attngrad import explain
from lightning_attngrad.demo.models import demo_vision_transformer
from lightning_attngrad.metrics.functional import times_uniform_share
from lightning_attngrad.reporting.class_matrix import class_matrix
from lightning_attngrad.reporting.curves import success_curves
from lightning_attngrad.reporting.drift import drift_curves, layer_drift
from lightning_attngrad.reporting.figures import Caption, class_panels, film_strip, layer_strip, map_grid
from lightning_attngrad.reporting.moved import MovedCaption, moved_most
from lightning_attngrad.reporting.perturbation import PerturbationCurves, perturbation_curves
from lightning_attngrad.reporting.pictures import Picture
from lightning_attngrad.reporting.rewriting import RewriteCaption, rewrite_panels

IMAGES, STRIPS, EVALUATIONS = 8, 4, 8
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEASURES = (
    "1 − rank correlation",
    "1 − cosine",
    "1 − SSIM",
    "1 − IoU of the top tenth",
    "Jensen–Shannon, bits",
    "shift",
)
OF_THE_MAP_MONITOR = ("overlay", "film", "classes", "layers")


class Shown(NamedTuple):
    """What figures are made of.

    Attributes:
        pixels: (N, C, H, W) in [0, 1].
        maps: (N, h, w) in times the uniform share.
        layers: (N, L, h, w) likewise.
        layer_names: L names.
    """

    pixels: Tensor
    maps: Tensor
    layers: Tensor
    layer_names: tuple[str, ...]


def photographs(number: int, channels: int, side: int) -> Tensor:
    """(N, C, H, W) in [0, 1] with the spectrum of photographs, whose energy falls with the square of the frequency."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.fft.rfft2(torch.randn(number, channels + 1, side, side, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]).clamp_min(1 / side)
    smooth = torch.fft.irfft2(noise / frequency, s=(side, side))
    pictures = smooth[:, :1] + 0.4 * smooth[:, 1:]  # channels have most in common
    low, high = pictures.amin((1, 2, 3), keepdim=True), pictures.amax((1, 2, 3), keepdim=True)
    return (pictures - low) / (high - low)


def drawers(shown: Shown) -> dict[str, Callable[[], Figure]]:
    """Functions that build the figures, each time with other numbers."""
    rounds, draw = count(), np.random.default_rng(0)

    def moving(values: Tensor) -> npt.NDArray[np.float32]:
        changed: npt.NDArray[np.float32] = values.numpy() * draw.uniform(0.5, 1.5, values.shape).astype(np.float32)
        return changed

    def name() -> str:
        return str(draw.choice(CLASSES))

    def captions(number: int) -> list[Caption]:
        return [Caption(name(), draw.uniform(), name(), draw.uniform()) for _ in range(number)]

    def label() -> str:
        return f"epoch {next(rounds)}"

    labels = ["start", *(f"epoch {index}" for index in range(1, EVALUATIONS))]
    few, layer_maps = shown.pixels[:STRIPS], shown.layers[:STRIPS]
    floors = {measure: [0.05] * EVALUATIONS for measure in MEASURES}
    curves = np.linspace(1, 0, 9) ** np.linspace(0.3, 3, 32)[:, None]  # (N, S + 1)

    def faithfulness() -> PerturbationCurves:
        chosen = draw.permutation(32)
        return PerturbationCurves(np.linspace(0, 1, 9), curves[chosen[:16]], curves[chosen[16:]])

    return {
        "overlay": lambda: map_grid(
            shown.pixels, moving(shown.maps), captions(IMAGES), title=f"Where the model looks · {label()}"
        ),
        "film": lambda: film_strip(
            shown.pixels[0], moving(shown.maps), labels, captions(EVALUATIONS), title=f"One image through {label()}"
        ),
        "classes": lambda: class_panels(
            few,
            moving(shown.maps[:STRIPS, None].repeat(1, 3, 1, 1)),
            [[name() for _ in range(3)] for _ in range(STRIPS)],
            draw.uniform(size=(STRIPS, 3)),
            title=f"Evidence for each class · {label()}",
        ),
        "layers": lambda: layer_strip(few, moving(layer_maps), shown.layer_names, title=f"Each layer · {label()}"),
        "drift curves": lambda: drift_curves(
            {measure: list(draw.uniform(0, 0.5, EVALUATIONS)) for measure in MEASURES}, floors, labels, title=label()
        ),
        "drift of layers": lambda: layer_drift(
            draw.uniform(size=(len(shown.layer_names), EVALUATIONS)),
            draw.uniform(size=len(shown.layer_names)),
            shown.layer_names,
            labels,
            title=f"Which layers moved · {label()}",
        ),
        "moved most": lambda: moved_most(
            shown.pixels[:6],
            moving(shown.maps[:6]),
            moving(shown.maps[:6]),
            [MovedCaption(draw.uniform(), 0.05, name(), draw.uniform(), name(), draw.uniform()) for _ in range(6)],
            title=f"What moved most · {label()}",
        ),
        "success": lambda: success_curves(
            {at: draw.gamma(2, 2 / 255, 40) for at in labels[:5]},
            radii=[1 / 255, 2 / 255, 4 / 255, 8 / 255],
            norm="linf",
            title=f"Rewritten within a radius · {label()}",
        ),
        "rewritten images": lambda: rewrite_panels(
            shown.pixels[:6],
            shown.pixels[:6] + 0.01 * torch.from_numpy(draw.uniform(-1, 1, shown.pixels[:6].shape)).float(),
            moving(shown.maps[:6]),
            moving(shown.maps[:6]),
            [
                RewriteCaption(name(), draw.uniform(), name(), draw.uniform(), name(), True, "L∞ 2.3/255", 40.0)
                for _ in range(6)
            ],
            title=f"The least that rewrites · {label()}",
        ),
        "class matrix": lambda: class_matrix(
            draw.gamma(2, 2 / 255, (10, 10)), CLASSES, norm="linf", title=f"From class to class · {label()}"
        ),
        "faithfulness": lambda: perturbation_curves(
            {"start": faithfulness(), "now": faithfulness()}, replaced_by="the mean colour", title=label()
        ),
    }


def measured(model: nn.Module, channels: int, side: int, rounds: int) -> dict[str, float]:
    """Seconds of each figure, and of those of the map monitor together, over those of one `explain`."""
    pixels = photographs(IMAGES, channels, side)
    found = explain(model, pixels)
    names = found.layer_names or tuple(f"blocks.{index}.attn" for index in range(4))
    layers = found.layers if found.layers is not None else found.heatmap[:, None].repeat(1, len(names), 1, 1)
    shown = Shown(pixels, times_uniform_share(found.heatmap), times_uniform_share(layers), names)
    functions: dict[str, Callable[[], object]] = {
        what: lambda draw=draw: Picture.of(draw()).png  # type: ignore[misc]
        for what, draw in drawers(shown).items()
    }
    functions["explain"] = lambda: explain(model, pixels)
    seconds = interleaved(functions, rounds)
    seconds["map monitor"] = [sum(parts) for parts in zip(*(seconds[what] for what in OF_THE_MAP_MONITOR), strict=True)]
    return {what: ratio(seconds, what, "explain") for what in seconds if what != "explain"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    columns = {
        "vit_tiny_patch16_224 at 64": measured(
            timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=10).eval(), 3, 64, options.rounds
        ),
        "the demo's model": measured(demo_vision_transformer().eval(), 1, 28, options.rounds),
    }
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, matplotlib "
        f"{mpl.__version__}; {IMAGES} images, one thread; drawn and encoded, over one `explain` of the images\n"
    )
    print("| figure | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for what in next(iter(columns.values())):
        print(f"| {what} | " + " | ".join(f"{column[what]:.2f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
