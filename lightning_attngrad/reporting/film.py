"""One image through training as a film: a GIF, or an MP4 where ffmpeg is there."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_attngrad.reporting.arrays import ArrayLike, as_array, check_count
from lightning_attngrad.reporting.canvas import figure_to_array
from lightning_attngrad.reporting.captions import Caption
from lightning_attngrad.reporting.colour_scale import ColourScale
from lightning_attngrad.reporting.files import write_atomically
from lightning_attngrad.reporting.grid import map_grid
from lightning_attngrad.reporting.style import PLAIN, WHITE, FigureStyle

Frames = list[npt.NDArray[np.uint8]]

_SHARE = ColourScale("share")
_LAST = 3  # the last frame stands so much longer


def save_film(
    path: str | Path,
    pixels: ArrayLike,
    heatmaps: ArrayLike,
    labels: Sequence[str],
    captions: Sequence[Caption],
    *,
    seconds: float = 0.6,
    scale: ColourScale = _SHARE,
    shown_as: str = "",
    style: FigureStyle = PLAIN,
) -> Path:
    """Write a film with a frame an evaluation: image, map and what was predicted; the last frame stands longer.

    Args:
        path: That ends with ``.gif``, whose 256 colours are those of the map and the image as nearly as can be, or with
            ``.mp4`` where imageio and its ffmpeg are installed.
        pixels: (3, H, W) or (1, H, W) image in [0, 1].
        heatmaps: (E, h, w) in times the uniform share.
        labels: E labels, such as "start", "epoch 1".
        captions: E captions.
        seconds: That a frame stands.
        scale: The colour scale, one for all frames.
        shown_as: What was done to the image so that it can be seen; empty where nothing was.
        style: How it looks. With ``limit="image"``, the largest value of all frames ends the scale.

    Returns:
        The path.

    Raises:
        ValueError: Where counts or shapes do not fit each other, ``seconds`` is not positive, or the name ends
            otherwise.
        ImportError: For an MP4, where what writes it is not installed; the message has the line that installs it.

    Example:
        >>> import tempfile
        >>> frames, captions = np.ones((2, 4, 4)), [Caption("cat", 0.9), Caption("dog", 0.5)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     film = save_film(f"{folder}/film.gif", np.zeros((3, 8, 8)), frames, ["start", "epoch 1"], captions)
        ...     Image.open(film).n_frames
        2
    """
    path, image, maps = Path(path), as_array(pixels), as_array(heatmaps)
    kind = path.suffix.lower()
    if kind not in (".gif", ".mp4"):
        raise ValueError(f"path: got {str(path)!r}; expected a name that ends with .gif or .mp4")
    if not seconds > 0:
        raise ValueError(f"seconds: got {seconds!r}; expected a positive number")
    write = _as_gif if kind == ".gif" else _as_mp4(_ffmpeg())
    check_count("labels", labels, len(maps))
    check_count("captions", captions, len(maps))
    if style.limit == "image" and len(maps):  # of all frames together, as they are of one image
        sizes = np.abs(maps[np.isfinite(maps)])
        style = replace(style, limit=float(sizes.max()) if sizes.any() else None)
    common: dict[str, Any] = {"scale": scale, "shown_as": shown_as, "style": style}
    frames = [
        figure_to_array(map_grid(image[None], heatmap[None], [caption], title=label, **common))
        for heatmap, label, caption in zip(maps, labels, captions, strict=True)
    ]
    write_atomically(path, write(_of_one_size(frames, style), seconds))
    return path


def _of_one_size(frames: Frames, style: FigureStyle) -> Frames:
    """Frames of different captions with paper below, in even numbers of pixels, which encoders of video want."""
    down, across = (-(-max(frame.shape[side] for frame in frames) // 2) * 2 for side in (0, 1))
    padded = []
    for frame in frames:
        whole = np.full((down, across, 3), style.fill(WHITE), dtype=np.uint8)
        whole[: frame.shape[0], : frame.shape[1]] = frame
        padded.append(whole)
    return padded


def _as_gif(frames: Frames, seconds: float) -> bytes:
    """A GIF has 256 colours: one palette for all frames, or a patch would change its colour without a cause."""
    sample = Image.fromarray(np.concatenate([frame[::2, ::2] for frame in frames]))
    colours = sample.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1)
    pictures = [
        Image.fromarray(frame).quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG) for frame in frames
    ]
    buffer = io.BytesIO()
    milliseconds = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * _LAST * seconds)]
    # Frames that are equal would be merged by an optimiser, and the film have fewer than evaluations.
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=False
    )
    return buffer.getvalue()


def _ffmpeg() -> Any:
    """imageio, where its ffmpeg is installed too."""
    try:
        importlib.import_module("imageio_ffmpeg")
        return importlib.import_module("imageio.v2")
    except ImportError as error:
        raise ImportError(
            f"path: an .mp4 is written by imageio with ffmpeg, and {error.name} is not installed: "
            'pip install "imageio[ffmpeg]". A .gif needs nothing more'
        ) from error


def _as_mp4(imageio: Any) -> Any:
    def write(frames: Frames, seconds: float) -> bytes:
        buffer = io.BytesIO()
        with imageio.get_writer(buffer, format="mp4", fps=1 / seconds, codec="libx264", macro_block_size=2) as film:
            for frame in [*frames, *[frames[-1]] * (_LAST - 1)]:
                film.append_data(frame)
        return buffer.getvalue()

    return write
