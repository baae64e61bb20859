"""Something done to modules once, however often it is asked for, and undone when the last who asked is done."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch import nn


class Holding(ABC):
    """What was done to some modules. Made, it is done; ``undo`` is called once.

    Args:
        modules: those that it was done to.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.users = 0
        #: Holdings of other modules below the same root: they must not be undone before this one is.
        self.below: list[Any] = []

    @abstractmethod
    def undo(self) -> None:
        """Put everything back."""


H = TypeVar("H", bound=Holding)


class Register(Generic[H]):
    """Which modules are held at present. One for all threads: what is done to a module is done for all of them.

    A thread that asks for a model that another one holds shares in it, so that neither puts anything back while the
    other is still at work.

    Args:
        make: does it, to modules (second argument) below a root (first argument) that nobody holds yet; the other ones
            below that root (third argument) are held already.
    """

    def __init__(self, make: Callable[[nn.Module, list[nn.Module], list[nn.Module]], H]) -> None:
        self._make = make
        self._held: dict[int, H] = {}  # by the id of a module, which its holding keeps alive
        self._lock = threading.RLock()

    @contextmanager
    def over(self, root: nn.Module) -> Iterator[H]:
        """Hold ``root`` and all modules below it; where that is done already, it costs a look-up."""
        holding = self._take(root)
        try:
            yield holding
        finally:
            self._give_back(holding)

    def holding(self, module: nn.Module) -> H | None:
        """What was done to a module; None if nothing."""
        return self._held.get(id(module))

    def _take(self, root: nn.Module) -> H:
        with self._lock:
            holding = self._held.get(id(root))
            if holding is None:
                everything = list(root.modules())
                others = [module for module in everything if id(module) in self._held]
                below = {id(held): held for held in (self._held[id(module)] for module in others)}
                mine = [module for module in everything if id(module) not in self._held] if others else everything
                holding = self._make(root, mine, others)
                self._held.update((id(module), holding) for module in holding.modules)
                holding.below = list(below.values())
                for other in below.values():
                    other.users += 1
            holding.users += 1
            return holding

    def _give_back(self, holding: H) -> None:
        with self._lock:
            holding.users -= 1
            if holding.users:
                return
            for module in holding.modules:
                del self._held[id(module)]
            try:
                holding.undo()
            finally:
                for other in holding.below:
                    self._give_back(other)
