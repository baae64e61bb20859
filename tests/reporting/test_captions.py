"""What stands beside an image says what is right, what is wrong, and of how many labels."""

from __future__ import annotations

import pytest

from lightning_attngrad.reporting.captions import Caption


@pytest.mark.parametrize(
    ("caption", "lines"),
    [
        (Caption("cat", 0.9, "cat", 0.9), [("predicted, p = 0.90", "✓ cat"), ("true, p = 0.90", "cat")]),
        (Caption("7", 0.6, "1", 0.3), [("predicted, p = 0.60", "✗ 7"), ("true, p = 0.30", "1")]),
        (
            Caption(("0",), (0.9,), ("0", "1"), (0.9, 0.59)),
            [("predicted: 1 of 2, p = 0.90", "◐ label 0"), ("true", "label 0 (0.90), label 1 (0.59)")],
        ),
        (
            Caption(("cat", "dog"), (0.9, 0.7), ("cat",), (0.9,)),
            [("predicted: 1 of 1, 1 wrong", "◐ cat (0.90), dog (0.70)"), ("true, p = 0.90", "cat")],
        ),
        (
            Caption(("owl", "dog"), (0.9, 0.7), ("cat", "hen"), (0.1, 0.2)),
            [
                ("predicted: 0 of 2, 2 wrong", "✗ owl (0.90), dog (0.70)"),
                ("true", "cat (0.10), hen (0.20)"),
            ],
        ),
        (Caption(("none",), None, ("none",)), [("predicted", "✓ none"), ("true", "none")]),
        (
            Caption(("none",), None, ("cat", "hen"), (0.1, 0.2)),
            [("predicted: 0 of 2", "✗ none"), ("true", "cat (0.10), hen (0.20)")],
        ),
        (Caption("0.31", None, what="hen of query 17"), [("hen of query 17", "0.31")]),
    ],
)
def test_lines(caption: Caption, lines: list[tuple[str, str]]) -> None:
    assert caption.lines == lines


@pytest.mark.parametrize(
    ("caption", "verdict"),
    [
        (Caption("cat", 0.9, "cat", 0.9), "✓ cat (0.90)"),
        (Caption("7", 0.999, "1", 0.0), "✗ 7 (p > 0.99)"),
        (Caption(("0", "3"), (0.9, 0.6), ("0",), (0.9,)), "◐ label 0 (0.90), label 3 (0.60)"),
        (Caption("dog", 0.5), "dog (0.50)"),
        (Caption("0.31", None, what="hen of query 17"), "0.31"),
    ],
)
def test_verdicts(caption: Caption, verdict: str) -> None:
    assert caption.verdict == verdict
