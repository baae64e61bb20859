"""Words in figures: measured, cut to their room, and drawn at a tenth of what matplotlib takes for them.

Most of what matplotlib spends on a figure of few images goes into its words. Where the drawing goes to pixels and a
line consists of letters that stand one beside the other, Pillow draws it instead, with the same font and the same
FreeType; every other line (a script that has to be shaped, a letter that the font lacks, a PDF) is matplotlib's.
"""

from __future__ import annotations

import functools
import math
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import get_cachedir
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.colors import to_rgba
from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.textpath import TextToPath
from PIL import Image, ImageDraw, ImageFont

from lightning_attngrad.reporting.style import DOTS_PER_INCH

_FACE = "DejaVu Sans"  # comes with matplotlib
# Faces that hold scripts which matplotlib's own face lacks; only those present on the machine are asked for.
_FURTHER_FACES = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Arial Unicode MS",
    "Noto Sans Devanagari",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Thai",
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
_FIRST_PART = 0.6  # of the letters that are left of a name which is cut: beginnings tell more than ends


@functools.cache
def faces() -> tuple[str, ...]:
    """Fonts that are tried for a letter, one after the other."""
    present = set(fontManager.get_font_names())
    return (_FACE, *(face for face in _FURTHER_FACES if face in present))


@contextmanager
def missing_glyphs_unmentioned() -> Iterator[None]:
    """Letters that no installed face holds are drawn as boxes; matplotlib's warning for each helps nobody.

    `_say_script_is_missing` says it instead, once.
    """
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
    """One line of text, an ellipsis in its middle where it would be wider than asked.

    Names that are long differ at their ends as often as at their beginnings, so some of both is left.

    Args:
        text: Any text; line breaks and repeated blanks become one blank.
        width: In inches.
        size: In points.
        bold: Whether it is set in bold.

    Returns:
        The text itself where it fits, else as much of its beginning and its end as does, around an ellipsis.

    Example:
        >>> fit_text("tench", 2.0, 8.0)
        'tench'
        >>> fit_text("great white shark, man-eater, Carcharodon carcharias", 1.0, 8.0)
        'great whit…harias'
    """
    text = " ".join(text.split())
    if text_width(text, size, bold=bold) <= width:
        return text
    shortest, longest = 0, len(text) - 1
    while shortest < longest:  # by halves: width grows with every letter
        middle = (shortest + longest + 1) // 2
        if text_width(_around_ellipsis(text, middle), size, bold=bold) <= width:
            shortest = middle
        else:
            longest = middle - 1
    return _around_ellipsis(text, shortest)


def _around_ellipsis(text: str, letters: int) -> str:
    """So many letters of a text, from its beginning and its end."""
    first = math.ceil(_FIRST_PART * letters)
    last = letters - first
    return text[:first].rstrip(" ,;") + "…" + (text[-last:].lstrip(" ,;") if last else "")


def wrapped(text: str, width: float, size: float, *, bold: bool = False, most: int = 3, at: str = " · ") -> list[str]:
    """Text in lines no wider than asked, broken between its parts where that does, else at blanks.

    Args:
        text: Any text.
        width: In inches.
        size: In points.
        bold: Whether it is set in bold.
        most: Lines; what is left of a longer text is cut by `fit_text`.
        at: What stands between parts, and not at the end of a line.

    Returns:
        The lines; one that is empty for an empty text.

    Example:
        >>> wrapped("Where the model looks · epoch 4", 2.0, 11.5)
        ['Where the model looks', 'epoch 4']
    """
    text = " ".join(text.split())
    lines: list[str] = []
    while text_width(text, size, bold=bold) > width and len(lines) < most - 1:
        breaks = [(found.start(), found.end()) for found in re.finditer(re.escape(at), text)]
        blanks = [(place, place + 1) for place, letter in enumerate(text) if letter == " "]
        for places in (breaks, blanks):
            fitting = [place for place in places if text_width(text[: place[0]], size, bold=bold) <= width]
            if fitting:
                break
        else:
            break  # one word that is too long
        end, start = fitting[-1]
        lines.append(text[:end])
        text = text[start:]
    return [*lines, fit_text(text, width, size, bold=bold)]


def with_minus(number: str) -> str:
    """A number that is written, with a minus sign where Python puts a hyphen.

    Example:
        >>> with_minus(f"{-0.25:g}"), with_minus("1e-05"), with_minus("0.3")
        ('−0.25', '1e−05', '0.3')
    """
    return number.replace("-", "−")


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
def _letters_of_any_face() -> frozenset[int]:
    files = (findfont(FontProperties(family=face)) for face in faces())
    return frozenset().union(*(FT2Font(file).get_charmap() for file in files))


def _say_what_is_missing(letter: str) -> None:
    _say_script_is_missing(unicodedata.name(letter, "other").split()[0].title().replace("Cjk", "Chinese or Japanese"))


@functools.cache  # said once for a script
def _say_script_is_missing(script: str) -> None:
    warnings.warn(
        f"figures: no font that they use has {script} letters, which are drawn as boxes. A Noto font that has them "
        f"(Debian: fonts-noto-cjk, fonts-noto-core) is found once matplotlib's list of fonts in {get_cachedir()} is "
        "removed",
        stacklevel=2,
    )


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
    for letter in text:
        if letter.isalpha() and ord(letter) not in _letters_of_any_face():
            _say_what_is_missing(letter)
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
