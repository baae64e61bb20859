from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from lightning_attngrad.probe.global_state import preserved_flags, seeded_rng
from tests.probe.runs import fail, rng_state


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


@pytest.mark.parametrize("fails", [False, True])
def test_streams_are_seeded_inside_and_go_on_outside(fails: bool) -> None:
    draw()
    before = rng_state()
    drawn = []
    for _ in range(2):
        try:
            with seeded_rng(7):
                drawn.append(draw())
                if fails:
                    fail()
        except ZeroDivisionError:
            pass
        assert rng_state() == before
    assert drawn[0] == drawn[1]
    with seeded_rng(8):
        assert all(new != old for new, old in zip(draw(), drawn[0], strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_a_seed_that_not_every_stream_accepts_is_refused(seed: float) -> None:
    before = rng_state()
    with pytest.raises(ValueError, match="seed: got"), seeded_rng(seed):  # type: ignore[arg-type]
        pass
    assert rng_state() == before


def change_every_flag() -> None:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    cuda.enable_flash_sdp(not cuda.flash_sdp_enabled())
    cuda.enable_mem_efficient_sdp(not cuda.mem_efficient_sdp_enabled())
    cuda.enable_math_sdp(not cuda.math_sdp_enabled())
    cuda.enable_cudnn_sdp(not cuda.cudnn_sdp_enabled())
    cuda.allow_fp16_bf16_reduction_math_sdp(not cuda.fp16_bf16_reduction_math_sdp_allowed())
    torch.backends.mha.set_fastpath_enabled(not torch.backends.mha.get_fastpath_enabled())
    torch.set_default_dtype(torch.float64)
    torch.set_autocast_cache_enabled(not torch.is_autocast_cache_enabled())
    for name in ("enabled", "benchmark", "deterministic"):
        setattr(cudnn, name, not getattr(cudnn, name))
    for device in ("cpu", "cuda"):
        torch.set_autocast_enabled(device, not torch.is_autocast_enabled(device))
        torch.set_autocast_dtype(device, torch.float16 if device == "cpu" else torch.bfloat16)
    torch.use_deterministic_algorithms(True, warn_only=True)


def flags() -> list[object]:
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return [
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.fp16_bf16_reduction_math_sdp_allowed(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_cache_enabled(),
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_every_flag_is_put_back(fails: bool) -> None:
    before = flags()
    try:
        with preserved_flags():
            change_every_flag()
            assert all(new != old for new, old in zip(flags(), before, strict=True))
            if fails:
                fail()
    except ZeroDivisionError:
        pass
    assert flags() == before
