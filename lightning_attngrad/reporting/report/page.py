"""The report of a run, or of two side by side, as one HTML file that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.files import write_to
from lightning_attngrad.reporting.report import tables
from lightning_attngrad.reporting.report.charts import Chart, charts_of, charts_of_metrics
from lightning_attngrad.reporting.report.options import ReportError, ReportOptions
from lightning_attngrad.reporting.report.pictures import LIMIT, picture_addresses
from lightning_attngrad.reporting.report.reading import StoredRun, read_run
from lightning_attngrad.reporting.report.timeline import Timeline
from lightning_attngrad.reporting.report.views import captions_of, rewrites_of, views_of

_PACKAGE = "lightning_attngrad.reporting.report"
_HEADINGS = {
    "AttentionMapMonitor": "Where the model looks",
    "AttentionDriftMonitor": "How far the maps have moved",
    "RewriteRobustnessMonitor": "How little rewrites a class",
    "FaithfulnessMonitor": "Whether to believe the maps",
}
#: What to read off the charts of a section.
_WORDS = {
    "AttentionMapMonitor": "How the maps of the same images, for the same classes, are spread, and on what they lie. "
    "Maps that gather at the border or in the corners while accuracy is high may follow a shortcut.",
    "AttentionDriftMonitor": "Distance of each map to that of the same image at the reference, beside the noise floor: "
    "what a shift by a pixel and a little noise do to it. A distance near the floor says nothing.",
    "RewriteRobustnessMonitor": "The smallest change found that makes the model take an image for another class. An "
    "upper bound: a longer search may find less. Where the health of the search is bad, it is no measurement.",
    "FaithfulnessMonitor": "Whether the probability of the class falls when the patches that the map calls relevant "
    "are replaced first (deletion), and later than when the others are (insertion).",
}


def make_report(options: ReportOptions) -> None:
    """Read the runs and write the page.

    Raises:
        ReportError: where there is nothing to report of, or runs that do not compare.
    """
    html = report_html([read_run(path) for path in options.runs])
    try:
        write_to(str(options.file), html.encode())
    except OSError as error:
        raise ReportError(f"--output: {options.file} cannot be written: {error}") from error


def report_html(runs: Sequence[StoredRun]) -> str:
    """The page.

    Args:
        runs: one, or two on the same images.

    Raises:
        ReportError: where there is no evaluation, or two runs have no images in common.
    """
    evaluations = sum(len(monitor.evaluations) for run in runs for monitor in run.monitors)
    if not evaluations:
        raise ReportError("LOGDIR: the run ended before its first evaluation; there is nothing to show")
    key = _common_images(runs)
    timeline = Timeline.of(runs)
    names = [] if len(runs) == 1 else ["A", "B"]
    data, left_out = _data(runs, key, timeline)
    images = runs[0].images[key]
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "page_files"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html").render(
        title=" and ".join(run.name for run in runs),
        runs=runs,
        names=names,
        style=Markup(_file("report.css")),  # noqa: S704  (files of this package)
        script=Markup(_file("report.js")),  # noqa: S704
        data=Markup(_as_script(data)),  # noqa: S704  (every < is written as an escape)
        sections=_sections(runs, names, timeline),
        metrics=charts_of_metrics(runs, names, timeline),
        courses=tables.courses(runs, names),
        checkpoints=[tables.checkpoints(run) for run in runs],
        run_settings=tables.run_settings(runs, names),
        settings=[(one.name, tables.settings(one.name, runs, names)) for one in tables.monitors_of(runs)],
        pictures=picture_addresses(images.pixels),
        truths=images.true,
        shown_as=images.shown_as,
        images_hash=key,
        labels=timeline.labels,
        left_out=left_out,
        views=data["runs"][0]["views"],
        has_rewrites=any(run["rewrites"] for run in data["runs"]),
        limit=LIMIT,
        scales={kind: _gradient(kind) for kind in ("share", "signed")},
    )


def _sections(runs: Sequence[StoredRun], names: Sequence[str], timeline: Timeline) -> list[dict[str, Any]]:
    """A section of charts for each monitor; where settings differ, the curves of two runs do not share a chart."""
    found = []
    for monitor in tables.monitors_of(runs):
        differs = tables.what_differs(monitor.name, runs)
        groups: list[tuple[Sequence[StoredRun], Sequence[str]]] = [(runs, names)]
        if differs:
            groups = [([run], [name]) for run, name in zip(runs, names, strict=True)]
        main: list[Chart] = []
        others: list[Chart] = []
        for some, called in groups:
            of_main, of_others = charts_of(monitor.name, some, called, timeline)
            main, others = [*main, *of_main], [*others, *of_others]
        if main or others:
            found.append(
                {
                    "name": monitor.name,
                    "heading": _said(_HEADINGS, monitor.lineage) or monitor.kind,
                    "words": _said(_WORDS, monitor.lineage),
                    "main": main,
                    "others": others,
                    "differs": differs,
                    "remarks": list(
                        dict.fromkeys(
                            remark
                            for run in runs
                            for one in run.monitors
                            if one.name == monitor.name
                            for remark in one.remarks
                        )
                    ),
                }
            )
    return found


def _said(words: Mapping[str, str], lineage: Sequence[str]) -> str:
    """What is said of the first of these classes that is known; empty of none."""
    return next((words[kind] for kind in lineage if kind in words), "")


def _data(runs: Sequence[StoredRun], key: str, timeline: Timeline) -> tuple[dict[str, Any], list[str]]:
    """What the browser is given, and what was left out of it."""
    of_runs, left_out = [], []
    for run in runs:
        views, why = views_of(run, key, timeline, 1 / len(runs))
        rewrites, originals, why_rewrites = rewrites_of(run, timeline, 1 / len(runs))
        left_out += [one for one in (why, why_rewrites) if one]
        of_runs.append(
            {
                "views": views,
                "captions": captions_of(run, key, timeline),
                "rewrites": rewrites,
                "originals": originals,
            }
        )
    images = runs[0].images[key]
    return (
        {
            "labels": list(timeline.labels),
            "positions": list(timeline.positions),
            "limit": LIMIT,
            "palettes": {
                kind: base64.b64encode(ColourScale(kind).palette.tobytes()).decode() for kind in ("share", "signed")
            },
            "names": [] if len(runs) == 1 else ["A", "B"],
            "true": list(images.true),
            "size": list(images.pixels.shape[1:3]),
            "runs": of_runs,
        },
        list(dict.fromkeys(left_out)),
    )


def _common_images(runs: Sequence[StoredRun]) -> str:
    """Key of the images that the page shows: of those that all runs have, the ones with most maps."""
    count: dict[str, int] = {}
    for run in runs:
        for monitor in run.monitors:
            for one in monitor.evaluations:
                count[one.images] = count.get(one.images, 0) + 1 + 100 * ("heatmap" in one.arrays)
    common = [key for key in count if all(key in run.images for run in runs)]
    if not common:
        first, second = (", ".join(run.images) or "none" for run in runs)
        raise ReportError(
            f"LOGDIR: the runs were watched on different images (hashes {first} and {second}), which do not compare; "
            "expected runs on the same validation images, with the same ProbeImages(…)"
        )
    return max(common, key=lambda key: count[key])


def _gradient(kind: str) -> str:
    """The colours of a scale, for CSS."""
    colours = ColourScale(kind).palette[:: 255 // 12]  # type: ignore[arg-type]
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours.tolist())


def _as_script(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends that element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _file(name: str) -> str:
    return (files(_PACKAGE) / "page_files" / name).read_text(encoding="utf-8")
