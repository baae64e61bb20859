"""Switches of the process: fused attention, cuDNN, autocast, default dtype, determinism."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


def _read_flags() -> list[tuple[Callable[[Any], Any], Any]]:
    """Each flag as its setter and its present value."""
    # Any: torch leaves most of these functions without types.
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    flags: list[tuple[Callable[[Any], Any], Any]] = [
        (cuda.enable_flash_sdp, cuda.flash_sdp_enabled()),
        (cuda.enable_mem_efficient_sdp, cuda.mem_efficient_sdp_enabled()),
        (cuda.enable_math_sdp, cuda.math_sdp_enabled()),
        (cuda.enable_cudnn_sdp, cuda.cudnn_sdp_enabled()),
        (cuda.allow_fp16_bf16_reduction_math_sdp, cuda.fp16_bf16_reduction_math_sdp_allowed()),
        (torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()),
        (torch.set_default_dtype, torch.get_default_dtype()),
        (torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled()),
    ]
    # The TF32 switches are left out: reading them raises once a user has mixed torch's old and new API.
    flags += [
        (partial(setattr, cudnn, name), getattr(cudnn, name)) for name in ("enabled", "benchmark", "deterministic")
    ]
    for device in _AUTOCAST_DEVICES:
        flags.append((partial(torch.set_autocast_enabled, device), torch.is_autocast_enabled(device)))
        flags.append((partial(torch.set_autocast_dtype, device), torch.get_autocast_dtype(device)))
    return flags


@contextmanager
def preserved_flags() -> Iterator[None]:
    """Put fused-attention, cuDNN, autocast, default-dtype and determinism flags back after the body."""
    flags = _read_flags()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        for restore, value in flags:
            restore(value)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
