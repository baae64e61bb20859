"""How `make docs` reads docstrings: griffe knows Google's section `Examples:`, and ours are headed `Example:`."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Makes each `Example:` a section of code: as an unknown section, its comments would become headings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section, when an object has been read."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
