"""The precision in which metrics are computed: that of their input, whatever surrounds the call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast within the block: a product in bfloat16 would be off in its third digit.

    Args:
        device: that the block computes on.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    available = torch.amp.is_autocast_available(device.type)
    with torch.autocast(device.type, enabled=False) if available else nullcontext():
        yield


def device_of_float64(device: torch.device) -> torch.device:
    """Where numbers of a device can be computed in float64: there, unless it is an Apple GPU, which has none.

    Example:
        >>> device_of_float64(torch.device("mps")), device_of_float64(torch.device("cuda", 1))
        (device(type='cpu'), device(type='cuda', index=1))
    """
    return torch.device("cpu") if device.type == "mps" else device
