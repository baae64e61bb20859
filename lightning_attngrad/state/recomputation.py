"""Activation checkpointing without effect for a while, also where a forward calls it by hand.

A checkpointed part of a model stores nothing and is run again in the backward pass: its attention would be seen twice,
or, with ``use_reentrant=True``, could not be differentiated by ``torch.autograd.grad`` at all. The functions that users
call are bound in their own modules by name, so what these look up when they run is exchanged: for as long as a body
lasts, and with an effect on the thread of that body alone.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import nn

_straight_here: ContextVar[bool] = ContextVar("straight_here", default=False)
_MISSING = object()

#: Where torch looks up what stores nothing and recomputes, for ``use_reentrant=False`` (the names of several releases).
_PLACES = ("torch.utils.checkpoint", "torch.distributed._composable.checkpoint_activation")
_GENERATORS = ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")


class _Exchange:
    """The stand-ins are there while at least one body lasts, in whichever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bodies = 0
        self._before: list[tuple[Any, str, Any]] = []

    def begin(self) -> None:
        with self._lock:
            self._bodies += 1
            if self._bodies > 1:
                return
            for place in _PLACES:
                module = sys.modules.get(place)  # what is not loaded cannot be called
                for name in _GENERATORS:
                    if module is not None and name in vars(module):
                        self._exchange(module, name, _nothing_in_the_generator_s_place(vars(module)[name]))
            function = getattr(sys.modules.get("torch.utils.checkpoint"), "CheckpointFunction", None)
            if function is not None:  # for use_reentrant=True
                self._exchange(function, "apply", staticmethod(_run_in_the_function_s_place(function.apply)))

    def end(self) -> None:
        with self._lock:
            self._bodies -= 1
            while not self._bodies and self._before:
                owner, name, value = self._before.pop()
                if value is _MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, value)

    def _exchange(self, owner: Any, name: str, stand_in: Any) -> None:
        self._before.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, stand_in)


def _nothing_in_the_generator_s_place(real: Callable[..., Any]) -> Callable[..., Any]:
    """Torch advances this generator once before and once after the function that is checkpointed."""

    def nothing() -> Iterator[None]:
        yield

    def generator(*args: Any, **kwargs: Any) -> Any:
        return nothing() if _straight_here.get() else real(*args, **kwargs)

    return generator


def _run_in_the_function_s_place(real: Callable[..., Any]) -> Callable[..., Any]:
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args) if _straight_here.get() else real(function, preserve_rng_state, *args)

    return apply


_EXCHANGE = _Exchange()


@contextmanager
def no_recomputation() -> Iterator[None]:
    """``torch.utils.checkpoint`` just runs what it is given, in this thread, until the body ends.

    By whatever name it is called: ``checkpoint`` with both values of ``use_reentrant``, ``checkpoint_sequential``, and
    the composable ``checkpoint`` of ``torch.distributed``. May be entered again inside itself.
    """
    _EXCHANGE.begin()
    token = _straight_here.set(True)
    try:
        yield
    finally:
        _straight_here.reset(token)
        _EXCHANGE.end()


def straight(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In the place of a function that checkpoints ``function``."""
    return function(*args, **kwargs)


def checkpoint_wrappers(modules: list[nn.Module]) -> list[nn.Module]:
    """The modules that ``apply_activation_checkpointing`` put around others; none where nobody has loaded it."""
    wrapping = sys.modules.get("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    wrapper = getattr(wrapping, "CheckpointWrapper", None)
    return [] if wrapper is None else [module for module in modules if isinstance(module, wrapper)]
