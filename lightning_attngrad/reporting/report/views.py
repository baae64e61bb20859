"""What the browser is given of maps and rewritten images, within the room that a page has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lightning_attngrad.reporting.captions import Caption, probability_text, short_layer_name
from lightning_attngrad.reporting.report.pictures import (
    as_bytes,
    as_levels,
    exact_address,
    picture_address,
    thinned,
)
from lightning_attngrad.reporting.report.reading import StoredEvaluation, StoredMonitor, StoredRun
from lightning_attngrad.reporting.report.timeline import Timeline

#: Bytes of a page for maps of the images, for those of layers and classes, and for rewritten images, of all runs.
ROOM_FOR_MAPS, ROOM_FOR_PARTS, ROOM_FOR_REWRITES = 3_000_000, 3_500_000, 4_500_000
_LEAST_IMAGES = 4  # that have maps of layers, whatever they take


def views_of(run: StoredRun, key: str, timeline: Timeline, share: float = 1.0) -> tuple[list[dict[str, Any]], str]:
    """The maps of a run, each view with its frames, and what had to be left out.

    Args:
        run: whose.
        key: of the images.
        timeline: of the page.
        share: of the room that this run may take.
    """
    with_maps = [monitor for monitor in run.monitors if _of_images(monitor, key)]
    monitors: list[StoredMonitor] = []
    for monitor in with_maps:
        if not any(_same_maps(monitor, earlier, key) for earlier in monitors):
            monitors.append(monitor)
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    for monitor in monitors:
        evaluations = _of_images(monitor, key)
        of_monitor = f"{monitor.name}: " if len(monitors) > 1 else ""
        size = evaluations[-1].arrays["heatmap"].size
        shown = _spread(evaluations, int(ROOM_FOR_MAPS * share / len(monitors)) // max(size, 1))
        if len(shown) < len(evaluations):
            left_out.append(f"maps of {len(shown)} of {len(evaluations)} evaluations")
        found.append(_view(f"{of_monitor}the class of each image", shown, timeline, lambda one: one.arrays["heatmap"]))
        parts = _parts(shown)
        total = sum(part(shown[-1]).size for _, part, _ in parts)
        room = ROOM_FOR_PARTS * share / len(monitors)
        for title, part, named in parts:
            images = len(part(shown[-1]))
            most = max(_LEAST_IMAGES, int(images * room / max(total * len(shown), 1)))
            few = shown
            if most < images:
                taken = total * most / images
                few = _spread(shown, int(room / taken))
                of_when = "" if len(few) == len(shown) else f" at {len(few)} of {len(shown)} evaluations"
                left_out.append(f"layers of the first {most} images{of_when}")
            found.append(_view(f"{of_monitor}{title}", few, timeline, part, most=most, named=named))
    return found, "; ".join(dict.fromkeys(left_out))


def captions_of(run: StoredRun, key: str, timeline: Timeline) -> list[list[Any]]:
    """What was predicted of each image, by moment: lines, and whether it was right."""
    found = []
    for monitor in run.monitors:
        for evaluation in _of_images(monitor, key):
            captions = [Caption(**caption) for caption in evaluation.plain.get("captions", [])]
            said = [
                {"lines": [_in_a_line(what, names) for what, names in caption.lines], "right": caption.correct}
                for caption in captions
            ]
            found.append([timeline.place(evaluation.moment), said])
        if found:
            break
    return found


def _in_a_line(what: str, names: str) -> str:
    """``predicted cat, p = 0.98`` of what a caption has in two parts; its mark is a sign of the page's own."""
    names = names.removeprefix("✓ ").removeprefix("✗ ")
    said, comma, probability = what.partition(", p")
    return f"{said} {names}, p{probability}" if comma else f"{what}: {names}"


def rewrites_of(run: StoredRun, timeline: Timeline, share: float = 1.0) -> tuple[list[list[Any]], list[str], str]:
    """Rewritten images by moment, their originals, and what had to be left out."""
    evaluations = [one for monitor in run.monitors for one in monitor.evaluations if "difference" in one.arrays]
    originals: dict[bytes, str] = {}
    found: list[list[Any]] = []
    taken = 0
    for evaluation in _by_weight(evaluations):
        pairs = _pairs(evaluation, originals)
        size = sum(len(pair["difference"]) for pair in pairs)
        if found and taken + size > ROOM_FOR_REWRITES * share:
            continue
        taken += size
        found.append([timeline.place(evaluation.moment), pairs])
    left_out = f"rewritten images of {len(found)} of {len(evaluations)} evaluations"
    found.sort(key=lambda row: row[0])
    return found, list(originals.values()), left_out if len(found) < len(evaluations) else ""


def _of_images(monitor: StoredMonitor, key: str) -> list[StoredEvaluation]:
    return [one for one in monitor.evaluations if one.images == key and "heatmap" in one.arrays]


def _same_maps(monitor: StoredMonitor, other: StoredMonitor, key: str) -> bool:
    """Whether every map of a monitor has been found by another as well, at the same moment."""
    theirs = {one.moment: one.arrays["heatmap"] for one in _of_images(other, key)}
    return all(
        one.moment in theirs and np.array_equal(one.arrays["heatmap"], theirs[one.moment], equal_nan=True)
        for one in _of_images(monitor, key)
    )


def _parts(evaluations: Sequence[StoredEvaluation]) -> list[tuple[str, Any, Any]]:
    """Titles of layers, corrections and classes, how their maps are taken from an evaluation, and names of classes."""
    last = evaluations[-1]
    found: list[tuple[str, Any, Any]] = []
    for number, name in enumerate(last.plain.get("layer_names", []) if "layers" in last.arrays else []):
        found.append((f"layer {short_layer_name(name)}", _taking("layers", number), None))
    for number, name in enumerate(last.plain.get("panel_names", [])):
        if number:
            found.append((f"correction {name}", _taking("panels", number), None))
    if "class_maps" in last.arrays:
        order = ("likeliest class", "second class", "third class")
        for number in range(last.arrays["class_maps"].shape[1]):
            title = order[number] if number < len(order) else f"class {number + 1}"
            found.append((title, _taking("class_maps", number), _naming(number)))
    return [part for part in found if all(_is_there(part[1], one) for one in evaluations)]


def _taking(name: str, number: int) -> Any:
    return lambda evaluation: evaluation.arrays[name][:, number]


def _naming(number: int) -> Any:
    return lambda evaluation: [row[number] for row in evaluation.plain["class_map_names"]]


def _is_there(part: Any, evaluation: StoredEvaluation) -> bool:
    try:
        return bool(part(evaluation).size)
    except (KeyError, IndexError):
        return False


def _view(
    title: str,
    evaluations: Sequence[StoredEvaluation],
    timeline: Timeline,
    part: Any,
    *,
    most: int | None = None,
    named: Any = None,
) -> dict[str, Any]:
    last = evaluations[-1]
    signed = bool(last.plain.get("signed", False))
    maps = part(last)[:most]
    frames = []
    for one in evaluations:
        values = part(one)[:most]
        if values.shape != maps.shape:  # of another model's grid: it cannot be drawn in its place
            continue
        frame = {"moment": timeline.place(one.moment), "maps": as_bytes(values, signed=signed)}
        frames.append(frame if named is None else {**frame, "of": named(one)})
    return {
        "title": title,
        "count": len(maps),
        "height": maps.shape[1],
        "width": maps.shape[2],
        "signed": signed,
        "area": list(last.plain.get("area", [])),
        "method": str(last.plain.get("method", "")),
        "frames": frames,
    }


def _spread(evaluations: Sequence[StoredEvaluation], most: int) -> list[StoredEvaluation]:
    """At most so many of them, the first and the last among them, evenly between."""
    count = len(evaluations)
    if count <= most:
        return list(evaluations)
    if most < 2:
        return [evaluations[-1]]
    return [evaluations[n] for n in sorted({round(n * (count - 1) / (most - 1)) for n in range(most)})]


def _by_weight(evaluations: Sequence[StoredEvaluation]) -> list[StoredEvaluation]:
    """The last, the first, and then those that halve what lies between."""
    count = len(evaluations)
    order = [count - 1, 0] if count > 1 else list(range(count))
    while len(order) < count:
        known = sorted(order)
        low, high = max(pairwise(known), key=lambda pair: pair[1] - pair[0])
        order.append((low + high) // 2)
    return [evaluations[n] for n in order]


def _pairs(evaluation: StoredEvaluation, originals: dict[bytes, str]) -> list[dict[str, Any]]:
    arrays, plain = evaluation.arrays, evaluation.plain
    found = []
    for number, caption in enumerate(plain.get("captions", [])):
        original = thinned(arrays["original"][number])
        if (content := original.tobytes()) not in originals:
            originals[content] = exact_address(original) if original.shape[0] <= 96 else picture_of(original)
        shown = thinned(arrays["difference"][number].astype(np.float32) / float(arrays["stretch"][number]))
        levels, step = as_levels(shown)
        pair: dict[str, Any] = {
            "image": int(arrays["shown_image"][number]),
            "original": list(originals).index(content),
            "difference": exact_address(levels),
            "step": step,
            "height": original.shape[0],
            "width": original.shape[1],
            **_said(caption),
        }
        if "shown_maps" in arrays:
            maps = arrays["shown_maps"][number]
            pair["maps"] = {
                "height": maps.shape[1],
                "width": maps.shape[2],
                "signed": bool(plain.get("signed", False)),
                "bytes": as_bytes(maps, signed=bool(plain.get("signed", False))),
            }
        found.append(pair)
    return found


def picture_of(pixels: npt.NDArray[np.uint8]) -> str:
    """A picture in its own size: a difference is laid over it pixel by pixel."""
    return picture_address(pixels, largest=max(pixels.shape[:2]))


def _said(caption: Mapping[str, Any]) -> dict[str, Any]:
    """What a card of a rewritten image says."""
    before, after = (
        f"{caption[name]}"
        + ("" if (p := caption[f"{name}_probability"]) is None else f" ({probability_text(float(p))})")
        for name in ("before", "after")
    )
    psnr = float(caption["psnr"])
    lines = [f"{caption['distance']} changed" if caption["success"] else f"not rewritten to {caption['target']}"]
    lines += [f"PSNR {psnr:.1f} dB"] if np.isfinite(psnr) else []
    lines += [caption["note"]] if caption["note"] else []
    return {"before": before, "after": after, "lines": lines}
