"""The success curve beside AutoAttack: is there a radius within which it changes a class, and this search does not?

AutoAttack (Croce & Hein, 2003.01690; torchattacks' *standard*: APGD on the cross-entropy, APGD and FAB towards each
class, Square with 5,000 queries) leaves a class, wherever it arrives, and runs anew at each radius. So this search is
asked for every other class, and the nearest of them counts: one run, read off at all radii.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rewriting_peers import RADII, missing, version
from benchmarks.rewriting_trial import PIXEL_TOLERANCE, Attack, PixelModel, Trial, counting

#: Radii in 1/255: black and white digits take more than photographs in colour.
RADII_OF = {"digits": (8, 16, 24, 32, 48)}
#: Share of the images, over all radii, on which this search is to be no worse.
NO_WORSE = 0.98


def curve_table(trial: Trial, ours: Attack, gradients: int, cache: Path) -> Iterator[str]:
    """Success of both within each radius, and on which share of image and radius this search is no worse.

    Args:
        trial: model and images.
        ours: this search, of the smallest L∞ change.
        gradients: that it spends on each target.
        cache: folder that keeps what AutoAttack found.
    """
    classes = _classes(trial)
    yield f"\n### {trial.name}: leaving a class, beside AutoAttack\n"
    if (reason := missing("torchattacks")) is not None:
        yield f"torchattacks: {reason}"
        return
    radii = RADII_OF.get(trial.name, RADII)
    mine = _nearest(trial, ours, classes)
    found = [_auto_attack(trial, radius / 255, classes, cache) for radius in radii]
    within = torch.stack([mine <= radius / 255 + PIXEL_TOLERANCE for radius in radii])  # (R, N)
    theirs = torch.stack([left for left, _ in found])
    yield f"| success within | passes an image | {' | '.join(f'{radius}/255' for radius in radii)} |"
    yield f"|---|---|{'---|' * len(radii)}"
    spent = f"{gradients * (classes - 1)} gradients, once"
    passes = " + ".join(f"{number:.0f}" for _, number in found)
    name = f"AutoAttack, standard, of torchattacks {version('torchattacks')}"
    yield f"| ours, {gradients} to each of {classes - 1} classes | {spent} | {_shares(within)} |"
    yield f"| {name} | {passes} forward | {_shares(theirs)} |"
    no_worse = (within | ~theirs).float().mean().item()
    met = "met" if no_worse >= NO_WORSE else "missed"
    yield "\n| asked | limit | measured | |\n|---|---|---|---|"
    yield f"| images and radii at which ours is no worse | ≥ {NO_WORSE:.0%} | {no_worse:.1%} | {met} |"
    yield f"| … at which ours is better | – | {(within & ~theirs).float().mean().item():.1%} | |"


def _shares(success: Tensor) -> str:
    return " | ".join(f"{share:.1%}" for share in success.float().mean(1).tolist())


@torch.inference_mode()
def _classes(trial: Trial) -> int:
    return trial.model(trial.pixels[:1]).shape[1]


def _nearest(trial: Trial, ours: Attack, classes: int) -> Tensor:
    """The smallest L∞ distance (N,) at which the class is another, found by targets; verified here."""
    model, nearest = trial.model, torch.full((len(trial.pixels),), math.inf)
    for shift in range(1, classes):
        pixels = ours(model, trial.pixels.clone(), (trial.label + shift) % classes)
        nearest = torch.minimum(nearest, _length(model, trial, pixels))
    return nearest


@torch.inference_mode()
def _length(model: PixelModel, trial: Trial, pixels: Tensor) -> Tensor:
    """L∞ (N,) of a change that leaves the class and stays in [0, 1]; ∞ for any other."""
    flat = pixels.flatten(1)
    left = (model(pixels).argmax(1) != trial.label) & (flat.amin(1) >= -PIXEL_TOLERANCE)
    left &= flat.amax(1) <= 1 + PIXEL_TOLERANCE
    return (pixels - trial.pixels).abs().flatten(1).amax(1).where(left, math.inf)


def _auto_attack(trial: Trial, radius: float, classes: int, cache: Path) -> tuple[Tensor, float]:
    """Which images it takes to another class within the radius (N,), and forward passes an image; kept on disk."""
    name = f"{trial.name}-{trial.digest}-torchattacks-{version('torchattacks')}-autoattack-{radius:.6f}"
    file = cache / "peers" / f"{name}.pt"
    if not file.is_file():
        from torchattacks import AutoAttack

        model = trial.model
        torch.manual_seed(0)
        with counting(trial.network) as count:
            attack = AutoAttack(model, norm="Linf", eps=radius, version="standard", n_classes=classes, seed=0)
            pixels = attack(trial.pixels.clone(), trial.label.clone()).detach()
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"pixels": pixels, "forwards": count.forwards / len(pixels)}, file)
    kept = torch.load(file, weights_only=True)
    return _length(trial.model, trial, kept["pixels"]) <= radius + PIXEL_TOLERANCE, kept["forwards"]
