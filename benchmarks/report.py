"""What the report of a run costs: to keep, on the disk, as a page, and to open it.

``python -m benchmarks.report`` makes a page of 64 images of 224 × 224 pixels and 20 epochs, of noise, which no codec
makes small, and opens it in a headless Chromium where playwright and a Chromium are there; then it trains a small ViT
under three monitors, and prints what keeping took beside all else that they do.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from lightning_attngrad.reporting.report.page import report_html
from lightning_attngrad.reporting.report.reading import read_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="how often the page is opened")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "timm"))
    print(f"{date.today()}, {versions}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        of_the_page(Path(folder) / "large", rounds)
        cost_of_keeping(Path(folder) / "run")


def cost_of_keeping(folder: Path) -> None:
    """Seconds of keeping over the other seconds of the monitors, in one run: evaluating, drawing, writing figures."""
    from benchmarks.report_runs import seconds_of_monitors

    evaluations, keeping, others = seconds_of_monitors(folder)
    kept = [path for path in (folder / "attngrad" / "report").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in kept)
    print(f"keeping / all else that the monitors do: {keeping / others:.3f} (vit_tiny, 16 images of 224 x 224)")
    print(f"kept: {size / evaluations / 1e6:.2f} MB a moment of three monitors, images included")


def of_the_page(folder: Path, rounds: int) -> None:
    """Its size, how long it takes to make, and to open."""
    from tests.reporting.report.kept_runs import keep_run

    keep_run(folder, images=64, epochs=20, side=224, grid=14, layers=12, pairs=6)
    began = time.perf_counter()
    html = report_html([read_run(folder)])
    seconds = time.perf_counter() - began
    print(f"page of 64 images and 20 epochs: {len(html.encode()) / 1e6:.1f} MB, made in {seconds:.1f} s")
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    empty = folder / "empty.html"
    empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    if (nothing := opened(empty, rounds)) is None or (found := opened(path, rounds)) is None:
        return
    wall, least = statistics.median(found), statistics.median(nothing)
    print(f"opened in {wall:.0f} ms on the wall, {min(found):.0f} at best ({rounds} times; an empty page: {least:.0f})")


def opened(path: Path, rounds: int) -> list[float] | None:
    """Milliseconds until all is loaded, of each opening; None without a browser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        print("playwright is not installed: the page was not opened")
        return None
    found = []
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except Error as error:
            print(f"no Chromium: {str(error).splitlines()[0]}")
            return None
        for _ in range(rounds):
            page = browser.new_page()
            page.goto(path.as_uri())
            found.append(float(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")))
            page.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
