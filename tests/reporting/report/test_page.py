"""The page: what it holds, that names stay text, that it is small, and when two runs are refused."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from lightning_attngrad.cli import main
from lightning_attngrad.reporting.report.options import ReportError, ReportOptions
from lightning_attngrad.reporting.report.page import report_html
from lightning_attngrad.reporting.report.reading import read_run
from tests.reporting.report.kept_runs import EVIL, described, keep_run


class Elements(HTMLParser):
    """Every element with its attributes, and the text that is to be read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._in: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._in and self._in.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        (self.scripts if self._in and self._in[-1] == "script" else self.text).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def page(*directories: Path) -> Elements:
    return Elements(report_html([read_run(directory) for directory in directories]))


def data_of(elements: Elements) -> dict:
    return json.loads(elements.scripts[0])


def test_a_class_named_like_a_script_stays_text(tmp_path: Path) -> None:
    html = report_html([read_run(keep_run(tmp_path / EVIL.replace("/", "_"), module=EVIL))])
    assert EVIL not in html
    elements = Elements(html)
    assert len(elements.all("script")) == 2  # the data and the program of the page
    assert EVIL in "".join(elements.text)
    assert any(EVIL in (image["alt"] or "") for image in elements.all("img"))
    assert EVIL in json.dumps(data_of(elements))  # in the browser it is put in as text


def test_everything_is_in_the_page(tmp_path: Path) -> None:
    elements = page(keep_run(tmp_path))
    text = " ".join(elements.text)
    for words in ("entropy", "epoch 3", "best.ckpt", "01234567", "abc123", "2/255", "val_accuracy", "hash of all that"):
        assert words in text, words
    charts = [one for one in elements.all("svg") if one.get("role") == "img"]
    assert any("entropy: 0.9 at start, 0.6 at epoch 3" in (chart["aria-label"] or "") for chart in charts)
    assert len(charts) == 3 + 1 + 2 + 1  # accuracy, loss and time; maps; drift; rewriting
    assert all(image["alt"] for image in elements.all("img"))


def test_nothing_is_asked_of_a_network(tmp_path: Path) -> None:
    elements = page(keep_run(tmp_path))
    addresses = [
        value for _, attributes in elements.found for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses
    assert all(one and one.startswith(("data:", "#")) for one in addresses)
    assert "default-src 'none'" in str(elements.all("meta"))


def test_maps_of_the_page_are_those_that_were_kept(tmp_path: Path) -> None:
    data = data_of(page(keep_run(tmp_path, images=2)))
    kept = np.load(tmp_path / "attngrad/report/maps/evaluation-0002.npz")
    views = {view["title"]: view for view in data["runs"][0]["views"]}
    assert list(views) == [
        "the class of each image",
        "layer block 0",
        "layer block 1",
        "likeliest class",
        "second class",
    ]
    for title, maps in (("the class of each image", kept["heatmap"]), ("layer block 1", kept["layers"][:, 1])):
        frame = next(frame for frame in views[title]["frames"] if data["labels"][frame["moment"]] == "epoch 2")
        shown = np.frombuffer(base64.b64decode(frame["maps"]), np.uint8).reshape(maps.shape)
        assert np.abs(shown / 254 * 4 - maps).max() < 0.01


def test_infinite_numbers_are_said_and_not_drawn(tmp_path: Path) -> None:
    text = " ".join(page(keep_run(tmp_path)).text)
    assert "∞, not drawn: start" in text
    assert "∞ → 3.7/255" in text


def test_64_images_and_20_epochs_stay_small(tmp_path: Path) -> None:
    keep_run(tmp_path, images=64, epochs=20, side=224, grid=14, layers=12, pairs=6)
    html = report_html([read_run(tmp_path)])
    assert len(html.encode()) < 15_000_000
    elements = Elements(html)
    assert len(elements.all("img")) == 64
    views = data_of(elements)["runs"][0]["views"]
    assert len(views[0]["frames"]) == 21
    assert views[0]["count"] == 64
    assert "To stay small, this page holds" in " ".join(elements.text)


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    a, b = keep_run(tmp_path / "a"), keep_run(tmp_path / "b", seed=1, epochs=4)
    elements = page(a, b)
    assert data_of(elements)["labels"] == ["start", "epoch 1", "epoch 2", "epoch 3", "epoch 4"]
    assert "entropy, A" in " ".join(elements.text)
    assert "entropy, B" in " ".join(elements.text)
    assert len(elements.all("img")) == 2 * 3


def test_runs_with_other_batches_are_put_together_by_epoch(tmp_path: Path) -> None:
    a, b = keep_run(tmp_path / "a"), keep_run(tmp_path / "b", steps_an_epoch=7)
    assert data_of(page(a, b))["labels"] == ["start", "epoch 1", "epoch 2", "epoch 3"]


def test_numbers_of_other_settings_do_not_share_a_chart(tmp_path: Path) -> None:
    other = described()
    other["monitors"][2]["settings"] = {"steps": 64}
    a, b = keep_run(tmp_path / "a"), keep_run(tmp_path / "b", monitors=other["monitors"])
    elements = page(a, b)
    text = " ".join(elements.text)
    assert re.search(r"do not compare.*steps \(16 / 64\)", text)
    bands = [
        chart["aria-label"] or ""
        for chart in elements.all("svg")
        if "smallest change" in (chart.get("aria-label") or "")
    ]
    assert len(bands) == 2
    assert not any("linf, A" in band and "linf, B" in band for band in bands)


def test_runs_on_other_images_are_refused(tmp_path: Path) -> None:
    a, b = keep_run(tmp_path / "a"), keep_run(tmp_path / "b", key="fff999")
    with pytest.raises(ReportError, match="different images"):
        page(a, b)


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_run(tmp_path / "a")
    assert main(["report", str(tmp_path / "a")]) == 0
    path = tmp_path / "a" / "attngrad" / "report.html"
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "a")]) == 2
    assert "given twice" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "expected one of" in capsys.readouterr().err


def test_three_runs_are_too_many() -> None:
    with pytest.raises(ReportError, match="one, or two"):
        ReportOptions([Path("a"), Path("b"), Path("c")])
