"""A GPU that is none: tensors that say they lie on a device, compute on the CPU, and are as strict as CUDA.

Where there is no GPU, code that mixes devices, waits for the device in a loop, asks for a kernel that is not
deterministic, or launches a thousand kernels where ten would do runs without a complaint. On this device it does not:

- an operation on tensors of both devices raises, as on CUDA; so does indexing with a tensor of the host, which CUDA
  would copy without a word. Numbers (tensors without dimensions) may come from anywhere;
- operations of which CUDA has no deterministic kernel raise, as under ``torch.use_deterministic_algorithms(True)``;
- with ``float64=False`` tensors of that type raise, as on Apple's GPUs;
- kernels are counted by name (:attr:`SimulatedGpu.launches`; views launch nothing), and so is every time that the host
  waits for a value (:attr:`SimulatedGpu.waits`).

The device is called ``meta``, the one name beside ``cpu`` that needs no driver: values are real, those of the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")

#: Operations that raise on CUDA under ``torch.use_deterministic_algorithms(True)``, from its documentation.
NOT_DETERMINISTIC = {
    "aten::_adaptive_avg_pool2d_backward",
    "aten::_adaptive_avg_pool3d_backward",
    "aten::adaptive_max_pool2d_backward",
    "aten::avg_pool3d_backward",
    "aten::bincount",
    "aten::cumsum",
    "aten::fractional_max_pool2d_backward",
    "aten::grid_sampler_2d_backward",
    "aten::grid_sampler_3d_backward",
    "aten::histc",
    "aten::kthvalue",
    "aten::max_pool3d_with_indices_backward",
    "aten::median.dim",
    "aten::nanmedian.dim",
    "aten::nll_loss2d_forward",
    "aten::put_",
    "aten::reflection_pad2d_backward",
    "aten::replication_pad2d_backward",
    "aten::scatter_reduce.two",
    "aten::upsample_bicubic2d_backward",
    "aten::upsample_bilinear2d_backward",
    "aten::upsample_linear1d_backward",
    "aten::upsample_trilinear3d_backward",
}
#: Of these, CUDA has a deterministic kernel for integers (a sum of integers has no order).
_DETERMINISTIC_FOR_INTEGERS = {"aten::cumsum", "aten::bincount"}
#: Operations that give a value or a size to the host: it waits until the device has computed it.
_WAITS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::equal",
    "aten::is_nonzero",
}
#: Operations that launch nothing beside views.
_NO_LAUNCH = (
    "aten::_reshape_alias",
    "aten::_unsafe_view",
    "aten::alias",
    "aten::detach",
    "aten::empty",
    "aten::lift_fresh",
    "aten::new_empty",
)


class MixedDevicesError(RuntimeError):
    """An operation met tensors of the device and of the host."""


class SimulatedTensor(Tensor):
    """A tensor of the simulated device; its values are in ``held``, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> SimulatedTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.held = held
        return tensor

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} of a simulated tensor outside of its SimulatedGpu")


class SimulatedGpu(TorchDispatchMode):
    """The device, while active.

    Args:
        float64: whether it has that type.
        deterministic: whether operations without a deterministic kernel raise.

    Attributes:
        launches: kernels by the name of their operation.
        waits: how often the host waited for the device, by operation.
        uploads: how often values were copied from the host.
    """

    def __init__(self, *, float64: bool = True, deterministic: bool = True) -> None:
        super().__init__()
        self.float64, self.deterministic = float64, deterministic
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.uploads = 0
        self._constructors = _Constructors(self)

    def __enter__(self) -> SimulatedGpu:
        super().__enter__()
        self._constructors.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._constructors.__exit__(*exception)
        super().__exit__(*exception)

    def upload(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the host on the device."""
        self.uploads += 1
        copy = tensor.detach().clone()
        self._check_type(copy)
        return SimulatedTensor(copy)

    def move(self, module: nn.Module) -> nn.Module:
        """Move a module's parameters and buffers to the device, in place."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(self.upload(parameter), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self.upload(buffer)
        return module

    def forget(self) -> None:
        """Begin to count anew."""
        self.launches.clear()
        self.waits.clear()
        self.uploads = 0

    @property
    def number_of_launches(self) -> int:
        return self.launches.total()

    @property
    def number_of_waits(self) -> int:
        return self.waits.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name, given = func.name(), tree_leaves((args, kwargs))
        here = [leaf for leaf in given if isinstance(leaf, SimulatedTensor)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = torch.device("cpu")
        on_device = torch.device(asked).type == DEVICE.type if asked is not None else bool(here)
        copies = name.startswith(("aten::_to_copy", "aten::copy_"))
        if here and not copies:
            self._check_devices(name, given)
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if here and (name.startswith(tuple(_WAITS)) or _picks_by_flags(name, args)):
            self.waits[name] += 1
        if copies and here and (not on_device or not isinstance(args[0], SimulatedTensor)):
            self.waits[name] += 1  # to the host
            on_device = isinstance(args[0], SimulatedTensor) if name.startswith("aten::copy_") else on_device
        if copies and on_device and any(_is_of_host(leaf) for leaf in given):
            self.uploads += 1
        if on_device or here:
            self._count(func, name, result)
        if not on_device:
            return result
        known = {id(tensor.held): tensor for tensor in here}  # what is written in place stays the same tensor

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor) or isinstance(value, SimulatedTensor):
                return value
            self._check_type(value)
            before = known.get(id(value))
            return SimulatedTensor(value) if before is None else before

        return tree_map(wrapped, result)

    def _check_devices(self, name: str, given: list[Any]) -> None:
        elsewhere = [leaf for leaf in given if _is_of_host(leaf) and leaf.dim()]
        if elsewhere:
            raise MixedDevicesError(
                f"{name}: expected all tensors to be on the same device, but found some on the device and one of shape "
                f"{tuple(elsewhere[0].shape)} on the CPU"
            )
        integers = all(not leaf.is_floating_point() for leaf in given if isinstance(leaf, Tensor))
        if self.deterministic and name in NOT_DETERMINISTIC and not (integers and name in _DETERMINISTIC_FOR_INTEGERS):
            raise RuntimeError(f"{name} does not have a deterministic implementation")

    def _check_type(self, tensor: Tensor) -> None:
        if tensor.dtype == torch.float64 and not self.float64:
            raise TypeError("cannot convert to a float64 tensor: the device has no such type")

    def _count(self, func: Any, name: str, result: Any) -> None:
        makes_a_tensor = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        if makes_a_tensor and not func.is_view and not name.startswith(_NO_LAUNCH):
            self.launches[name] += 1


class _Constructors(TorchFunctionMode):
    """What torch does with data and devices above the operations that a dispatch mode sees."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and _is_here(kwargs.get("device")):
            if isinstance(args[0], SimulatedTensor):
                return args[0] if kwargs.get("dtype") is None else args[0].to(kwargs["dtype"])
            del kwargs["device"]
            return self._gpu.upload(func(*args, **kwargs))
        if func is Tensor.new_tensor and isinstance(args[0], SimulatedTensor):
            return self._gpu.upload(torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}))
        if func is Tensor.tolist and isinstance(args[0], SimulatedTensor):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def _picks_by_flags(name: str, args: tuple[Any, ...]) -> bool:
    """Whether values are picked by a boolean tensor: how many there are is known once it has been computed."""
    flags = name.startswith("aten::index") and any(
        isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1:2])
    )
    return flags and not (name.startswith("aten::index_put") and args[2].numel() == 1)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, SimulatedTensor) else leaf


def _is_of_host(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and not isinstance(leaf, SimulatedTensor)


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def on_host(value: Any) -> Any:
    """The same, with the values of simulated tensors; nothing is counted."""
    return tree_map(lambda leaf: leaf.held.detach().clone() if isinstance(leaf, SimulatedTensor) else leaf, value)
