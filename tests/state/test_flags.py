from __future__ import annotations

import pytest
import torch

from lightning_attngrad.state import preserved_flags
from tests.probe.runs import fail


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
