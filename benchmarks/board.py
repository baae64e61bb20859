"""A picture of the board that a run leaves: TensorBoard's page of images, in a real browser.

    make demo
    python -m benchmarks.board attngrad_demo --output docs/images/board.png

Needs playwright and a Chromium, as tests/reporting/report/test_in_browser.py does.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

#: Of the page, in pixels.
WIDTH, HEIGHT = 1480, 860
#: Seconds for TensorBoard to answer, and for its images to come.
PATIENCE = 60


@contextmanager
def board(folder: Path) -> Iterator[str]:
    """TensorBoard of a folder, while it is open: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder.name, "--port", str(port)]
    # From beside the folder: the page shows the path that it was given.
    server = subprocess.Popen(
        command, cwd=folder.absolute().parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(PATIENCE):
            try:
                with urllib.request.urlopen(address):
                    break
            except urllib.error.URLError:
                time.sleep(1)
        yield address
    finally:
        server.terminate()
        server.wait()


def photograph(address: str, tags: str, output: Path) -> None:
    """The page `Images` with some of the tags, once its cards have their pictures."""
    browser_path = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(f"{address}#images")
        page.locator("tf-tag-filterer input").fill(tags)
        page.wait_for_selector("tf-image-loader img", timeout=PATIENCE * 1000)
        page.wait_for_timeout(5000)  # the other images, and what fades in
        page.screenshot(path=output)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of runs, as for tensorboard --logdir")
    parser.add_argument(
        "--tags", default="attngrad_maps/(overlay|film|classes)", help="which figures, as in the page's filter"
    )
    parser.add_argument("--output", type=Path, default=Path("board.png"))
    options = parser.parse_args()
    with board(options.folder) as address:
        photograph(address, options.tags, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
