"""Process-wide state that a probe must leave alone: random streams, backend flags, autocast."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

_LARGEST_SEED = 2**32 - 1  # what numpy accepts
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """Run the body with every global random stream set to ``seed``, and put the streams back afterwards.

    Covers Python, numpy, torch on the CPU, and every CUDA, MPS and XPU device that is in use. Unlike
    Lightning's ``isolate_rng``, on which it builds, it also puts them back when the body raises.

    Args:
        seed: a number from 0 to 2**32 − 1.

    Raises:
        ValueError: if ``seed`` is outside that range.
    """
    check_seed(seed)
    # Asking an idle CUDA runtime for its state would create a context on it (and fail in a forked process).
    cuda: Any = torch.cuda
    cuda_in_use = cuda.is_available() and cuda.is_initialized()
    keeper = isolate_rng(include_cuda=cuda_in_use)
    other_streams = _other_accelerator_streams()
    keeper.__enter__()
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (the legacy global stream is what user transforms draw from)
        # Not torch.manual_seed: on an idle CUDA runtime it would leave a seed waiting for the day it starts.
        torch.default_generator.manual_seed(seed)
        if cuda_in_use:
            cuda.manual_seed_all(seed)
        for backend, _, _ in other_streams:
            backend.manual_seed(seed)
        yield
    finally:
        # isolate_rng restores only when told that all went well, so that is what it is told.
        keeper.__exit__(None, None, None)
        for _, restore, state in other_streams:
            restore(state)


def check_seed(seed: int) -> None:
    """Refuse a seed that not every random stream accepts.

    Raises:
        ValueError: if ``seed`` is not an int from 0 to 2**32 − 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"seed: got {seed!r}; expected an int from 0 to {_LARGEST_SEED}")


def _other_accelerator_streams() -> list[tuple[Any, Callable[[Any], None], Any]]:
    """Module, setter and present state of the random streams that ``isolate_rng`` does not know."""
    streams: list[tuple[Any, Callable[[Any], None], Any]] = []
    if torch.backends.mps.is_available():
        streams.append((torch.mps, torch.mps.set_rng_state, torch.mps.get_rng_state()))
    xpu: Any = torch.xpu
    if xpu.is_available() and xpu.is_initialized():
        streams.append((xpu, xpu.set_rng_state_all, xpu.get_rng_state_all()))
    return streams


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
