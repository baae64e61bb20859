"""Which curves share a chart: the layout of TensorBoard's page "Custom Scalars".

TensorBoard shows one layout of each run, the last that was written into its directory, and puts those of several
runs together. So a layout is added to what is there already, in the way in which TensorBoard itself joins two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import fsspec  # type: ignore[import-untyped]

from lightning_attngrad.reporting.board import Names, board_tag

__all__ = ["Chart", "Charts", "Margin", "charts_of", "edges_of", "torch_layout", "with_earlier_layout"]

#: Tag under which TensorBoard keeps a layout.
_LAYOUT_TAG = "custom_scalars__config__"
_AT_ONCE = 2**22  # bytes of a file that are searched

#: Charts that the curves of all monitors share. They name no monitor, so that those of several runs are one.
_OF_ALL = {
    "share of the time of the fit": board_tag("", "overhead", "cost"),
    "seconds taken": board_tag("", "seconds", "cost"),
}


@dataclass(frozen=True)
class Margin:
    """A curve with a band around it: the curve is a main number of its monitor, the edges of the band are none.

    Attributes:
        value: name of a scalar.
        lower: likewise; logged at the same steps.
        upper: likewise.
    """

    value: str
    lower: str
    upper: str


#: Names of scalars whose curves share a chart, one that ends in ``/`` for all below it; or a curve with a band.
Chart: TypeAlias = tuple[str, ...] | Margin
#: By title.
Charts: TypeAlias = Mapping[str, Chart]


def edges_of(charts: Charts) -> frozenset[str]:
    """Names of the edges of all bands."""
    bands = [chart for chart in charts.values() if isinstance(chart, Margin)]
    return frozenset(name for band in bands for name in (band.lower, band.upper))


def charts_of(charts: Charts, names: Names) -> Charts:
    """The charts, and the curves in them, that are left where only the main numbers are logged.

    Args:
        charts: of a monitor.
        names: which of its numbers are main ones.

    Example:
        >>> charts_of({"spread": ("entropy", "border_mass"), "heads": ("head_entropy/",)}, Names("maps", {"entropy"}))
        {'spread': ('entropy',)}
    """

    def is_left(name: str) -> bool:
        return any(main.startswith(name) for main in names.main) if name.endswith("/") else names.is_logged(name)

    if not names.main:
        return charts
    left: dict[str, Chart] = {}
    for title, chart in charts.items():
        if isinstance(chart, Margin):
            left |= {title: chart} if names.is_logged(chart.value) else {}
        elif lines := tuple(name for name in chart if is_left(name)):
            left[title] = lines
    return left


def torch_layout(charts: Mapping[str, Charts], prefix: str = "") -> dict[str, dict[str, list[Any]]]:
    """A layout as ``SummaryWriter.add_custom_scalars`` takes it: one category a monitor, and one for what they share.

    TensorBoard reads the names of lines as regular expressions that match from the start of a tag, and those of bands
    as they are.

    Args:
        charts: of each monitor, by its name.
        prefix: stands before all tags, as in ``fold0-``.

    Example:
        >>> layout = torch_layout({"maps": {"spread": ("entropy", "head_entropy/"), "band": Margin("m", "a", "b")}})
        >>> layout["attngrad/maps"]["spread"]
        ['Multiline', ['^attngrad_(secondary_)?maps/entropy$', '^attngrad_(secondary_)?maps/head_entropy/']]
        >>> layout["attngrad/maps"]["band"]
        ['Margin', ['attngrad_maps/m', 'attngrad_secondary_maps/a', 'attngrad_secondary_maps/b']]
    """
    layout = {
        f"{prefix}attngrad/{name}": {title: _drawn(chart, name, prefix) for title, chart in of_monitor.items()}
        for name, of_monitor in charts.items()
        if of_monitor
    }
    costs = {title: ["Multiline", [f"^{re.escape(prefix + tags)}"]] for title, tags in _OF_ALL.items()}
    return {**layout, f"{prefix}attngrad": costs}


def _drawn(chart: Chart, monitor: str, prefix: str) -> list[Any]:
    if isinstance(chart, Margin):
        edges = [board_tag(monitor, name, "secondary") for name in (chart.lower, chart.upper)]
        return ["Margin", [f"{prefix}{tag}" for tag in (board_tag(monitor, chart.value), *edges)]]
    # Of either group: which one a number is in does not tell whether it belongs to a chart.
    front = f"{re.escape(prefix)}attngrad_(secondary_)?{re.escape(monitor)}/"
    return ["Multiline", [f"^{front}{re.escape(name)}{'' if name.endswith('/') else '$'}" for name in chart]]


def with_earlier_layout(layout: Mapping[str, Mapping[str, list[Any]]], directory: str) -> Any:
    """The layout that a directory of event files has, and behind it what it lacks of another one.

    Nothing is taken away: where a chart of the same title is another one, both are there afterwards.

    Args:
        layout: of :func:`torch_layout`.
        directory: a path, or the address of an object store. What a writer still holds back is not seen.

    Returns:
        A ``Summary`` to be written, or None where nothing is lacking.
    """
    # Slow to import, and of use only where there is a TensorBoardLogger.
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout  # type: ignore[import-untyped]  # noqa: PLC0415
    from torch.utils.tensorboard.summary import custom_scalars  # noqa: PLC0415

    summary = custom_scalars(layout)
    written = summary.value[0].tensor
    wanted, merged = Layout.FromString(written.string_val[0]), Layout()
    if (earlier := _last_layout(directory)) is not None:
        merged.ParseFromString(earlier)
    before = merged.SerializeToString()
    for category in wanted.category:
        same = next((known for known in merged.category if known.title == category.title), None)
        if same is None:
            merged.category.add().CopyFrom(category)
        else:
            same.chart.extend([chart for chart in category.chart if chart not in same.chart])
    if merged.SerializeToString() == before:
        return None
    written.string_val[0] = merged.SerializeToString()
    return summary


def _last_layout(directory: str) -> bytes | None:
    """The layout that TensorBoard would show of this run."""
    files, root = fsspec.core.url_to_fs(directory)
    names = (
        [name for name in files.ls(root, detail=False) if "tfevents" in name.rsplit("/", 1)[-1]]
        if files.exists(root)
        else []
    )
    for name in sorted(names, reverse=True):
        # Reading a file as TensorBoard does takes a second for 7 MB, nearly all of it pictures. A layout is written
        # before them: so it is known from a plain search how many there are, and read no further than the last.
        found = _last_in_file(name if "://" not in directory else files.unstrip_protocol(name), _times(files, name))
        if found is not None:
            return found
    return None


def _times(files: Any, name: str) -> int:
    """How often the tag of a layout stands in a file."""
    tag, found, rest = _LAYOUT_TAG.encode(), 0, b""
    with files.open(name, "rb") as stream:
        while part := stream.read(_AT_ONCE):
            searched = rest + part
            found += searched.count(tag)
            rest = searched[1 - len(tag) :]  # one byte short of a tag: none is counted twice
    return found


def _last_in_file(address: str, times: int) -> bytes | None:
    """The last layout of an event file in which the tag stands so often."""
    from tensorboard.backend.event_processing.event_file_loader import (  # type: ignore[import-untyped]  # noqa: PLC0415
        RawEventFileLoader,
    )
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]  # noqa: PLC0415

    found = None
    records = iter(RawEventFileLoader(address).Load()) if times else iter(())
    while times > 0 and (record := next(records, None)) is not None:  # the last record may be unfinished
        if (here := record.count(_LAYOUT_TAG.encode())) == 0:
            continue
        times -= here
        for value in Event.FromString(record).summary.value:
            if value.tag == _LAYOUT_TAG and value.tensor.string_val:
                found = bytes(value.tensor.string_val[0])
    return found
