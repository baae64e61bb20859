"""README's Python runs as it stands, in the order in which it is read."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.audit.project import Classifier, SquaresData

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader has a LightningModule and data; all else is in the blocks."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"module": Classifier(16), "data": SquaresData()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    assert names["trainer"].current_epoch == 5
    assert list(tmp_path.rglob("*.ckpt"))
    assert list(tmp_path.rglob("*.audit.json"))
    assert names["explanation"].heatmap.shape == (2, 14, 14)
    assert names["result"].target.tolist() == names["labels"].tolist()


def test_there_is_what_this_counts_on() -> None:
    code = "\n".join(BLOCKS)
    for call in ("trainer.fit(", "attngrad.explain(", "attngrad.rewrite(", "attngrad.ProbeImages("):
        assert call in code
