"""The comparison with LXT: agrees where it runs, and says how to run it where it does not."""

from __future__ import annotations

import importlib.util

import pytest
import transformers

from benchmarks.lxt_agreement import main


def test_it_agrees_or_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    runs = importlib.util.find_spec("lxt") is not None and int(transformers.__version__.partition(".")[0]) < 5
    code = main(["--images", "2", "--layers", "2"])
    said = capsys.readouterr().out
    if runs:
        assert code == 0
        assert "largest difference" in said
    else:
        assert code == 2
        assert '"transformers<5" lxt' in said
        assert "python -m benchmarks.lxt_agreement" in said
