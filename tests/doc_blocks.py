"""What the documentation holds that can be run: blocks of code, and commands, each with the place it stands at."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
#: Beside the site: pages of the repository that hold commands too.
OTHER_PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples" / "README.md"]

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )?(?:make|python|lightning-attngrad|pip install) [^`\n…]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: that it stands on.
        line: of its first line, from 1.
        language: as its fence says; empty for what is shown, and not typed.
        text: without the fences.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, as editors open it."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command that a reader is told to type.

    Attributes:
        place: where.
        words: as a shell splits them.
    """

    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    return [Block(page, text.count("\n", 0, one.start()) + 2, one[1], one[2]) for one in _FENCE.finditer(text)]


def commands_of(page: Path) -> list[Command]:
    """Commands in the blocks of a page, and in its text."""
    found = [command for block in blocks_of(page) for command in _typed(block)]
    text = page.read_text(encoding="utf-8")
    outside = _FENCE.sub(lambda fence: "\n" * fence[0].count("\n"), text)
    for inline in _INLINE.finditer(outside):
        place = f"{page.relative_to(ROOT)}:{outside.count(chr(10), 0, inline.start()) + 1}"
        found.append(Command(place, tuple(shlex.split(inline[1]))))
    return found


def _typed(block: Block) -> list[Command]:
    text = block.text.replace("\\\n", " ")
    if block.language == "sh":
        lines = text.splitlines()
    elif block.language == "console":  # what is typed stands behind a dollar, and the answer below it
        lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    else:
        return []
    typed = [shlex.split(part, comments=True) for line in lines for part in _without_comment(line).split(" && ")]
    return [Command(block.place, tuple(words)) for words in typed if words]


def _without_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line)
