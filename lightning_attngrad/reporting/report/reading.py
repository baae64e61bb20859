"""What a run has kept, read back."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from lightning_attngrad.reporting.report.options import ReportError
from lightning_attngrad.reporting.report.store import FOLDER, FORMAT


@dataclass(frozen=True)
class Moment:
    """When something was found.

    Attributes:
        step: optimizer steps done.
        label: in words, such as ``epoch 3``.
    """

    step: int
    label: str


@dataclass(frozen=True)
class StoredEvaluation:
    """What a monitor has found at a moment.

    Attributes:
        address: of its files, without their endings.
        moment: when.
        images: key of the images.
    """

    address: str
    moment: Moment
    images: str

    @cached_property
    def plain(self) -> Mapping[str, Any]:
        """Numbers, and what was predicted."""
        found = _json(f"{self.address}.json")
        return found if isinstance(found, Mapping) else {}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """By name."""
        return {name: float(value) for name, value in self.plain.get("numbers", {}).items()}

    @cached_property
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """By name."""
        return _arrays(f"{self.address}.npz")


@dataclass(frozen=True)
class StoredMonitor:
    """A monitor and its evaluations.

    Attributes:
        name: in ``attngrad/<name>/…``.
        kind: name of its class.
        lineage: of that and the classes that it is derived from.
        settings: what its numbers depend on.
        conditions: under which its history was measured.
        probe: settings of its images.
        charts: names of numbers by the title of the chart that they share, or a value with the ends of its band.
        meanings: of its main numbers.
        seconds: that it took.
        remarks: whatever else there is to know.
        evaluations: in the order of the run.
    """

    name: str
    kind: str
    lineage: Sequence[str]
    settings: Mapping[str, Any]
    conditions: Mapping[str, Any]
    probe: Mapping[str, Any]
    charts: Mapping[str, Any]
    meanings: Mapping[str, str]
    seconds: float
    remarks: Sequence[str]
    evaluations: Sequence[StoredEvaluation]


@dataclass(frozen=True)
class StoredImages:
    """The images of a probe.

    Attributes:
        key: the beginning of their hash.
        pixels: (N, H, W, 3 or 1) uint8.
        true: what each truly is; empty where that is not known.
        shown_as: what was done to them so that they can be seen; empty where nothing was.
    """

    key: str
    pixels: npt.NDArray[np.uint8]
    true: Sequence[str]
    shown_as: str


@dataclass(frozen=True)
class StoredRun:
    """A run.

    Attributes:
        name: of its log directory.
        described: versions, precision, and so on.
        monitors: those of the run, audits too.
        images: by their keys.
        metrics: the run's own numbers, by moment.
        records: those of checkpoints, as they lie beside them.
    """

    name: str
    described: Mapping[str, Any]
    monitors: Sequence[StoredMonitor]
    images: Mapping[str, StoredImages]
    metrics: Sequence[tuple[Moment, Mapping[str, float]]]
    records: Sequence[Mapping[str, Any]] = field(default=())


#: Of a monitor, as it describes itself.
_DESCRIBED = ("name", "kind", "lineage", "settings", "conditions", "probe", "charts", "meanings")


def read_run(directory: str | Path) -> StoredRun:
    """Read what a run with ``report=True`` has kept.

    Args:
        directory: its log directory, a path or an address in an object store.

    Raises:
        ReportError: where nothing has been kept, or nothing that this version reads.
    """
    address = str(directory).rstrip("/")
    store = f"{address}/{FOLDER}"
    try:
        index = _json(f"{store}/run.json")
    except OSError:
        raise ReportError(f"LOGDIR: {_why_nothing(address)}") from None
    except ValueError as error:
        raise ReportError(f"LOGDIR: {store}/run.json is no record of a run ({error}); remove it") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ReportError(
            f"LOGDIR: {store}/run.json has format {index.get('format') if isinstance(index, dict) else '?'}; this "
            f"version reads {FORMAT}, upgrade lightning-attngrad"
        )
    try:
        return StoredRun(
            name=_name(address),
            described={name: value for name, value in index.items() if name not in ("evaluations", "metrics")},
            monitors=[_monitor(one, index["evaluations"], store) for one in index["monitors"]],
            images={key: _images(store, key) for key in index["images"]},
            metrics=[(_moment(row), _numbers(row["metrics"])) for row in index["metrics"]],
            records=_records(address, index),
        )
    except (KeyError, TypeError, OSError) as error:
        raise ReportError(f"LOGDIR: {store} is not whole ({type(error).__name__}: {error})") from error


def _monitor(described: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]], store: str) -> StoredMonitor:
    name = described["name"]
    own = [one for one in evaluations if one["monitor"] == name]
    return StoredMonitor(
        **{key: described[key] for key in _DESCRIBED},
        seconds=float(described["seconds"]),
        remarks=described["remarks"],
        evaluations=[
            StoredEvaluation(f"{store}/{name}/evaluation-{one['number']:04d}", _moment(one), one["images"])
            for one in own
        ],
    )


def _images(store: str, key: str) -> StoredImages:
    described, arrays = _json(f"{store}/images-{key}.json"), _arrays(f"{store}/images-{key}.npz")
    return StoredImages(key, arrays["pixels"], described["true"], described["shown_as"])


def _moment(row: Mapping[str, Any]) -> Moment:
    return Moment(int(row["global_step"]), str(row["label"]))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def _records(address: str, index: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of the checkpoints that are still there, by the step at which they were saved."""
    audits = [one["name"] for one in index["monitors"] if "CheckpointAudit" in one["lineage"]]
    named = {one if "://" in one or one.startswith("/") else f"{address}/{one}" for one in index.get("records", ())}
    if "://" not in address:
        named |= {str(path) for name in audits for path in Path(address).rglob(f"*.{name.replace('/', '.')}.json")}
    found = [record for one in sorted(named) if (record := _record(one)) is not None]
    return sorted(found, key=lambda record: (record["global_step"], str(record.get("checkpoint"))))


def _record(address: str) -> dict[str, Any] | None:
    """That beside a checkpoint; None where it has been removed since, or is a file of another kind."""
    try:
        record = _json(address)
        return {
            **record,
            "figures": _numbers(record["figures"]),
            "metrics": _numbers(record["metrics"]),
            "global_step": int(record["global_step"]),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _why_nothing(address: str) -> str:
    """With the folders below it that would do."""
    if "://" in address:
        return f"{address} holds no {FOLDER}; was the run made with report=True?"
    if not Path(address).is_dir():
        return f"{address} is no folder"
    below = sorted(str(path.parents[2]) for path in Path(address).glob(f"**/{FOLDER}/run.json"))
    if below:
        return f"{address} is not the log directory of a run itself; expected one of {', '.join(below)}"
    return f"{address} holds no {FOLDER}; give one of the run's monitors report=True, and train again"


def _name(address: str) -> str:
    """The last two parts: ``version_0`` alone says little."""
    parts = [part for part in address.split("/") if part]
    return "/".join(parts[-2:]) or address


def _json(address: str) -> Any:
    with fsspec.open(address, "rb") as stream:
        return json.loads(stream.read())


def _arrays(address: str) -> dict[str, npt.NDArray[Any]]:
    try:
        with fsspec.open(address, "rb") as stream:
            content = stream.read()
    except OSError:
        return {}
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return dict(found)
