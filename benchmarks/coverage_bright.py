"""Whether the maximum of a map stands on a bright square on black: ``python -m benchmarks.coverage_bright``.

A small model of each family (`tests.families`) learns the colour of the square (`tests.bright_objects`), with nothing
but black as one class more. Printed is the share of maps whose largest cell overlaps the square. Families that do not
learn it in so many steps are said to; half an hour and more for all of them on one core.
"""

from __future__ import annotations

import argparse
import warnings

import torch

from benchmarks.coverage_judging import every_method
from lightning_attngrad.explain import explain
from tests.bright_objects import scenes, trained
from tests.families import FAMILIES, Family

SCENES = 24


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage_bright", description=__doc__)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="families with one of these in the name")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| model | " + " | ".join(every_method()) + " |\n|---|" + "---|" * len(every_method()))
    for family in FAMILIES.values():
        if not options.only or any(part in family.name for part in options.only):
            cells = " | ".join(shares(family, options.steps))
            print(f"| {family.name} | {cells} |", flush=True)


def shares(family: Family, steps: int) -> list[str]:
    """Of each method the share of maps whose maximum is on the square, or why there is none."""
    side = min(family.image_size) // 4
    torch.manual_seed(0)
    try:
        model = trained(family.raw(), family.image_size, side, steps)
    except (RuntimeError, ValueError) as error:
        return [str(error).splitlines()[0]]
    scene = scenes(SCENES, family.image_size, side, seed=5)

    def share(method: str) -> str:
        try:
            maps = explain(model, scene.images, scene.classes, method=method).heatmap
        except (ValueError, RuntimeError) as error:
            return type(error).__name__
        return f"{scene.holds(maps).float().mean():.2f}"

    return [share(method) for method in every_method()]


if __name__ == "__main__":
    main()
