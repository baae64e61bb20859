"""A model held still: untouched, constant parameters, no activation checkpointing, no compiler."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lightning_attngrad.state.module import saved_modules
from lightning_attngrad.state.recomputation import checkpoint_wrappers, no_recomputation, straight
from lightning_attngrad.state.reentry import Holding, Register

#: Attributes by which models switch activation checkpointing on. Recomputing a block would call its attention twice.
_CHECKPOINTING_FLAGS = ("grad_checkpointing", "gradient_checkpointing", "use_checkpoint", "with_cp")


class StillModules(Holding):
    """Modules whose parameters are constant, and which neither recompute anything nor run compiled.

    Args:
        root: below which they lie.
        modules: those of them that are not held still yet.
        others: those that are.
    """

    def __init__(self, root: nn.Module, modules: list[nn.Module], others: list[nn.Module]) -> None:  # noqa: ARG002
        super().__init__(modules)
        self._parameters = list(root.parameters())
        self._switched: list[tuple[dict[str, Any], str, Any, Any]] = [
            (vars(module), name, True, False)
            for module in modules
            for name in _CHECKPOINTING_FLAGS
            if vars(module).get(name) is True
        ]
        self._switched += [
            (vars(wrapper), "checkpoint_fn", wrapper.checkpoint_fn, straight)
            for wrapper in checkpoint_wrappers(modules)
        ]
        self._frozen: list[nn.Parameter] = []
        self._uncompiled = contextlib.ExitStack()
        try:
            for attributes, name, _, off in self._switched:
                attributes[name] = off
            self._frozen = [parameter for parameter in self._parameters if parameter.requires_grad]
            self.freeze()
            self._uncompiled.enter_context(_uncompiled())
        except BaseException:  # interrupted
            self.undo()
            raise

    def freeze(self) -> list[nn.Parameter]:
        """Make those constant that are not, and say which these were."""
        learning = [parameter for parameter in self._parameters if parameter.requires_grad]
        for parameter in learning:
            parameter.requires_grad_(False)
        return learning

    def undo(self) -> None:
        """Parameters learn again, and flags are as they were."""
        self._uncompiled.close()
        for attributes, name, on, _ in self._switched:
            attributes[name] = on
        for parameter in self._frozen:
            parameter.requires_grad_()


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """Compiled graphs hide their attention. Asked only where a compiler was loaded: loading it takes seconds."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


_STILL = Register(StillModules)


@contextlib.contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` still inside the block, and leave it as it was after it, also when the block raises.

    As :func:`untouched`, except that hooks of the model may write down for somebody else what they see. And besides:
    parameters do not require gradients, as a map needs those of activations only and the pass then stores far less;
    activation checkpointing is without effect, by flag, by wrapper or by hand; and compiled models run uncompiled.

    May be entered again inside itself, or inside ``untouched``, for the same model or a part of it, at the price of a
    look-up. Whatever tensors a pass has written to are given back to the model when the block ends, so that each begins
    with the same ones; the rest is put back when the outermost block ends.

    Checkpointing that is not torch's (DeepSpeed's, fairscale's) goes on.

    Raises:
        ValueError: if a parameter is lazy, or was made in inference mode: no gradient can be taken through it.
    """
    with saved_modules(model) as saved, _STILL.over(model) as still, no_recomputation():
        learning = still.freeze()
        try:
            yield
        finally:
            for parameter in learning:
                parameter.requires_grad_()
            saved.take_tensors_back()
