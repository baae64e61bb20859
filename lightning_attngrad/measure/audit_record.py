"""AuditRecord: what a checkpoint is worth, as plain values, in the checkpoint and in a small JSON file beside it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import lightning
import lightning.pytorch as pl
import torch

from lightning_attngrad.reporting.files import write_to
from lightning_attngrad.version import VERSION

#: Of the layout of the record; raised when a reader of the old one would misread the new.
FORMAT = 1


def versions_now() -> dict[str, str]:
    """Of what numbers are computed with."""
    return {
        "lightning-attngrad": VERSION,
        "lightning": str(lightning.__version__),
        "torch": str(torch.__version__),
    }


@dataclass(frozen=True)
class AuditRecord:
    """The figures of one set of weights, and all that has to be the same for two of them to compare.

    Attributes:
        epoch: of the run, counted from 0 as in the names of checkpoints.
        global_step: optimizer steps done.
        figures: by name, such as ``rewrite/median_linf`` and ``maps/entropy``; empty where ``why_empty`` says why.
        metrics: the run's own scalars at that moment, such as ``val_loss``.
        images: how many images, and their hash.
        settings: of the audit, named like its arguments, and the precision of the run.
        hash: SHA-256 of images, classes and settings: figures under another one do not compare.
        seconds: that it took to find them.
        weights: which ones these are, where the run averages them; else empty.
        why_empty: why there are no figures.
        versions: of what they were computed with.
    """

    epoch: int
    global_step: int
    figures: dict[str, float]
    metrics: dict[str, float]
    images: dict[str, Any]
    settings: dict[str, Any]
    hash: str | None
    seconds: float = 0.0
    weights: str = ""
    why_empty: str = ""
    format: int = FORMAT
    versions: dict[str, str] = field(default_factory=versions_now)

    def plain(self) -> dict[str, Any]:
        """As plain values, which a checkpoint read with ``weights_only=True`` may hold."""
        return asdict(self)

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> AuditRecord:
        """Back from :meth:`plain`.

        Raises:
            ValueError: if it was written by a later version in another layout.
        """
        if values["format"] != FORMAT:
            raise ValueError(
                f"audit record: got format {values['format']}; this version reads {FORMAT}, upgrade lightning-attngrad"
            )
        return cls(**values)

    def json(self, checkpoint: str) -> str:
        """The content of the file beside a checkpoint.

        JSON knows neither ∞ nor NaN: they are the strings ``"inf"`` and ``"nan"``, which ``float()`` reads.
        """
        values = {"checkpoint": checkpoint, **self.plain()}
        for name in ("figures", "metrics"):
            values[name] = {key: as_json_number(value) for key, value in values[name].items()}
        return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    def write_beside(self, checkpoint: str, name: str = "audit") -> None:
        """Write the file beside a checkpoint, whole or not at all.

        Args:
            checkpoint: its path, or address in an object store.
            name: of the audit.

        Raises:
            OSError: if it cannot be written.
        """
        write_to(record_address(checkpoint, name), self.json(PurePosixPath(checkpoint).name).encode())

    @classmethod
    def read_beside(cls, checkpoint: str, name: str = "audit") -> AuditRecord | None:
        """Back from :meth:`write_beside`; None where there is no such file.

        Args:
            checkpoint: path of the checkpoint.
            name: of the audit.

        Raises:
            ValueError: if the file is none of these, or was written by a later version in another layout.
        """
        path = Path(record_address(checkpoint, name))
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            del values["checkpoint"]
            for part in ("figures", "metrics"):
                values[part] = {key: float(value) for key, value in values[part].items()}
            return cls.from_plain(values)
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is no audit record ({type(error).__name__}: {error}); remove it") from error


def own_metrics(trainer: pl.Trainer) -> dict[str, float]:
    """The user's scalars, without those of the monitors."""
    metrics = trainer.callback_metrics.items()
    return {name: float(value) for name, value in metrics if not name.startswith("attngrad/") and value.numel() == 1}


def record_address(checkpoint: str, name: str = "audit") -> str:
    """Where the record of a checkpoint lies.

    Args:
        checkpoint: its path, or address in an object store.
        name: of the audit: a run may have several.

    Example:
        >>> record_address("run/epoch=3-step=40.ckpt")
        'run/epoch=3-step=40.audit.json'
    """
    return f"{checkpoint.removesuffix('.ckpt')}.{name.replace('/', '.')}.json"


def as_json_number(value: float) -> float | str:
    """A number, or the name of one that JSON does not know.

    Example:
        >>> [as_json_number(value) for value in (0.5, float("inf"), float("nan"))]
        [0.5, 'inf', 'nan']
    """
    return value if math.isfinite(value) else str(value)
