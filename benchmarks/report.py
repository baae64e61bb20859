"""What the report of a run costs: to keep, on the disk, as a page, and to open it.

``python -m benchmarks.report`` trains a small ViT twice side by side, with ``report=True`` and without, and prints what
the monitors took; then it makes a page of 64 images of 224 × 224 pixels and 20 epochs, of noise, which no codec makes
small, and opens it in a headless Chromium where playwright and a Chromium are there.
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
    parser.add_argument("--rounds", type=int, default=3, help="of training, and five times as many of opening")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "timm"))
    print(f"{date.today()}, {versions}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        cost_of_keeping(Path(folder) / "runs", rounds)
        of_the_page(Path(folder) / "large", 5 * rounds)


def cost_of_keeping(folder: Path, rounds: int) -> None:
    """Seconds of the monitors with a report, over those without; the figures that both draw are part of them."""
    from benchmarks.report_runs import seconds_of_monitors

    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for report in (True, False):
            taken[report].append(seconds_of_monitors(folder / f"{number}-{report}", report=report))
    ratio = statistics.median(a / b for a, b in zip(taken[True], taken[False], strict=True))
    kept = [path for path in (folder / "0-True" / "attngrad" / "report").rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in kept)
    print(f"monitors with a report / without: {ratio:.2f} (16 images, 224 px, 4 evaluations, medians of {rounds})")
    print(f"kept: {size / 4 / 1e6:.1f} MB an evaluation, images included")


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
    found = opened(path, rounds)
    if found:
        print(f"opened in {statistics.median(found):.0f} ms, {min(found):.0f} to {max(found):.0f} ({rounds} times)")


def opened(path: Path, rounds: int) -> list[float]:
    """Milliseconds until all is loaded and the first maps are drawn; none without a browser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        print("playwright is not installed: the page was not opened")
        return []
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except Error as error:
            print(f"no Chromium: {str(error).splitlines()[0]}")
            return []
        found = []
        for _ in range(rounds):
            page = browser.new_page()
            page.goto(path.as_uri())
            found.append(float(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")))
            page.close()
        browser.close()
    return found


if __name__ == "__main__":
    main()
