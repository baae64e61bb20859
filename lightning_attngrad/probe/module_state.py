"""Everything a forward pass can write into a module, written back: flags, buffers, attributes, gradients."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SHARDING_HOOKS = ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


class AttributeSnapshot:
    """The attributes of some objects, one container deep, to be put back by identity.

    ``vars(object)`` is copied shallowly, and so is each dict, list, set and deque found in it. As a module
    keeps its buffers, hooks and children in such dicts, and torchmetrics its state in such attributes, this
    covers them all; what lies deeper (a list in a dict, an object of the user's own) is not seen.

    Args:
        objects: the objects to remember; those without a ``__dict__`` are passed over.
        leave_out: names of attributes whose containers are not put back.
    """

    def __init__(self, objects: Iterable[object], leave_out: Collection[str] = ()) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        for item in objects:
            attributes = getattr(item, "__dict__", None)
            if not isinstance(attributes, dict):
                continue
            self._attributes.append((attributes, dict(attributes)))
            self._containers += [
                (value, list(value.items()) if isinstance(value, dict) else list(value))
                for name, value in attributes.items()
                if isinstance(value, dict | list | set | deque) and name not in leave_out
            ]

    def restore(self) -> None:
        """Put every attribute, and every entry of every container, back to the object it was."""
        for attributes, before in self._attributes:
            if not _same_entries(list(attributes.items()), list(before.items())):
                attributes.clear()
                attributes.update(before)
        for container, before_entries in self._containers:
            now = list(container.items()) if isinstance(container, dict) else list(container)
            if _same_entries(now, before_entries):
                continue
            container.clear()
            if isinstance(container, dict | set):
                container.update(before_entries)
            else:
                container.extend(before_entries)


def _same_entries(now: list[Any], before: list[Any]) -> bool:
    """Whether two lists of values, or of (key, value) pairs, hold the same objects."""
    if len(now) != len(before):
        return False
    for one, other in zip(now, before, strict=True):
        if one is other:
            continue
        # The pairs of a dict are made anew at each look, so it is their members that are compared.
        if not (type(one) is type(other) is tuple and len(one) == len(other) == 2):
            return False
        if one[0] is not other[0] and one[0] != other[0]:
            return False
        if one[1] is not other[1]:
            return False
    return True


class TensorSnapshot:
    """The values of some tensors, to be written back bit by bit into the same tensors.

    Args:
        tensors: buffers and other tensors that a forward may write to. Inference tensors are passed over:
            nothing outside inference mode can write to them.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._saved: dict[int, tuple[Tensor, Tensor, int]] = {}
        with torch.no_grad():
            for tensor in tensors:
                if not tensor.is_inference() and not is_lazy(tensor) and id(tensor) not in self._saved:
                    self._saved[id(tensor)] = (tensor, tensor.detach().clone(), tensor._version)

    def restore(self) -> None:
        """Write back each tensor that changed; one that did not is not touched (nor its version counter)."""
        with torch.inference_mode(False), torch.no_grad():
            for tensor, value, version in self._saved.values():
                if tensor.shape != value.shape or tensor.dtype != value.dtype or tensor.device != value.device:
                    tensor.data = value  # resized or moved: only a new storage can undo that
                elif _changed(tensor, value, version):
                    tensor.copy_(value)


def _changed(tensor: Tensor, value: Tensor, version: int) -> bool:
    if tensor.layout is not torch.strided or type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        return tensor._version != version  # a comparison of a distributed tensor would be a collective
    # The version counter alone misses writes through `.data`; `==` misses −0.0 and trips over NaN. So: bytes.
    return not torch.equal(_bytes(tensor), _bytes(value))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _written_tensors(root: nn.Module) -> Iterator[Tensor]:
    """Buffers, and tensors that modules keep as plain attributes (torchmetrics state, caches)."""
    yield from root.buffers()
    for module in root.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                yield value


def _swap_inference_tensors(root: nn.Module) -> None:
    """Put normal clones in the place of inference tensors; the snapshot puts them back.

    Autograd refuses such tensors. They are left behind by modules that fill a cache (rotary positions,
    relative position bias) in their first forward, when that forward ran in ``trainer.validate``.
    """
    clones: dict[int, Tensor] = {}

    def swapped(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_inference():
            # Keyed by identity, so that a cache shared by all blocks stays one tensor.
            return clones.setdefault(id(value), value.clone())
        if type(value) is tuple and any(isinstance(item, Tensor) and item.is_inference() for item in value):
            return tuple(swapped(item) for item in value)
        return value

    for module in root.modules():
        attributes = vars(module)
        # The buffers are such a dict, and so are the attributes themselves.
        for container in [attributes, *(value for value in attributes.values() if isinstance(value, dict))]:
            for key, value in list(container.items()):
                if (new := swapped(value)) is not value:
                    container[key] = new
        for values in attributes.values():
            if isinstance(values, list):
                values[:] = [swapped(item) for item in values]


def _refuse_unusable_parameters(root: nn.Module) -> None:
    for name, parameter in root.named_parameters():
        if is_lazy(parameter):
            raise RuntimeError(
                f"model: parameter {name!r} has no shape yet, and a probe may not be the first to run a "
                "lazy module; run one forward pass before training starts, for instance in configure_model()"
            )
        if parameter.is_inference():
            raise RuntimeError(
                f"model: parameter {name!r} was created in inference mode, so no gradient can pass it; "
                "build it in configure_model() or use Trainer(inference_mode=False)"
            )


def _sharded_parts(root: nn.Module) -> list[Any]:
    """Modules that FSDP2 shards; there are none where nobody has loaded it."""
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return [] if fsdp is None else [module for module in root.modules() if isinstance(module, fsdp)]


@contextmanager
def preserved_module(root: nn.Module) -> Iterator[None]:
    """Let the body run ``root`` in evaluation mode, and leave the module bit for bit as it was found.

    Inside: every ``.training`` is False, every ``.grad`` None. Put back afterwards, also when the body
    raises: ``.training`` of each module, buffers, torchmetrics state and other tensor attributes (identity
        and
    value), plain attributes and containers (identity, one level deep), ``requires_grad``, and the very same
    ``.grad`` objects.

    Args:
        root: the LightningModule.

    Raises:
        RuntimeError: if a parameter is lazy or was made in inference mode; or, after everything has been put
            back, if the body left gradients in ``.grad`` (``backward()`` instead of ``torch.autograd.grad``).
    """
    sharded = _sharded_parts(root)
    for part in sharded:
        # After a forward the parameters may stand there gathered, in memory that is freed when they are sharded again.
        part.reshard()
    _refuse_unusable_parameters(root)
    modules = list(root.modules())
    training = [module.training for module in modules]
    parameters = list(root.parameters())
    requires_grad = [parameter.requires_grad for parameter in parameters]
    gradients = [parameter.grad for parameter in parameters]
    # FSDP registers these hooks once, in its first forward, which may be the body's: without them, state_dict() would
    # save gathered parameters.
    attributes = AttributeSnapshot(modules, leave_out=_SHARDING_HOOKS if sharded else ())
    tensors = TensorSnapshot(_written_tensors(root))
    touched = False
    try:
        _swap_inference_tensors(root)
        for module in modules:
            module.training = False  # by attribute: users override train() and eval() with side effects
        for parameter in parameters:
            parameter.grad = None  # nothing in the body can add to a gradient that is not there
        yield
    finally:
        touched = any(parameter.grad is not None for parameter in parameters)
        for part in sharded:
            part.reshard()
        attributes.restore()
        tensors.restore()
        for parameter, flag, gradient in zip(parameters, requires_grad, gradients, strict=True):
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
            parameter.grad = gradient
        # After the attributes, for modules that keep the flag elsewhere than in their __dict__ (scripted).
        for module, flag in zip(modules, training, strict=True):
            if module.training != flag:
                module.training = flag
    if touched:
        raise RuntimeError(
            "isolated: the body wrote to .grad of the model's parameters (the gradients of the run were "
            "put back); use torch.autograd.grad instead of backward()"
        )
