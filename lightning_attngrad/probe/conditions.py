"""Conditions under which numbers were measured, in plain values, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LONGEST = 60  # characters of a value in a message


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, a phrase each; conditions inside conditions are named one by one.

    Example:
        >>> differences({"method": "rollout", "options": {"a": 1}}, {"method": "rollout", "options": {"a": 2}})
        ['options a: 1 then, 2 now']
    """
    found: list[str] = []
    for name in dict.fromkeys([*then, *now]):
        before, after = _plain(then.get(name)), _plain(now.get(name))
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{name} {inner}" for inner in differences(before, after)]
        else:
            found.append(f"{name}: {_short(before)} then, {_short(after)} now")
    return found


def _plain(value: Any) -> Any:
    """A checkpoint may give a list back where a tuple was."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
