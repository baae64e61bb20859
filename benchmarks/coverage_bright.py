"""Whether the maximum of a map stands on a bright square on black: ``python -m benchmarks.coverage_bright``.

A small model of each family (`tests.families`) learns the colour of the square (`tests.bright_objects`), with nothing
but black as one class more. Printed is the share of maps whose largest cell overlaps the square. Where the default has
little, so is what the model itself reads: the share of images in which, of all tokens that are one by one replaced by
those of a black image, one that overlaps the square lowers the logit most. Such a model may be no test of maps; it is
trained on until the tokens on the square decide (`benchmarks.bright_taught`), and asked again, in a row with a †. An
hour and more for all families on one core; so with ``--write docs/bright_object.md`` each row is written as soon as it
is there, rows of families that are not run now stay, and ``--missing`` runs only those that have none yet.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch
from torch import nn

from benchmarks.bright_taught import taught
from benchmarks.coverage_judging import every_method
from benchmarks.one_token import token_maps
from lightning_attngrad.explain import explain
from lightning_attngrad.explain.default import DEFAULT_METHOD
from tests.bright_objects import Scenes, scenes, trained
from tests.families import FAMILIES, Family

SCENES = 24
#: What is tried until a model has learnt: learning rate, steps at most, and whether it may drop units and paths.
SCHEDULES = ((2e-3, 400, True), (3e-4, 800, True), (1e-3, 800, False))
#: The same where the tokens on the square are to decide.
TAUGHT_AT, TAUGHT_STEPS = 1e-3, 600
#: Families whose default has less are named in the summary.
GOOD = 0.9

#: The column of what the model itself reads.
ONE_TOKEN = "one token"
#: Behind the name of a family in the row of the model for which the tokens on the square decide.
TAUGHT = " †"
#: One family: its share for each method, or the word that is there in its place.
Row = Mapping[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage_bright", description=__doc__)
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="families with one of these in the name")
    parser.add_argument("--missing", action="store_true", help="families that have no row in the file yet")
    parser.add_argument("--write", type=Path, help="Markdown file of the table")
    parser.add_argument("--seed", type=int, default=0, help="of the weights that training begins with (default 0)")
    options = parser.parse_args()
    if options.write is not None and options.seed:
        parser.error("--seed: the table that is written is of seed 0")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = read(options.write) if options.write is not None and options.write.exists() else {}
    for name, family in FAMILIES.items():
        if (options.only and not any(part in name for part in options.only)) or (options.missing and name in rows):
            continue
        rows.pop(name + TAUGHT, None)
        for of_model, row in shares(family, options.seed).items():
            rows[of_model] = row
            print(of_model, *row.values(), flush=True)
        if options.write is not None:
            options.write.write_text("\n".join(report(rows)) + "\n", encoding="utf-8")
    print("\n".join(summary(rows)))


def shares(family: Family, seed: int) -> dict[str, Row]:
    """Of each method the share of maps whose maximum is on the square, or why there is none: one row, or two."""
    side = min(family.image_size) // 4
    model = None
    for rate, steps, dropping in SCHEDULES:
        torch.manual_seed(seed)
        fresh = family.raw() if dropping else _keeping_all(family.raw())
        try:
            model = trained(fresh, family.image_size, side, steps, rate=rate)
            break
        except RuntimeError:
            continue
    if model is None:
        return {family.name: dict.fromkeys(every_method(), "not learnt")}
    scene = scenes(SCENES, family.image_size, side, seed=5)
    rows = {family.name: _measured(model, scene)}
    if ONE_TOKEN in rows[family.name]:
        try:
            taught(model, family.image_size, side, TAUGHT_STEPS, rate=TAUGHT_AT)
        except RuntimeError:
            return rows
        rows[family.name + TAUGHT] = _measured(model, scene, always=True)
    return rows


def _keeping_all(model: nn.Module) -> nn.Module:
    """Without dropout, of units and of whole paths: so little is learnt here that it can hide it."""
    for module in model.modules():
        for probability in ("p", "drop_prob"):
            if isinstance(getattr(module, probability, None), float):
                setattr(module, probability, 0.0)
    return model


def _measured(model: nn.Module, scene: Scenes, *, always: bool = False) -> dict[str, str]:
    """Shares of one model; with ``always`` what it reads itself as well, however much the default has."""

    def share(method: str) -> str:
        try:
            maps = explain(model, scene.images, scene.classes, method=method).heatmap
        except (ValueError, RuntimeError):
            return "refused"
        return f"{scene.holds(maps).float().mean():.2f}"

    found = {method: share(method) for method in every_method()}
    if always or _is_low(found[DEFAULT_METHOD]):
        found[ONE_TOKEN] = f"{scene.holds(token_maps(model, scene.images, scene.classes)).float().mean():.2f}"
    return found


def report(rows: Mapping[str, Row]) -> list[str]:
    """The Markdown file, line by line."""
    return [
        "# A bright object on black",
        "",
        f"Written by `python -m benchmarks.coverage_bright`, {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}: "
        f"torch {torch.__version__}, timm {timm.__version__}. A small model of each family learns the colour of one "
        "bright square on black, with nothing but black as one class more. Share of 24 maps whose largest cell "
        f"overlaps the square. *{ONE_TOKEN}*, where the default has less than {GOOD}: the same of what the logit loses "
        "when one token in front of the first attention becomes that of a black image. *Not learnt*: not in "
        + " nor in ".join(
            f"{steps} steps at {rate:g}{'' if dropping else ' without dropout'}" for rate, steps, dropping in SCHEDULES
        )
        + ". *Refused*: for the reason in the coverage table.",
        "",
        f"Where the default has less than {GOOD}, the model may not read the square where it stands, and then tests no "
        f"map. In the row with a{TAUGHT} it is trained on, up to {TAUGHT_STEPS} steps at {TAUGHT_AT:g}, until the "
        "tokens that overlap the square decide: with those of a black image in their place it has to see black, with "
        "those of a black image everywhere else still the colour, and each logit has to say by itself whether its "
        "class is there. Means and medians are over these rows where there are any.",
        "",
        *summary(rows),
        "",
        "| model | " + " | ".join(f"`{method}`" for method in every_method()) + f" | {ONE_TOKEN} |",
        "|---|" + "---|" * (len(every_method()) + 1),
        *(
            f"| {name} | " + " | ".join(rows[name].get(column, "") for column in (*every_method(), ONE_TOKEN)) + " |"
            for family in FAMILIES
            for name in (family, family + TAUGHT)
            if name in rows
        ),
    ]


def read(file: Path) -> dict[str, Row]:
    """The rows that `report` wrote."""
    _, table = file.read_text(encoding="utf-8").split("| model |")
    head, _, *lines = table.splitlines()
    methods = [method.strip("` ") for method in head.rstrip("| ").split("|")]
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return {name: dict(zip(methods, shares, strict=True)) for name, *shares in cells}


def summary(rows: Mapping[str, Row]) -> list[str]:
    """Mean and median of each method over the families that it explains, and where the default is low."""
    unlearnt = [name for name, row in rows.items() if "not learnt" in row.values()]
    low = [name for name, row in rows.items() if _is_low(row[DEFAULT_METHOD]) and not name.endswith(TAUGHT)]
    again = [name for name in rows if name.endswith(TAUGHT)]
    still = [name for name in again if _is_low(rows[name][DEFAULT_METHOD])]
    counted = [row for name, row in rows.items() if name + TAUGHT not in rows]
    lines = ["| method | families | mean | median |", "|---|---|---|---|"]
    for method in every_method():
        found = [float(row[method]) for row in counted if _is_number(row.get(method, ""))]
        if found:
            lines.append(
                f"| `{method}` | {len(found)} | {statistics.mean(found):.2f} | {statistics.median(found):.2f} |"
            )
    return [
        *lines,
        "",
        f"- `{DEFAULT_METHOD}` below {GOOD} on {_named([_beside(name, rows[name]) for name in low])}",
        f"- of the {len(again)} that were trained on: {_named([_beside(name, rows[name]) for name in still])}",
        f"- not learnt: {_named(unlearnt)}",
    ]


def _beside(name: str, row: Row) -> str:
    """A family, what its default has, and what the model itself reads."""
    read = row.get(ONE_TOKEN)
    return f"{name} ({row[DEFAULT_METHOD]}{f', {ONE_TOKEN} {read}' if read else ''})"


def _named(parts: Sequence[str]) -> str:
    return f"{len(parts)}: {', '.join(parts)}" if parts else "none"


def _is_low(cell: str) -> bool:
    return _is_number(cell) and float(cell) < GOOD


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).isdigit()


if __name__ == "__main__":
    main()
