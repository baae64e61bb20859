"""Films are read back frame by frame."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lightning_attngrad.reporting import film
from lightning_attngrad.reporting.colour_scale import palette
from lightning_attngrad.reporting.figures import Caption, map_grid
from lightning_attngrad.reporting.film import save_film
from lightning_attngrad.reporting.style import FigureStyle
from tests.reporting.test_figures import random_inputs

CAPTIONS = [Caption("cat", 0.5, "dog", 0.3), Caption("dog", 0.8, "dog", 0.8), Caption("dog", 0.9, "dog", 0.9)]
LABELS = ["start", "epoch 1", "epoch 2"]


def write(path: Path, maps: Any = None, **options: Any) -> Path:
    pixels, _ = random_inputs(1)
    maps = np.full((3, 4, 4), 1.0) if maps is None else maps
    return save_film(path, pixels[0], maps, LABELS, CAPTIONS, **options)


def frames(path: Path) -> list[np.ndarray]:
    read = []
    with Image.open(path) as whole:
        for number in range(whole.n_frames):
            whole.seek(number)
            read.append(np.asarray(whole.convert("RGB")).astype(int))
    return read


def test_a_gif_has_a_frame_an_evaluation_and_holds_the_last(tmp_path: Path) -> None:
    path = write(tmp_path / "film.gif", seconds=0.5)
    with Image.open(path) as whole:
        assert (whole.n_frames, whole.info["loop"], whole.info["duration"]) == (3, 0, 500)
        whole.seek(2)
        assert whole.info["duration"] == 1500


def test_a_gif_shows_the_colours_of_its_maps_in_each_frame(tmp_path: Path) -> None:
    maps = np.stack([np.full((4, 4), value) for value in (0.2, 2.0, 3.8)])
    read = frames(write(tmp_path / "film.gif", maps, style=FigureStyle(alpha=1.0)))
    pixels, _ = random_inputs(1)
    tile = map_grid(pixels, maps[:1], CAPTIONS[:1], title="start").tiles[1]
    for frame, value in zip(read, (0.2, 2.0, 3.8), strict=True):
        inside = frame[tile.top + 4 : tile.bottom - 4, tile.left + 4 : tile.right - 4]
        np.testing.assert_allclose(inside.mean(axis=(0, 1)), palette("inferno")[int(value / 4 * 256)], atol=8)


def test_with_a_scale_of_its_own_a_film_has_one_for_all_frames(tmp_path: Path) -> None:
    maps = np.stack([np.full((4, 4), value) for value in (0.01, 0.02, 0.04)])
    read = frames(write(tmp_path / "film.gif", maps, style=FigureStyle(alpha=1.0, limit="image")))
    light = [frame[200, 300].sum() for frame in read]
    assert light == sorted(light)
    assert light[2] > light[0] + 200


def test_what_an_mp4_needs_is_named_before_anything_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(film.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'imageio_ffmpeg is not installed: pip install "imageio\[ffmpeg\]"'):
        write(tmp_path / "film.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio[ffmpeg] is not installed")
def test_an_mp4_is_read_back(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    read = list(imageio.get_reader(write(tmp_path / "film.mp4")))
    assert len(read) == 5  # the last frame three times
    assert read[0].shape[0] % 2 == read[0].shape[1] % 2 == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("film.avi", {}, r"path: got .*; expected a name that ends with \.gif or \.mp4"),
        ("film.gif", {"seconds": 0.0}, r"seconds: got 0\.0; expected a positive number"),
        ("film.gif", {"maps": np.ones((2, 4, 4))}, "labels: got 3; expected 2"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / name, **options)
