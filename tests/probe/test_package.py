"""Which Lightning a module is of."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
from torch import nn

from lightning_attngrad.probe.package import lightning_package


def packages() -> list[Any]:
    return [pl, pytest.importorskip("pytorch_lightning")]


def test_each_class_has_its_own() -> None:
    for package in packages():

        class Base(package.LightningModule):  # type: ignore[name-defined, misc]
            pass

        class LightningModule(Base):  # a user's own of that name, somewhere in between
            pass

        class Data(package.LightningDataModule):  # type: ignore[name-defined, misc]
            pass

        assert lightning_package(LightningModule()) is package
        assert lightning_package(Data()) is package


def test_what_is_of_neither() -> None:
    class LightningModule(nn.Module):
        pass

    assert lightning_package(LightningModule()) is None
    assert lightning_package({}) is None
