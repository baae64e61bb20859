"""Figures as files, and in notebooks."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from matplotlib.figure import Figure

from lightning_attngrad.reporting.files import write_atomically
from lightning_attngrad.reporting.page import house_style
from lightning_attngrad.reporting.pictures import Picture

_VECTORS = ("pdf", "svg")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file, of the kind that its name ends with.

    In a PDF or SVG, letters and curves are shapes, and images and maps are pixels of the style's ``dpi``.

    Args:
        figure: Any figure of this package.
        path: Such as ``maps.png``, ``maps.pdf`` or ``maps.svg``; its folder is made where it is missing.

    Returns:
        The path.

    Raises:
        ValueError: For a name that ends otherwise.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(Figure(figsize=(1, 1)), f"{folder}/empty.svg").name
        'empty.svg'
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind == "png":
        write_atomically(path, Picture.of(figure).png)
    elif kind in _VECTORS:
        buffer = io.BytesIO()
        with house_style():
            figure.savefig(buffer, format=kind, metadata={"Date" if kind == "svg" else "CreationDate": None})
        write_atomically(path, buffer.getvalue())
    else:
        raise ValueError(f"path: got {str(path)!r}; expected a name that ends with .png, .pdf or .svg")
    return path


def as_html(figure: Figure, said: str) -> str:
    """A figure with words below it, for a notebook; nothing is loaded from elsewhere.

    Args:
        figure: Any figure.
        said: The words, which are also what a screen reader reads.
    """
    encoded = base64.b64encode(Picture.of(figure).png).decode("ascii")
    words = html.escape(said)
    return (
        f'<figure style="margin:0"><img style="max-width:100%" alt="{words}" src="data:image/png;base64,{encoded}">'
        f"<figcaption>{words}</figcaption></figure>"
    )
