"""The verdict, and the files: read back by the readers that people use."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from lightning_attngrad.audit.outcome import AuditOutcome, AuditRow, remove_former, write_figures, write_outcome
from lightning_attngrad.audit.thresholds import Threshold
from tests.audit.test_checkpoints import a_record


def a_row(label: str = "a", *, logged: dict[str, float] | None = None, **changed: Any) -> AuditRow:
    record = a_record(**changed)
    return AuditRow(Path(f"run/{label}.ckpt"), label, record, None if logged is None else a_record(figures=logged))


def outcome(*rows: AuditRow, fail_if: tuple[str, ...] = ()) -> AuditOutcome:
    return AuditOutcome(rows, [Threshold.parse(text) for text in fail_if])


MEDIAN = "rewrite/median_linf"


class TestVerdict:
    def test_thresholds_count_for_every_checkpoint(self) -> None:
        rows = [a_row("a"), a_row("b", figures={MEDIAN: 0.005}), a_row("c", figures={MEDIAN: 0.001})]
        found = outcome(*rows, fail_if=(f"{MEDIAN}<2/255", "val_loss>1"))
        assert [(threshold.name, [row.label for row in broken]) for threshold, broken in found.broken] == [
            (MEDIAN, ["b", "c"])
        ]
        assert found.verdict() == (
            "FAILED  rewrite/median_linf<2/255: b (0.005), c (0.001)\npassed  val_loss>1: met by none\n"
        )

    def test_a_metric_that_one_has_not(self) -> None:
        found = outcome(a_row("a"), a_row("b", metrics={}), fail_if=("val_loss>1",))
        assert found.verdict() == "FAILED  val_loss>1: b (nan)\n"

    def test_nothing_to_say(self) -> None:
        assert outcome(a_row()).verdict() == ""
        assert not outcome(a_row()).broken


class TestAgainstTheLog:
    def test_equal(self) -> None:
        figures = {"a": 1.0, "b": math.inf, "c": math.nan, "d": 1e-9}
        row = a_row(figures=figures, logged={**figures, "a": 1.0 + 1e-8, "d": 0.0})
        assert row.deviations == {}
        assert outcome(row, a_row("b")).verdict() == "1 of 2 equal what the run logged when they were saved\n"

    @pytest.mark.parametrize(("now", "then"), [(1.0, 1.001), (math.inf, 1.0), (1.0, math.nan), (0.0, 1e-3)])
    def test_not_equal(self, now: float, then: float) -> None:
        assert a_row(figures={"a": now, "b": 1.0}, logged={"a": then, "b": 1.0}).deviations.keys() == {"a"}

    def test_the_largest_difference_is_told(self) -> None:
        row = a_row(figures={"a": 1.0, "b": 2.0, "c": 3.0}, logged={"a": 1.01, "b": 3.0, "c": 3.0})
        said = outcome(row, a_row("b", figures={"a": 1.0}, logged={"a": 1.0})).verdict()
        assert said.startswith(
            "1 of 2 equal what the run logged when they were saved\na does not: b is 2, logged was 3 "
        )
        assert "largest of 2 differences" in said

    def test_why_nothing_compares(self) -> None:
        row = a_row(hash="of others", settings={"norm": "linf", "num_images": 9}, logged={MEDIAN: 0.02})
        assert outcome(row).verdict() == "not compared with what the run logged: num_images=9 (in the run 4)\n"
        same = a_row(hash="of others", logged={MEDIAN: 0.02})
        assert outcome(same).verdict() == "not compared with what the run logged: other images or classes\n"

    def test_nothing_comparable(self) -> None:
        assert a_row().deviations is None
        assert a_row(logged={}).deviations is None
        assert a_row(hash="of other images", logged={MEDIAN: 0.02}).deviations is None


class TestFormerFiles:
    @pytest.mark.parametrize("content", ["", "[]", '{"files": 3}', '{"files": ["../../precious.png"]}', '{"a": 1}'])
    def test_nothing_is_removed_that_no_audit_wrote(self, tmp_path: Path, content: str) -> None:
        folder = tmp_path / "deep" / "out"
        folder.mkdir(parents=True)
        precious = [tmp_path / "precious.png", folder / "other.png"]
        for file in precious:
            file.write_text("a picture")
        (folder / "audit.json").write_text(content)
        remove_former(folder)
        assert all(file.exists() for file in precious)

    def test_a_folder_that_is_not_there(self, tmp_path: Path) -> None:
        remove_former(tmp_path / "none")
        assert not list(tmp_path.iterdir())


class TestFiles:
    rows = (
        a_row("one", figures={MEDIAN: math.inf, "x": 0.1}, logged={MEDIAN: 1.0, "x": 0.1}),
        a_row("two", figures={MEDIAN: 0.25, "x": math.nan}, metrics={"val_loss": 0.5, 'an "odd", one': 2.0}),
    )

    def test_json(self, tmp_path: Path) -> None:
        write_outcome(outcome(*self.rows, fail_if=("x>1",)), tmp_path / "out")
        read = json.loads((tmp_path / "out" / "audit.json").read_text(), parse_constant=pytest.fail)  # no NaN
        one, two = read["checkpoints"]
        assert (one["label"], one["checkpoint"], one["epoch"], one["hash"]) == ("one", "run/one.ckpt", 1, "all")
        assert {name: float(value) for name, value in one["figures"].items()} == self.rows[0].record.figures
        assert one["equals_log"] is False
        assert one["differs_from_log"] == {MEDIAN: {"now": "inf", "logged": 1.0}}
        assert two["equals_log"] is None
        assert read["thresholds"] == [{"condition": "x>1", "broken_by": ["two"]}]

    def test_csv(self, tmp_path: Path) -> None:
        write_outcome(outcome(*self.rows), tmp_path)
        with (tmp_path / "audit.csv").open(newline="") as stream:
            one, two = csv.DictReader(stream)
        assert list(one) == ["checkpoint", "epoch", "global_step", "hash", "val_loss", 'an "odd", one', MEDIAN, "x"]
        assert (one["checkpoint"], float(one[MEDIAN]), float(one["x"])) == ("one", math.inf, 0.1)
        assert (two["checkpoint"], float(two[MEDIAN]), two["x"]) == ("two", 0.25, "nan")
        assert (one['an "odd", one'], float(two['an "odd", one'])) == ("", 2.0)

    def test_figures(self, tmp_path: Path) -> None:
        write_figures({"success": Figure(figsize=(2, 1), dpi=50)}, tmp_path / "run" / "last")
        assert imread(tmp_path / "run" / "last" / "success.png").shape[:2] == (50, 100)
