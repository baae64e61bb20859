"""Words in figures: measured, cut to their room, and drawn at a tenth of what matplotlib takes for them.

Most of what matplotlib spends on a figure of few images goes into its words. Where the drawing goes to pixels and a
line consists of letters that stand one beside the other, Pillow draws it instead, with the same font and the same
FreeType; every other line (a script that has to be shaped, a letter that the font lacks, a PDF) is matplotlib's.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from PIL import Image, ImageDraw, ImageFont

DOTS_PER_INCH = 120

_FACE = "DejaVu Sans"  # comes with matplotlib
# Faces that hold scripts which matplotlib's own face lacks; only those present on the machine are asked for.
_FURTHER_FACES = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
)
# Latin, Greek and Cyrillic without their combining marks, then punctuation, arrows, mathematics and dingbats.
_SET_SIDE_BY_SIDE = (
    (0x20, 0x300),
    (0x370, 0x483),
    (0x48A, 0x530),
    (0x2010, 0x2028),
    (0x2030, 0x2060),
    (0x2070, 0x2C00),
)
_OVERHANG = 2  # pixels that a letter may reach out of its own width


@functools.cache
def faces() -> tuple[str, ...]:
    """Fonts that are tried for a letter, one after the other."""
    present = set(fontManager.get_font_names())
    return (_FACE, *(face for face in _FURTHER_FACES if face in present))


@contextmanager
def missing_glyphs_unmentioned() -> Iterator[None]:
    """Letters that no installed face holds are drawn as boxes; a warning for each helps nobody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Width of a line of text in inches.

    Args:
        text: One line.
        size: In points.
        bold: Whether it is set in bold.

    Returns:
        Inches.
    """
    return _width(text, size, bold)


def fit_text(text: str, width: float, size: float, *, bold: bool = False) -> str:
    """One line of text cut with an ellipsis so that it is no wider than asked.

    Args:
        text: Any text; line breaks and repeated blanks become one blank.
        width: In inches.
        size: In points.
        bold: Whether it is set in bold.

    Returns:
        The text itself where it fits, else its longest beginning that does, with an ellipsis.

    Example:
        >>> fit_text("tench", 2.0, 8.0)
        'tench'
        >>> fit_text("great white shark, man-eater, Carcharodon carcharias", 1.0, 8.0)
        'great white shar…'
    """
    text = " ".join(text.split())
    if text_width(text, size, bold=bold) <= width:
        return text
    shortest, longest = 0, len(text)
    while shortest < longest:  # by halves: width grows with every letter
        middle = (shortest + longest + 1) // 2
        if text_width(text[:middle].rstrip(" ,;") + "…", size, bold=bold) <= width:
            shortest = middle
        else:
            longest = middle - 1
    return text[:shortest].rstrip(" ,;") + "…"


class Line(Text):
    """One line of text; on pixels it is drawn by Pillow where that gives what matplotlib would."""

    def draw(self, renderer: Any) -> None:
        """Draw the line, or hand it to matplotlib where it is no plain line on pixels."""
        text, rotation = self.get_text(), self.get_rotation()
        plain = (
            isinstance(renderer, RendererAgg)
            and rotation in (0, 90)
            and self.get_verticalalignment() == "center_baseline"
            and not (self.get_parse_math() or self.get_bbox_patch())
            and is_plain(text)
        )
        if not plain:
            super().draw(renderer)
            return
        if text and self.get_visible():
            size = renderer.points_to_pixels(self.get_fontsize())
            self._put(renderer, *_picture(text, size, self.get_fontweight() == "bold"), upwards=rotation == 90)

    def _put(self, renderer: RendererAgg, letters: Letters, middle: float, width: float, *, upwards: bool) -> None:
        """Put a picture of letters at the place of this line; ``middle`` is counted from the picture's top."""
        x, y = self.get_transform().transform(self.get_position())  # from the bottom left corner
        before = {"left": 0.0, "center": width / 2, "right": width}[self.get_horizontalalignment()]
        if upwards:
            letters = np.rot90(letters)
            left, bottom = x - middle, y - before - _OVERHANG
        else:
            left, bottom = x - before - _OVERHANG, y - (letters.shape[0] - middle)
        coloured = np.empty((*letters.shape, 4), dtype=np.uint8)
        red, green, blue, alpha = to_rgba(self.get_color(), self.get_alpha())
        coloured[..., :3] = [round(255 * part) for part in (red, green, blue)]
        coloured[..., 3] = letters if alpha == 1 else letters * alpha
        renderer.draw_image(renderer.new_gc(), round(left), round(bottom), coloured[::-1])  # from the lowest line up


Letters = npt.NDArray[np.uint8]


@functools.lru_cache(maxsize=4096)
def is_plain(text: str) -> bool:
    """Whether every letter is in matplotlib's own face, and stands beside the one before it."""
    return all(
        ord(letter) in _known() and any(first <= ord(letter) < end for first, end in _SET_SIDE_BY_SIDE)
        for letter in text
    )


@functools.cache
def _known() -> frozenset[int]:
    """Letters that both weights of the face hold."""
    light, bold = (frozenset(FT2Font(_file(bold)).get_charmap()) for bold in (False, True))
    return light & bold


@functools.cache
def _file(bold: bool) -> str:
    return str(findfont(FontProperties(family=_FACE, weight="bold" if bold else "normal")))


@functools.lru_cache(maxsize=64)
def _font(pixels: float, bold: bool) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_file(bold), pixels, layout_engine=ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=4096)
def _width(text: str, size: float, bold: bool) -> float:
    if is_plain(text):
        return _font(size * DOTS_PER_INCH / 72, bold).getlength(text) / DOTS_PER_INCH
    with missing_glyphs_unmentioned():
        face = FontProperties(family=list(faces()), size=size, weight="bold" if bold else "normal")
        width, _, _ = TextToPath().get_text_width_height_descent(text, face, ismath=False)
    return float(width) / 72


@functools.lru_cache(maxsize=1024)
def _picture(text: str, pixels: float, bold: bool) -> tuple[Letters, float, float]:
    """How much of each pixel the letters cover, half of their height from the top, and their width, in pixels."""
    font = _font(pixels, bold)
    ascent, descent = font.getmetrics()
    width = font.getlength(text)
    picture = Image.new("L", (math.ceil(width) + 2 * _OVERHANG, ascent + descent))
    ImageDraw.Draw(picture).text((_OVERHANG, ascent), text, font=font, fill=255, anchor="ls")
    letters = np.asarray(picture)
    letters.flags.writeable = False  # it is handed out again
    return letters, ascent - _half_height(pixels, bold), width


@functools.lru_cache(maxsize=64)
def _half_height(pixels: float, bold: bool) -> float:
    """Half of a tall letter above the line that it stands on: what matplotlib centres."""
    _, top, _, _ = _font(pixels, bold).getbbox("l", anchor="ls")
    return -top / 2
