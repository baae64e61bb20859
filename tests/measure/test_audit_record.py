"""The record of a checkpoint: plain in the checkpoint, strict JSON beside it, and read back as it was."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_attngrad.measure.audit_record import FORMAT, AuditRecord, as_json_number, record_address

KEYS = {
    *("checkpoint", "epoch", "global_step", "figures", "metrics", "images", "settings", "hash", "seconds"),
    *("weights", "why_empty", "format", "versions"),
}


def record(**changes: Any) -> AuditRecord:
    values: dict[str, Any] = {
        "epoch": 2,
        "global_step": 30,
        "figures": {"rewrite/median_linf": 0.1, "rewrite/q75_linf": math.inf, "rewrite/psnr": math.nan},
        "metrics": {"val_loss": 1.5, "worst": -math.inf},
        "images": {"count": 3, "hash": "abc"},
        "settings": {"num_images": 3, "seed": 0, "radii": [0.1, 0.2], "target": "random", "top_share": None},
        "hash": "def",
        "seconds": 0.25,
    }
    return AuditRecord(**{**values, **changes})


def strictly(text: str) -> Any:
    """What a reader makes of it that takes the standard at its word."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_from_plain_gives_the_same_record() -> None:
    one = record(figures={"a": 1.0}, why_empty="no images")
    assert AuditRecord.from_plain(one.plain()) == one
    assert one.plain().keys() == KEYS - {"checkpoint"}


def test_a_checkpoint_may_hold_it(tmp_path: Path) -> None:
    torch.save(record().plain(), tmp_path / "record.pt")
    plain = torch.load(tmp_path / "record.pt", weights_only=True)
    back = AuditRecord.from_plain(plain)
    assert back.figures["rewrite/q75_linf"] == math.inf
    assert math.isnan(back.figures["rewrite/psnr"])
    assert back.versions.keys() == {"lightning-attngrad", "lightning", "torch"}
    assert all(type(version) is str for version in back.versions.values())


def test_a_record_of_a_later_layout_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"audit record: got format {FORMAT + 1}; this version reads {FORMAT}"):
        AuditRecord.from_plain({**record().plain(), "format": FORMAT + 1, "more": 1})


def test_json_is_strict_and_holds_everything() -> None:
    values = strictly(record().json("epoch=2.ckpt"))
    assert values.keys() == KEYS
    assert values["checkpoint"] == "epoch=2.ckpt"
    assert values["figures"] == {"rewrite/median_linf": 0.1, "rewrite/q75_linf": "inf", "rewrite/psnr": "nan"}
    assert values["metrics"] == {"val_loss": 1.5, "worst": "-inf"}
    assert values["settings"]["top_share"] is None
    assert float(values["figures"]["rewrite/q75_linf"]) == math.inf
    assert math.isnan(float(values["figures"]["rewrite/psnr"]))


def test_json_ends_with_a_line_and_reads_well() -> None:
    text = record().json("é.ckpt")
    assert text.endswith("}\n")
    assert re.search(r'^  "global_step": 30,$', text, re.MULTILINE)
    assert '"é.ckpt"' in text


@given(st.floats())
def test_every_number_comes_back(value: float) -> None:
    back = float(strictly(json.dumps(as_json_number(value), allow_nan=False)))
    assert back == value or (math.isnan(back) and math.isnan(value))


@pytest.mark.parametrize(
    ("checkpoint", "name", "address"),
    [
        ("run/epoch=3-step=40.ckpt", "audit", "run/epoch=3-step=40.audit.json"),
        ("run/epoch=3-step=40.ckpt", "teacher", "run/epoch=3-step=40.teacher.json"),
        ("run/last.ckpt", "late/rewrite", "run/last.late.rewrite.json"),
        ("s3://bucket/val_loss=0.1.ckpt", "audit", "s3://bucket/val_loss=0.1.audit.json"),
        ("run/weights.pt", "audit", "run/weights.pt.audit.json"),
        ("a.ckpt.d/b", "audit", "a.ckpt.d/b.audit.json"),
    ],
)
def test_where_it_lies(checkpoint: str, name: str, address: str) -> None:
    assert record_address(checkpoint, name) == address


def test_it_is_written_beside_the_checkpoint_under_its_name(tmp_path: Path) -> None:
    record().write_beside(str(tmp_path / "best.ckpt"))
    dataclasses.replace(record(), epoch=3).write_beside(str(tmp_path / "best.ckpt"), "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.audit.json", "best.second.json"]
    first, second = (strictly((tmp_path / f"best.{name}.json").read_text()) for name in ("audit", "second"))
    assert (first["checkpoint"], second["checkpoint"]) == ("best.ckpt", "best.ckpt")
    assert (first["epoch"], second["epoch"]) == (2, 3)


def test_it_is_written_to_an_object_store() -> None:
    fsspec = pytest.importorskip("fsspec")
    record().write_beside("memory://audits/best.ckpt")
    with fsspec.open("memory://audits/best.audit.json") as stream:
        assert strictly(stream.read())["checkpoint"] == "best.ckpt"


def test_where_it_cannot_be_written_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "best.audit.json").mkdir()
    with pytest.raises(OSError, match=r"best\.audit\.json"):
        record().write_beside(str(tmp_path / "best.ckpt"))
    assert [path.name for path in tmp_path.iterdir()] == ["best.audit.json"]
