"""A stand-in for tabulate, which an image of PyTorch does not have: importing this file puts it where it is missing.

Our package needs tabulate and says so when it is installed; on a rented GPU the checkout runs without being installed.
There it only sets columns of the summary at the end of a fit, which may as well stand unaligned.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def unaligned(rows: Iterable[Iterable[object]], **_: Any) -> str:
    """A line a row, its cells two spaces apart.

    Example:
        >>> print(unaligned([["entropy", 0.5], ["seconds", 1]], tablefmt="plain"))
        entropy  0.5
        seconds  1
    """
    return "\n".join("  ".join(map(str, row)) for row in rows)


def _is_missing(name: str) -> bool:
    try:
        return name not in sys.modules and importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True


if _is_missing("tabulate"):
    module: Any = ModuleType("tabulate")
    module.tabulate = unaligned
    sys.modules["tabulate"] = module
