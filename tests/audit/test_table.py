"""The table for people."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_attngrad.audit.table import WIDTH, comparison_table, distance_text
from tests.audit.test_checkpoints import a_record
from tests.audit.test_outcome import a_row

SETTINGS = {"norm": "linf", "steps": 16, "target": "random", "num_images": 4}
FIGURES = {
    "maps/entropy": 0.7,
    "maps/border_mass": 0.25,
    "rewrite/median_linf": 4 / 255,
    "rewrite/robust_accuracy/1_255": 1.0,
    "rewrite/robust_accuracy/4_255": 0.5,
    "rewrite/robust_accuracy/8_255": 0.0,
    "rewrite/area": 0.3,
    "rewrite/map_shift": 0.1,
    "rewrite/health/zero_gradient": 0.0,
    "rewrite/health/unconverged": 0.0,
    "rewrite/health/never_rewritten": 0.0,
    "rewrite/health/one_step_better": 0.0,
}


def row(label: str, metrics: dict[str, float] | None = None, **figures: Any) -> Any:
    changed = {name.replace("__", "/"): value for name, value in figures.items()}
    return a_row(label, settings=SETTINGS, figures={**FIGURES, **changed}, metrics=metrics or {"val_loss": 0.5})


def cells(table: str, label: str) -> list[str]:
    return next(line for line in table.splitlines() if line.startswith(label)).split()


def test_it_is_as_it_is() -> None:
    rows = [
        row("epoch=0-step=4", {"val_accuracy": 0.91, "val_loss": 0.4, "train_loss": 0.2}),
        row("epoch=1-step=8", {"val_accuracy": 0.93, "val_loss": math.nan}, rewrite__median_linf=math.inf),
    ]
    assert comparison_table(rows).splitlines() == [
        "checkpoint     epoch  step  val_accuracy  val_loss  median  robust at 4/255   area  map shift  map entropy",
        "----------------------------------------------------------------------------------------------------------",
        "epoch=0-step=4     1     8          0.91       0.4   4/255              50%  0.300       0.10        0.700",
        "epoch=1-step=8     1     8          0.93*      nan       ∞*             50%  0.300       0.10        0.700",
        "----------------------------------------------------------------------------------------------------------",
        "* best of the column. median: L∞ distance that rewrites half of 4 images, an upper bound "
        "(16 steps, random target)",
        "the same images, classes and settings for all: hash all…",
    ]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("val_loss", (1.0, 0.5), 1),
        ("val_acc", (1.0, 0.5), 0),
        ("val/F1", (0.1, 0.5), 1),
        ("val_mAP", (0.1, 0.5), 1),
        ("val_error", (0.1, 0.5), 0),
        ("val_something", (0.1, 0.5), None),
        ("val_loss", (0.5, 0.5), None),
        ("val_loss", (0.5, math.nan), None),
        ("val_loss", (-math.inf, 0.5), 0),
    ],
)
def test_the_best_is_marked_where_it_is_known(name: str, values: tuple[float, float], best: int | None) -> None:
    table = comparison_table([row("a", {name: values[0]}), row("b", {name: values[1]})])
    column = [cells(table, label)[3] for label in ("a ", "b ")]
    assert [cell.endswith("*") for cell in column] == [best == 0, best == 1]


def test_robustness_is_shown_where_checkpoints_differ() -> None:
    table = comparison_table([row("a", **{"rewrite/robust_accuracy/4_255": 1.0, "rewrite/robust_accuracy/8_255": 0.4})])
    assert "robust at 8/255" in table


def test_wide_tables_lose_columns_and_no_line_is_longer() -> None:
    metrics = {f"val_{'long' * 5}_{number}": 0.5 for number in range(9)}
    table = comparison_table([row(f"checkpoint-with-a-{'very-' * 12}long-name-{end}", metrics) for end in "ab"])
    lines = table.splitlines()
    assert max(map(len, lines)) <= WIDTH + 8
    assert sum(line.startswith("checkpoint-with-a…") for line in lines) == 2
    assert lines[2] != lines[3]  # the ends of the names are still there


def test_what_speaks_against_the_numbers_is_said() -> None:
    table = comparison_table([row("a"), row("b", **{"rewrite/health/unconverged": 0.5})])
    assert table.splitlines()[-1] == "b: unconverged; its distances are less certain"


def test_models_without_maps_and_runs_without_metrics() -> None:
    figures = {name: value for name, value in FIGURES.items() if not name.startswith("maps/")}
    table = comparison_table([a_row("a", settings=SETTINGS, figures=figures, metrics={})])
    assert "map entropy" not in table
    assert table.splitlines()[0].split()[:4] == ["checkpoint", "epoch", "step", "median"]


@pytest.mark.parametrize(
    ("norm", "value", "text"),
    [
        ("linf", 3.1 / 255, "3.1/255"),
        ("l2", 0.75, "0.75"),
        ("l0", 12.5, "12.5"),
        ("l0_patches", 0.05, "5 %"),
        ("l2", math.inf, "∞"),
    ],
)
def test_distances_in_the_units_of_their_norm(norm: str, value: float, text: str) -> None:
    assert distance_text(a_record(settings={"norm": norm}, figures={f"rewrite/median_{norm}": value})) == text
