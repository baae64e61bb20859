"""Reading checkpoints: what a file is, what it tells of its run, and why it is refused."""

from __future__ import annotations

import ast
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_attngrad.audit.options import AuditError
from lightning_attngrad.measure.audit_record import AuditRecord

_MOST_NAMED = 4  # unsafe objects in a message


@dataclass(frozen=True)
class SavedCheckpoint:
    """What a checkpoint tells of its run; its weights are read later.

    Attributes:
        path: of the file.
        label: what it is called: the part of its path in which it differs from the others.
        epoch: of the run.
        global_step: optimizer steps done.
        content: hyper-parameters of the module and of the data, by the keys of Lightning.
        audits: states of the run's audits, by their names.
    """

    path: Path
    label: str
    epoch: int
    global_step: int
    content: Mapping[str, Any] = field(default_factory=dict)
    audits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def state(self, name: str | None) -> Mapping[str, Any] | None:
        """The state of the run's audit; None if it had none.

        Raises:
            AuditError: if it had several and none is named, or none of that name.
        """
        if not self.audits:
            return None
        if name is None and len(self.audits) == 1:
            return next(iter(self.audits.values()))
        if name is None or name not in self.audits:
            had = ", ".join(map(repr, self.audits))
            raise AuditError(f"--name: got {name!r}; the audits in {self.label} are called {had}")
        return self.audits[name]

    def record(self, name: str | None) -> AuditRecord | None:
        """What the run recorded when this was saved, in the file itself or beside it; None if nothing.

        Raises:
            AuditError: as :meth:`state` does, and for a record of a later version.
        """
        state = self.state(name)
        plain = None if state is None else state["record"]
        try:
            if plain is not None:
                record: AuditRecord | None = AuditRecord.from_plain(dict(plain))
            else:  # saved with save_weights_only
                record = AuditRecord.read_beside(str(self.path), name or "audit")
        except (ValueError, TypeError) as error:
            raise AuditError(f"{self.label}: {error}") from error
        # Of other weights, if this was saved after an error, or another file has been given this name.
        return record if record is not None and record.global_step == self.global_step else None


def read_checkpoints(paths: Sequence[Path], *, allow_unsafe: bool) -> list[SavedCheckpoint]:
    """Read what all of them tell.

    Args:
        paths: of the files.
        allow_unsafe: read also what can run code.

    Raises:
        AuditError: for a file that is missing, damaged, no checkpoint of Lightning, or unsafe.
    """
    return [
        _describe(path, label, load_checkpoint(path, allow_unsafe=allow_unsafe))
        for path, label in zip(paths, _labels(paths), strict=True)
    ]


def load_checkpoint(path: Path, *, allow_unsafe: bool) -> dict[str, Any]:
    """Read a checkpoint, weights included, onto the CPU.

    Args:
        path: of the file.
        allow_unsafe: unpickle whatever is in it.

    Raises:
        AuditError: as `read_checkpoints` does.
    """
    if path.is_dir():
        raise AuditError(
            f"{path}: is a folder, as sharded strategies save them; make one file of it with "
            f"python -m lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    if not path.is_file():
        raise AuditError(f"{path}: there is no such file")
    try:
        content = torch.load(
            path,
            map_location="cpu",
            weights_only=not allow_unsafe,
            mmap=zipfile.is_zipfile(path),  # the old format cannot
        )
    except pickle.UnpicklingError as error:
        if names := _unsafe_names(path, str(error)):
            raise AuditError(_refusal(path, names)) from error
        raise AuditError(f"{path}: is damaged, or no checkpoint ({_one_line(error)})") from error
    except (LookupError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise AuditError(f"{path}: is damaged, or no checkpoint ({_one_line(error)})") from error
    except (AttributeError, ImportError) as error:  # only where all is allowed
        raise AuditError(f"{path}: holds an object whose code is not here ({_one_line(error)})") from error
    if not isinstance(content, dict) or not {"state_dict", "global_step", "epoch"} <= content.keys():
        raise AuditError(
            f"{path}: is no checkpoint of Lightning (expected state_dict, epoch and global_step in it), "
            "as trainer.save_checkpoint and ModelCheckpoint write them"
        )
    return content


def _describe(path: Path, label: str, content: Mapping[str, Any]) -> SavedCheckpoint:
    return SavedCheckpoint(
        path=path,
        label=label,
        epoch=int(content["epoch"]),
        global_step=int(content["global_step"]),
        content={key: content[key] for key in content if "hyper_parameters" in key or "hparams" in key},
        audits=_audits(content.get("callbacks") or {}),
    )


def _audits(callbacks: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """States of CheckpointAudit and of what users derived from it: known by what is in them."""
    found = {}
    for key, state in callbacks.items():
        if isinstance(state, Mapping) and {"images", "settings", "record", "history"} <= state.keys():
            # Lightning's key is the name of the class and what tells it from others of that class.
            arguments = re.search(r"\{.*\}$", key)
            name = ast.literal_eval(arguments[0]).get("name", key) if arguments else key
            found[str(name)] = state
    return found


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names without .ckpt, with as many of the folders above as it takes to tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]).removesuffix(".ckpt") for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError("two paths are the same")  # AuditOptions has seen to it


def _unsafe_names(path: Path, message: str) -> list[str]:
    """What is in a file that only a full unpickling could make."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except (ValueError, RuntimeError, pickle.UnpicklingError):  # not a zip file, or damaged
        return re.findall(r"GLOBAL ([\w.]+)", message)[:1]


def _refusal(path: Path, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMED]) + (
        f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    )
    return (
        f"{path}: refused, as it holds more than weights and plain values: {shown}. Such objects are unpickled, and "
        "that can run any code its maker put into the file. If you trust whoever made it: --allow-unsafe. To save "
        "without them: numbers, strings and lists only in save_hyperparameters() and in the states of callbacks"
    )


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]:.200}"
