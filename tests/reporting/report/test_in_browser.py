"""The page in a real browser: what moves when it is moved, by mouse and by keyboard, and what it says to all readers.

Needs playwright and axe-playwright-python (the `dev` extra has them) and a Chromium on the path, such as Debian's
``chromium``, or the one that ``playwright install chromium`` downloads.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_attngrad.reporting.report.page import report_html
from lightning_attngrad.reporting.report.reading import read_run
from tests.reporting.report.kept_runs import EVIL, keep_run

playwright_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see the dev extra")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

#: The tests read canvases, of which Chromium would warn; the page itself does not.
_READ_OFTEN = """
const context = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, options) {
    return context.call(this, kind, { ...options, willReadFrequently: true });
};
"""

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    system = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    with playwright_api.sync_playwright() as playwright:
        try:
            started = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        except playwright_api.Error as error:
            pytest.skip(f"no Chromium can be started: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, and that of two."""
    folder = tmp_path_factory.mktemp("reports")
    a, b = keep_run(folder / "a"), keep_run(folder / "b", seed=1)
    found = {"one": folder / "one.html", "two": folder / "two.html"}
    found["one"].write_text(report_html([read_run(a)]), encoding="utf-8")
    found["two"].write_text(report_html([read_run(a), read_run(b)]), encoding="utf-8")
    return found


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """Opens a page; whatever it complains of, or asks of a network, fails the test."""
    said: list[str] = []
    contexts = []

    def open_page(name: str = "one", *, width: int = 1400, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.add_init_script(_READ_OFTEN)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"a dialog: {dialog.message}"))
        page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
        page.goto(pages[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def pixels(page: Any, which: str, number: int = 0) -> np.ndarray:
    """(H, W, 4) of a canvas."""
    height, width, values = page.evaluate(
        """([which, number]) => {
            const canvas = document.querySelectorAll(which)[number];
            const found = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return [canvas.height, canvas.width, [...found]];
        }""",
        [which, number],
    )
    return np.array(values, dtype=np.uint8).reshape(height, width, 4)


MAP = "#cards canvas"
PAIR = ".pair > canvas"


def set_range(page: Any, which: str, value: int) -> None:
    page.locator(which).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); }",
        value,
    )


def test_the_slider_moves_maps_words_and_charts_by_keyboard(opened: Open) -> None:
    page = opened()
    assert page.locator("#moment-label").inner_text() == "epoch 3"
    last, mark = pixels(page, MAP), page.locator("line.now").first.get_attribute("x1")
    page.locator("#moment").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#moment-label").inner_text() == "epoch 2"
    assert page.locator("#moment").get_attribute("aria-valuetext") == "epoch 2"
    assert not np.array_equal(pixels(page, MAP), last)
    assert float(page.locator("line.now").first.get_attribute("x1")) < float(mark)
    page.keyboard.press("Home")
    assert page.locator("#moment-label").inner_text() == "start"
    assert "start" in page.locator(MAP).first.get_attribute("aria-label")
    page.keyboard.press("End")
    assert np.array_equal(pixels(page, MAP), last)


def test_layers_and_classes_are_switched(opened: Open) -> None:
    page = opened()
    of_class = pixels(page, MAP)
    page.locator("#view").select_option(label="layer block 1")
    assert not np.array_equal(pixels(page, MAP), of_class)
    page.locator("#view").select_option(label="second class")
    assert "the first 2 images" in page.locator("#view-note").inner_text()
    assert page.locator("#cards > li:visible").count() == 2
    assert "map of: cat" in page.locator(".said").first.inner_text()


def test_opacity_and_size_change_what_is_seen(opened: Open) -> None:
    page = opened()
    before = page.locator(MAP).first.bounding_box()["width"]
    set_range(page, "#size", 300)
    assert page.locator(MAP).first.bounding_box()["width"] > before
    set_range(page, "#opacity", 0)
    assert page.locator(MAP).first.evaluate("(canvas) => getComputedStyle(canvas).opacity") == "0"


def test_the_change_is_laid_over_the_image(opened: Open, pages: dict[str, Path]) -> None:
    page = opened()
    page.wait_for_function("document.querySelector('.pair > canvas').getAttribute('aria-label').includes('change')")
    kept = np.load(pages["one"].parent / "a/attngrad/report/rewrite/evaluation-0003.npz")
    original, change = kept["original"][0].astype(float), kept["difference"][0].astype(float) * 255
    for times in (0, 1, 5):
        set_range(page, "#change", 4 * times)
        expected = np.clip(original + times * change, 0, 255)
        assert np.abs(pixels(page, PAIR)[..., :3] - expected).max() <= 0.51 + 0.13 * times
    page.locator("#alone").check()
    set_range(page, "#change", 0)
    assert (pixels(page, PAIR)[..., :3] == 128).all()


def test_it_flickers_when_asked(opened: Open) -> None:
    page = opened()
    page.wait_for_function("document.querySelector('.pair > canvas').getAttribute('aria-label').includes('change')")
    rewritten = pixels(page, PAIR)
    page.wait_for_timeout(1200)
    assert np.array_equal(pixels(page, PAIR), rewritten)  # not of itself
    page.locator("#flicker").focus()
    page.keyboard.press("Enter")
    assert page.locator("#flicker").get_attribute("aria-pressed") == "true"
    seen = {pixels(page, PAIR).tobytes() for _ in range(12) if page.wait_for_timeout(150) is None}
    assert len(seen) == 2
    page.keyboard.press("Enter")
    assert np.array_equal(pixels(page, PAIR), rewritten)


def test_a_class_named_like_a_script_is_read_as_text(opened: Open) -> None:
    page = opened()
    page.wait_for_function("document.querySelectorAll('.says').length > 0")
    assert f"predicted {EVIL}, p = 0.90" in page.locator(".said").nth(1).inner_text()
    assert EVIL in page.locator(".says").first.inner_text()
    assert page.locator("script").count() == 2


def test_two_runs_move_together(opened: Open) -> None:
    page = opened("two")
    before = [pixels(page, MAP, number) for number in (0, 1)]
    assert not np.array_equal(*before)  # of the same image, one run each
    page.locator("#moment").focus()
    page.keyboard.press("Home")
    assert not any(np.array_equal(pixels(page, MAP, number), before[number]) for number in (0, 1))
    assert page.locator("#rewrite-runs h3").all_inner_texts() == ["A", "B"]


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("width", [320, 400, 1400])
def test_nothing_is_wider_than_the_screen(opened: Open, name: str, width: int) -> None:
    page = opened(name, width=width)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", ["one", "two"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_axe_finds_nothing(opened: Open, name: str, scheme: str, width: int) -> None:
    """Contrast, names, roles, what a keyboard reaches: by axe-core."""
    page = opened(name, width=width, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    found = axe_api.Axe().run(page)
    assert len(found.response["passes"]) > 20
    assert not found.response["violations"], found.generate_report()


def test_every_control_is_reached_with_the_tab_key(opened: Open) -> None:
    page = opened()
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"moment", "view", "opacity", "size", "change", "alone", "flicker"} <= reached
