"""Which Lightning a module is of: the package has two names, whose classes do not mix."""

from __future__ import annotations

import importlib
from typing import Any

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def lightning_package(module: object) -> Any:
    """The package whose Trainer takes a module.

    Args:
        module: a LightningModule, or a LightningDataModule.

    Returns:
        `lightning.pytorch` or `pytorch_lightning`, imported; None where the module is of neither.

    Example:
        >>> import lightning.pytorch as pl
        >>> lightning_package(pl.LightningModule()).__name__
        'lightning.pytorch'
    """
    for base in type(module).__mro__:
        name = base.__module__.partition(".core.")[0]
        if base.__name__ in ("LightningModule", "LightningDataModule") and name in PACKAGES:
            return importlib.import_module(name)
    return None
