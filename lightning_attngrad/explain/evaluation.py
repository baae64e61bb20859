"""A model held still for one pass: evaluation mode, constant parameters, no gradient checkpointing, no compiler."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: Attributes by which models switch gradient checkpointing on. Recomputing a block would call its attention twice.
_CHECKPOINTING_FLAGS = ("grad_checkpointing", "gradient_checkpointing", "use_checkpoint", "with_cp")


@contextlib.contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` still inside the block and put back every flag after it, also when the block raises.

    Sets ``training`` module by module rather than through ``eval()``, which a model may have overridden and which
    would not remember that some of its modules were frozen in evaluation mode. Parameters stop requiring
    gradients: a map needs those of activations only, and the pass then stores far less. Buffers and other tensors of
    the modules are lent as copies.

    Raises:
        ValueError: if parameters were created under inference mode: no gradient can be taken through them.
    """
    modules = list(model.modules())
    tensors = list(_tensors_beside_parameters(modules))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            f"model: {type(model).__name__} has parameters that were created under torch.inference_mode(); "
            "no gradient can be taken through them. Build or load the model outside of it."
        )
    training = [module.training for module in modules]
    checkpointing = [
        (module, name) for module in modules for name in _CHECKPOINTING_FLAGS if vars(module).get(name) is True
    ]
    try:
        for module in modules:
            module.training = False
        for module, name in checkpointing:
            setattr(module, name, False)
        for parameter in parameters:
            parameter.requires_grad_(False)
        for holder, name, tensor in tensors:
            # What a forward writes into them (a running centre, a cache) is then written into copies, and no graph
            # hangs on the model's own.
            holder[name] = tensor.detach().clone()
        with _uncompiled():
            yield
    finally:
        for module, was_training in zip(modules, training, strict=True):
            module.training = was_training
        for module, name in checkpointing:
            setattr(module, name, True)
        for parameter in parameters:
            parameter.requires_grad_()
        for holder, name, tensor in tensors:
            holder[name] = tensor


def _tensors_beside_parameters(modules: list[nn.Module]) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Buffers and plain tensor attributes: the dictionary that holds each, its name, and itself."""
    for module in modules:
        for holder in (module._buffers, vars(module)):
            for name, tensor in list(holder.items()):
                if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                    yield holder, name, tensor


@contextlib.contextmanager
def differentiable() -> Iterator[None]:
    """Gradients can be taken inside, whatever ``no_grad`` or ``inference_mode`` the caller stands in."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        yield


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """Compiled graphs hide their attention. Asked only where a compiler was loaded: loading it takes seconds."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
