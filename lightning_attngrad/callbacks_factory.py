"""What Lightning calls for each new Trainer, of any program: monitors where the environment asks, else nothing.

Registered in `pyproject.toml` in Lightning's own group of entry points, for both of its packages. It stands outside
`callbacks`, whose import takes a third of a second: a program that asks for nothing is not to pay for it.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import lightning.pytorch as pl

#: ``light``, ``full``, or the path of a YAML file that lists callbacks.
VARIABLE = "LIGHTNING_ATTNGRAD"


def callbacks_factory() -> list[pl.Callback]:
    """Callbacks for a Trainer that is being made.

    Returns:
        None unless the environment variable :data:`VARIABLE` says which; else one, which adds the monitors.

    Example:
        >>> callbacks_factory()  # nothing is asked for
        []
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if not asked:
        return []
    try:
        from lightning_attngrad.callbacks.environment import callbacks_asked_for  # noqa: PLC0415
    except Exception as error:  # of a package that this one needs: no reason to end another's program
        warnings.warn(
            f"attngrad: {VARIABLE}={asked}: nothing is watched, training goes on: it cannot be imported: "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return []
    return callbacks_asked_for(VARIABLE, asked)
