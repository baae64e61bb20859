"""The text at the end of a fit."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lightning_attngrad as attngrad
from lightning_attngrad.reporting.summary import Account, summary_text

MAPS = Account(
    name="maps",
    kind="AttentionMapMonitor",
    evaluations=5,
    since="start",
    meanings={"entropy": "1 = spread evenly", "mass": "on the border"},
    first={"entropy": 0.9, "mass": 0.25},
    last={"entropy": 0.75, "mass": 0.5},
    seconds=2.0,
    figures="attngrad/maps/",
)


def lines(account: Account = MAPS, fit_seconds: float = 50.0) -> list[str]:
    return summary_text([account], fit_seconds, []).splitlines()[2:]


def test_first_last_direction_cost_and_where_the_figures_are() -> None:
    assert lines() == [
        "maps (AttentionMapMonitor), 5 evaluations since start",
        "    entropy  0.9 → 0.75  down  1 = spread evenly",
        "    mass     0.25 → 0.5  up    on the border",
        "    took 2 s, 4 % of the fit; figures: attngrad/maps/",
    ]


def test_several_monitors_are_one_text_with_what_they_took_together() -> None:
    text = summary_text([MAPS, replace(MAPS, name="late", seconds=3.0)], 50.0, ["CSVLogger: logs/version_0"])
    assert text.splitlines()[0] == "attngrad: what 2 monitors saw in a fit of 50 s, of which they took 10 %"
    assert [line.split(" (")[0] for line in text.splitlines() if "(Attention" in line] == ["maps", "late"]
    assert text.splitlines()[-2:] == ["written to", "    CSVLogger: logs/version_0"]


@pytest.mark.parametrize(
    ("first", "last", "shown"),
    [
        (0.1, math.inf, "0.1 → ∞ up"),
        (math.inf, 0.1, "∞ → 0.1 down"),
        (0.0, -math.inf, "0 → -∞ down"),
        (math.inf, math.inf, "∞ → ∞ same"),
        (0.12341, 0.12342, "0.123 → 0.123 same"),
        (math.nan, 0.5, "nan → 0.5"),
    ],
)
def test_numbers_without_an_end(first: float, last: float, shown: str) -> None:
    account = replace(MAPS, first={"entropy": first}, last={"entropy": last})
    assert " ".join(lines(account)[1].split()) == f"entropy {shown} 1 = spread evenly"


def test_a_number_that_there_is_not_is_not_shown() -> None:
    for last in ({"mass": 0.5}, {"mass": 0.5, "entropy": math.nan}):
        assert not any("entropy" in line for line in lines(replace(MAPS, last=last)))


def test_one_evaluation_has_no_direction() -> None:
    assert lines(replace(MAPS, evaluations=1, last=MAPS.first))[:2] == [
        "maps (AttentionMapMonitor), 1 evaluation, at start",
        "    entropy  0.9     1 = spread evenly",
    ]


def test_no_evaluation_and_the_reason() -> None:
    reason = "switched off: " + "no attention in it " * 12
    account = replace(MAPS, evaluations=0, since="", first={}, last={}, remarks=[reason])
    found = lines(account)
    assert found[0] == "maps (AttentionMapMonitor), no evaluation"
    assert found[2].startswith("    switched off: no attention in it")
    assert " ".join(line.strip() for line in found[2:]).count("no attention in it") == 12


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.01234, "0.0123 s"), (59.4, "59.4 s"), (61, "1 min 1 s"), (7384.0, "2 h 3 min")]
)
def test_times(seconds: float, shown: str) -> None:
    assert summary_text([], seconds, []) == f"attngrad: what 0 monitors saw in a fit of {shown}"


def test_a_fit_of_no_time() -> None:
    assert "took 2 s, 0 % of the fit" in lines(fit_seconds=0.0)[3]


def test_a_long_path_keeps_its_end() -> None:
    (*_, last) = summary_text([MAPS], 1.0, ["CSVLogger: " + "deep/" * 60 + "version_7"]).splitlines()
    assert len(last) == 100
    assert last.startswith("    CSVLogger: deep/")
    assert last.endswith("/version_7")


WORDS = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), max_size=200)


@given(name=WORDS, kind=WORDS, meaning=WORDS, remark=WORDS, place=WORDS, value=st.floats())
def test_it_fits_a_hundred_columns(name: str, kind: str, meaning: str, remark: str, place: str, value: float) -> None:
    account = Account(name, kind, 3, "start", {name: meaning}, {name: value}, {name: value}, 1.0, [remark], place)
    assert max(len(line) for line in summary_text([account], 10.0, [place]).split("\n")) <= 100


@pytest.mark.parametrize(
    "monitor",
    [
        attngrad.AttentionMapMonitor(),
        attngrad.AttentionDriftMonitor(),
        attngrad.FaithfulnessMonitor(),
        *(attngrad.RewriteRobustnessMonitor(norm=norm) for norm in ("linf", "l2", "l0", "l0_patches")),
        *(attngrad.CheckpointAudit(norm=norm) for norm in ("linf", "l2", "l0", "l0_patches")),
    ],
    ids=lambda monitor: type(monitor).__name__,
)
def test_what_monitors_say_of_themselves_is_not_cut_off(monitor: attngrad.AttentionMapMonitor) -> None:
    values = dict.fromkeys(monitor.main_scalars, -0.000123)
    account = Account(
        monitor.name,
        type(monitor).__name__,
        1000,
        "step 1000000",
        monitor.main_scalars,
        {name: -value for name, value in values.items()},
        values,
        1234.5,
        figures=monitor.whereabouts(),
    )
    assert monitor.main_scalars
    assert "…" not in summary_text([account], 1e5, [])
