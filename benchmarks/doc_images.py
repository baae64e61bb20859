"""The pictures of README and docs, made anew: ``python -m benchmarks.doc_images``, or some of it by name.

Each is a figure that an example writes, as it writes it; one that would be a large file gets a palette. Photographs on
them are those of scikit-image that may be printed (``examples/photographs.py --free``). Where an example needs what is
not installed, it says what.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
#: Bytes; what is larger gets a palette of 256 colours.
LARGEST = 300_000
#: Example and arguments, and by file in docs/images the figure that it is; of several evaluations the last.
SOURCES: dict[str, tuple[list[str], dict[str, str]]] = {
    "photographs": (
        ["photographs.py", "--free", "--output", "photographs"],
        {
            "film.png": "photographs/version_0/attngrad/maps/film/*.png",
            "overlay.png": "photographs/version_0/attngrad/maps/overlay/*.png",
            "classes.png": "photographs/version_0/attngrad/maps/classes/*.png",
            "drift.png": "photographs/version_0/attngrad/drift/curves/*.png",
            "moved.png": "photographs/version_0/attngrad/drift/moved/*.png",
            "cat_to_dog.png": "photographs/cat_to_dog.png",
            "watermark.png": "photographs/watermark.png",
        },
    ),
    "planted": (["planted_shortcut.py", "--output", "planted.png"], {"planted.png": "planted.png"}),
    "robustness": (
        ["robustness_lost.py", "--output", "lost"],
        {"success.png": "lost/attngrad/rewrite/success/*.png"},
    ),
    "two_views": (["two_views.py", "--output", "two_views.png"], {"two_views.png": "two_views.png"}),
}


def keep(folder: Path, wanted: dict[str, str]) -> None:
    """Copy the figures below a folder, named as in :data:`SOURCES`.

    Raises:
        FileNotFoundError: where there is no such figure.
    """
    for name, pattern in wanted.items():
        found = sorted(folder.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{name}: there is no {pattern} below {folder}")
        with Image.open(found[-1]) as picture:
            opaque = picture.convert("RGB")
        file = IMAGES / name
        opaque.save(file, optimize=True)
        if file.stat().st_size > LARGEST:
            # The plain median cut turns green eyes brown; refined, surfaces are off by at most 20 of 255.
            opaque.quantize(256, kmeans=3).save(file, optimize=True)
        print(f"{name}: {opaque.width} × {opaque.height}, {file.stat().st_size / 1000:.0f} kB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SOURCES)} (default: all)")
    parser.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="where one name has been run already")
    options = parser.parse_args()
    names = options.names or list(SOURCES)
    if unknown := set(names) - set(SOURCES):
        parser.error(f"got {', '.join(sorted(unknown))}; expected some of {', '.join(SOURCES)}")
    for name in names:
        arguments, wanted = SOURCES[name]
        if options.folder is not None:
            keep(options.folder, wanted)
            continue
        with tempfile.TemporaryDirectory() as folder:
            example = str(ROOT / "examples" / arguments[0])
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            subprocess.run([sys.executable, example, *arguments[1:]], cwd=folder, env=environment, check=True)
            keep(Path(folder), wanted)


if __name__ == "__main__":
    main()
