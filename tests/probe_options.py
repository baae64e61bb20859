"""Options of a monitor with those of its images among them, as tests write them."""

from __future__ import annotations

import dataclasses
from typing import Any

from lightning_attngrad.probe import ProbeImages

_FIELDS = {field.name for field in dataclasses.fields(ProbeImages)}


def with_probe(options: dict[str, Any]) -> dict[str, Any]:
    """The same, with what ``ProbeImages`` takes handed over as ``probe=``."""
    images = {name: value for name, value in options.items() if name in _FIELDS}
    others = {name: value for name, value in options.items() if name not in _FIELDS}
    return {**others, "probe": ProbeImages(**images)} if images else others
