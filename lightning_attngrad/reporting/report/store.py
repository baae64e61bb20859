"""RunStore: the maps and numbers of a run's evaluations, as plain files that a report, or anyone, can read.

In the log directory, under ``attngrad/report``::

    run.json                      what there is, in order; monitors, settings, the run's own metrics
    images-<hash>.npz             pixels (N, H, W, 3 or 1) uint8 of the images, once; masks (N, H, W) where known
    images-<hash>.json            what they truly are
    <monitor>/evaluation-0003.json   numbers, and what was predicted
    <monitor>/evaluation-0003.npz    maps and other arrays

JSON knows neither ∞ nor NaN: they are the strings ``"inf"`` and ``"nan"``, which ``float()`` reads.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt

from lightning_attngrad.reporting.files import write_to

#: Of the layout of the files; raised when a reader of the old one would misread the new.
FORMAT = 1
#: Under the log directory.
FOLDER = "attngrad/report"
_INDEX = "run.json"


class RunStore:
    """Writes what is kept of a run.

    Args:
        directory: the log directory, a path or an address in an object store.
        step: optimizer steps done. What a run of the same directory has kept beyond this step is forgotten: a run that
            begins there replaces an earlier one, and a run that is resumed goes on with what stood at its checkpoint.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     store = RunStore(directory, step=0)
        ...     store.keep("maps", {"label": "start", "global_step": 0}, {"heatmap": np.ones((2, 4, 4)), "method": "x"})
        ...     store.write({"monitors": []})
        ...     [path.name for path in sorted(Path(directory).rglob("*.*"))]
        ['evaluation-0000.json', 'evaluation-0000.npz', 'run.json']
    """

    def __init__(self, directory: str, step: int) -> None:
        self.address = f"{directory.rstrip('/')}/{FOLDER}"
        before = {} if step == 0 else _read_index(self.address)
        self._evaluations = _up_to(step, before.get("evaluations", []))
        self._metrics = _up_to(step, before.get("metrics", []))
        self._images: list[str] = list(before.get("images", []))

    def keep_images(
        self,
        key: str,
        pixels: npt.NDArray[np.uint8],
        masks: npt.NDArray[np.float32] | None,
        described: Mapping[str, Any],
    ) -> None:
        """Keep the images of a probe, unless they are there.

        Args:
            key: their hash.
            pixels: (N, H, W, 3 or 1).
            masks: (N, H, W) in [0, 1], kept as 0 to 255; None where there are none.
            described: what they are, in plain values.

        Raises:
            OSError: if they cannot be written.
        """
        if key in self._images:
            return
        arrays: dict[str, npt.NDArray[np.uint8]] = {"pixels": pixels}
        if masks is not None:
            arrays["masks"] = np.round(masks * 255).astype(np.uint8)
        write_to(f"{self.address}/images-{key}.npz", _npz(arrays))
        write_to(f"{self.address}/images-{key}.json", as_json(described))
        self._images.append(key)

    def keep(self, monitor: str, moment: Mapping[str, Any], found: Mapping[str, Any], *, anew: bool = False) -> None:
        """Keep what a monitor has found; it is listed from the next :meth:`write` on.

        Args:
            monitor: its name.
            moment: when: ``label``, ``step``, ``global_step``, and ``images``, the key of the images.
            found: arrays, and plain values; floats may be infinite or NaN.
            anew: whether a new history begins, of which earlier evaluations of this monitor are no part.

        Raises:
            OSError: if it cannot be written.
        """
        if anew:
            self._evaluations = [one for one in self._evaluations if one["monitor"] != monitor]
        number = 1 + max((one["number"] for one in self._evaluations if one["monitor"] == monitor), default=-1)
        arrays = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
        plain = {name: value for name, value in found.items() if name not in arrays}
        where = f"{self.address}/{monitor}/evaluation-{number:04d}"
        if arrays:
            write_to(f"{where}.npz", _npz(arrays))
        write_to(f"{where}.json", as_json({**moment, **plain}))
        self._evaluations.append({"monitor": monitor, "number": number, **moment, "arrays": sorted(arrays)})

    def keep_metrics(self, moment: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Keep the run's own numbers, listed from the next :meth:`write` on; of one moment the last."""
        at = moment["global_step"], moment["label"]
        self._metrics = [one for one in self._metrics if (one["global_step"], one["label"]) != at]
        self._metrics.append({**moment, "metrics": dict(metrics)})

    def write(self, described: Mapping[str, Any]) -> None:
        """Write the list of all that is kept, with what is to be said of the run and its monitors.

        Raises:
            OSError: if it cannot be written.
        """
        content = {
            "format": FORMAT,
            **described,
            "images": self._images,
            "evaluations": self._evaluations,
            "metrics": self._metrics,
        }
        write_to(f"{self.address}/{_INDEX}", as_json(content))


def as_json(value: Any) -> bytes:
    """JSON in which ∞ and NaN are strings.

    Example:
        >>> as_json({"a": [0.5, float("inf")]}).decode().split()
        ['{"a":', '[0.5,', '"inf"]}']
    """
    return f"{json.dumps(_plain(value), allow_nan=False, ensure_ascii=False)}\n".encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _npz(arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **dict(arrays))  # type: ignore[arg-type]  # its stub takes names for options
    return content.getvalue()


def _up_to(step: int, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(row) for row in rows if row["global_step"] <= step]


def _read_index(address: str) -> dict[str, Any]:
    """That of an earlier part of the run; empty where there is none that can be read."""
    try:
        with fsspec.open(f"{address}/{_INDEX}", "rb") as stream:
            found = json.loads(stream.read())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {}
