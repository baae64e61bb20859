"""What a checkpoint tells, and which files are refused."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from lightning_attngrad.audit.checkpoints import load_checkpoint, read_checkpoints
from lightning_attngrad.audit.options import AuditError
from lightning_attngrad.measure.audit_record import AuditRecord, record_address

RAN: list[str] = []


def run_code(what: str) -> None:
    RAN.append(what)


class Payload:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return run_code, ("anything",)


def a_record(**changed: Any) -> AuditRecord:
    values: dict[str, Any] = {
        "epoch": 1,
        "global_step": 8,
        "figures": {"rewrite/median_linf": 0.02},
        "metrics": {"val_loss": 0.5},
        "images": {"count": 4, "hash": "images"},
        "settings": {"norm": "linf", "num_images": 4},
        "hash": "all",
    }
    return AuditRecord(**{**values, **changed})


def a_state(record: AuditRecord | None, norm: str = "linf") -> dict[str, Any]:
    return {
        "format": 2,
        "images": {},
        "scalars": {},
        "story": {},
        "settings": {"norm": norm},
        "conditions": None,
        "history": {"frozen": None},
        "record": None if record is None else record.plain(),
    }


def a_checkpoint(path: Path, *, states: dict[str, Any] | None = None, **content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    callbacks = {f"CheckpointAudit{{'name': {name!r}}}": state for name, state in (states or {}).items()}
    whole = {"state_dict": OrderedDict(weight=torch.ones(2)), "epoch": 1, "global_step": 8, "callbacks": callbacks}
    torch.save({**whole, **content}, path)
    return path


def read(*paths: Path, allow_unsafe: bool = False) -> list[Any]:
    return read_checkpoints(paths, allow_unsafe=allow_unsafe)


class TestWhatItTells:
    def test_where_it_stands_in_its_run(self, tmp_path: Path) -> None:
        (saved,) = read(a_checkpoint(tmp_path / "a.ckpt", hyper_parameters={"width": 8}, optimizer_states=[1]))
        assert (saved.label, saved.epoch, saved.global_step) == ("a", 1, 8)
        assert saved.content == {"hyper_parameters": {"width": 8}}  # no weights are kept in memory
        assert saved.state(None) is None
        assert saved.record(None) is None

    def test_labels_tell_runs_apart(self, tmp_path: Path) -> None:
        paths = [a_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("one", "two")]
        assert [saved.label for saved in read(*paths)] == ["one/checkpoints/last", "two/checkpoints/last"]

    def test_the_state_of_the_only_audit(self, tmp_path: Path) -> None:
        path = a_checkpoint(tmp_path / "a.ckpt", states={"audit": a_state(a_record())})
        (saved,) = read(path)
        assert saved.state(None)["settings"] == {"norm": "linf"}
        assert saved.record(None) == a_record()
        with pytest.raises(AuditError, match="got 'other'; the audits in a are called 'audit'"):
            saved.state("other")

    def test_one_of_several_audits_has_to_be_named(self, tmp_path: Path) -> None:
        states = {"near": a_state(a_record()), "far": a_state(a_record(hash="other"))}
        states["sub/class"] = states.pop("far")
        (saved,) = read(a_checkpoint(tmp_path / "a.ckpt", states=states))
        with pytest.raises(AuditError, match=r"--name: got None; .* 'near', 'sub/class'"):
            saved.record(None)
        assert saved.record("sub/class").hash == "other"

    def test_other_callbacks_are_no_audits(self, tmp_path: Path) -> None:
        states = {
            "ModelCheckpoint": {"monitor": None},
            "x": {"images": {}, "settings": {}, "scalars": {}, "history": {}},
        }
        (saved,) = read(a_checkpoint(tmp_path / "a.ckpt", callbacks=states))
        assert saved.state(None) is None

    def test_the_file_beside_tells_what_the_checkpoint_does_not(self, tmp_path: Path) -> None:
        path = a_checkpoint(tmp_path / "a.ckpt")
        record = a_record(figures={"rewrite/median_linf": float("inf"), "maps/entropy": 0.5})
        record.write_beside(str(path))
        assert read(path)[0].record(None) == record

    @pytest.mark.parametrize("inside", [True, False])
    def test_a_record_of_other_weights_is_none(self, tmp_path: Path, inside: bool) -> None:
        stale = a_record(global_step=4)
        path = a_checkpoint(tmp_path / "a.ckpt", states={"audit": a_state(stale)} if inside else {})
        if not inside:
            stale.write_beside(str(path))
        assert read(path)[0].record(None) is None

    def test_a_record_of_a_later_version(self, tmp_path: Path) -> None:
        path = a_checkpoint(tmp_path / "a.ckpt", states={"audit": a_state(a_record(format=99))})
        with pytest.raises(AuditError, match="a: audit record: got format 99"):
            read(path)[0].record(None)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"checkpoint": "a.ckpt", "format": 1})])
    def test_a_damaged_file_beside(self, tmp_path: Path, text: str) -> None:
        path = a_checkpoint(tmp_path / "a.ckpt")
        Path(record_address(str(path))).write_text(text)
        with pytest.raises(AuditError, match=r"a\.audit\.json is no audit record"):
            read(path)[0].record(None)


class TestWhatIsRefused:
    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match="there is no such file"):
            read(tmp_path / "none.ckpt")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(AuditError, match="consolidate_checkpoint"):
            read(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 damaged"])
    def test_a_damaged_file(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.ckpt").write_bytes(content)
        with pytest.raises(AuditError, match="is damaged, or no checkpoint"):
            read(tmp_path / "a.ckpt")

    def test_a_state_dict_alone(self, tmp_path: Path) -> None:
        torch.save({"weight": torch.ones(2)}, tmp_path / "a.pth")
        with pytest.raises(AuditError, match="is no checkpoint of Lightning"):
            read(tmp_path / "a.pth")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_code_is_not_run_unless_it_is_allowed_to(self, tmp_path: Path, zipped: bool) -> None:
        RAN.clear()
        content = {"state_dict": {}, "epoch": 0, "global_step": 1, "extra": Payload()}
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(AuditError, match="can run any code") as refused:
            read(tmp_path / "a.ckpt")
        assert not RAN
        assert "--allow-unsafe" in str(refused.value)
        assert "\n" not in str(refused.value)
        read(tmp_path / "a.ckpt", allow_unsafe=True)
        assert RAN == ["anything"]

    def test_every_object_is_named(self, tmp_path: Path) -> None:
        extras = {"extra": [PurePosixPath("x"), Payload]}
        with pytest.raises(AuditError, match=rf"values: pathlib\S*PurePosixPath, {__name__}\.Payload\. Such"):
            read(a_checkpoint(tmp_path / "a.ckpt", **extras))

    def test_an_object_whose_code_is_not_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = a_checkpoint(tmp_path / "a.ckpt", extra=Payload)
        monkeypatch.delattr(f"{__name__}.Payload")
        with pytest.raises(AuditError, match="holds an object whose code is not here"):
            read(path, allow_unsafe=True)


def test_the_old_format_of_torch_is_read(tmp_path: Path) -> None:
    content = {"state_dict": {"weight": torch.arange(3)}, "epoch": 0, "global_step": 1}
    torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "old.ckpt", allow_unsafe=False)["state_dict"]["weight"].tolist() == [0, 1, 2]
