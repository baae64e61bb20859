"""Gradients whatever mode the caller stands in, and tensors that were made where no gradient can be taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Gradients can be taken inside, whatever ``no_grad`` or ``inference_mode`` the caller stands in."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def outside_inference(argument: T) -> T:
    """Tensors that a module cached under inference mode cannot enter a graph; a copy of them can."""
    if isinstance(argument, Tensor):
        return cast(T, argument.clone()) if argument.is_inference() else argument
    if isinstance(argument, list | tuple) and any(
        isinstance(item, Tensor) and item.is_inference() for item in argument
    ):
        return cast(T, type(argument)(outside_inference(item) for item in argument))
    return argument
