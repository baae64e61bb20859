"""Bad input is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_attngrad.audit import AuditError, AuditOptions

GOOD: dict[str, Any] = {"checkpoints": [Path("a.ckpt"), Path("b.ckpt")], "model": "train.py:Model"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"checkpoints": []}, "checkpoints: got none"),
        ({"checkpoints": [Path("a.ckpt"), Path("a.ckpt")]}, "a.ckpt is given twice"),
        ({"checkpoints": [Path("a.ckpt"), Path.cwd() / "a.ckpt"]}, "a.ckpt is given twice"),
        ({"model": None}, "--model: which LightningModule is it"),
        ({"model_args": ["width"]}, "--model-arg: got 'width'; expected NAME=VALUE"),
        ({"data_args": ["=3"]}, "--data-arg: got '=3'"),
        ({"fail_if": ["val_loss"]}, "--fail-if: got 'val_loss'; expected NAME"),
        ({"mean": (0.5,)}, "--mean, --std: got one of them"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditError, match=message):
        AuditOptions(**{**GOOD, **changed})


def test_good_input() -> None:
    options = AuditOptions(**GOOD, fail_if=["x<1"], model_args=["folder=a=b"], config=None)
    assert [threshold.name for threshold in options.thresholds] == ["x"]
    assert AuditOptions([Path("a.ckpt")], config=Path("config.yaml")).model is None


def test_a_link_to_another_checkpoint_is_not_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "best.ckpt")
    AuditOptions([tmp_path / "best.ckpt", tmp_path / "last.ckpt"], model="train.py:Model")
