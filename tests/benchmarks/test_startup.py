"""The benchmark of start-up times, on programs that do nothing."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.startup import PROGRAMS, REFERENCE, measure, report


def test_each_program_is_started_and_compared() -> None:
    seconds = measure(1, {REFERENCE: ("pass",), "slow": ("import time; time.sleep(2)",)})
    assert seconds["slow"] > seconds[REFERENCE] + 1
    lines = report({REFERENCE: 2.0, "slow": 3.0}).splitlines()
    assert lines[0].split() == ["import", "torch", "2.00", "s", "1.00", "×", "import", "torch"]
    assert lines[1].split()[:4] == ["slow", "3.00", "s", "1.50"]


def test_a_program_that_fails_is_no_time() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        measure(1, {REFERENCE: ("raise SystemExit(3)",)})


def test_the_programs_are_whole_commands() -> None:
    assert next(iter(PROGRAMS)) == REFERENCE
    for program, *_ in PROGRAMS.values():
        compile(program, "program", "exec")
