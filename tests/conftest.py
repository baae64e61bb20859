"""What holds for every test: one thread, and nothing global may stay changed after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import torch
from torch.backends import cuda as attention_kernels

torch.set_num_threads(1)


def _global_state() -> dict[str, object]:
    """Every process-wide switch that the package touches, or could."""
    state: dict[str, object] = {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast on CPU": torch.is_autocast_enabled("cpu"),
        "autocast on CUDA": torch.is_autocast_enabled("cuda"),
        "autocast dtype on CPU": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "flash attention": attention_kernels.flash_sdp_enabled(),
        "memory-efficient attention": attention_kernels.mem_efficient_sdp_enabled(),
        "mathematical attention": attention_kernels.math_sdp_enabled(),
        "cuDNN attention": attention_kernels.cudnn_sdp_enabled(),
        "fast path of nn.MultiheadAttention": torch.backends.mha.get_fastpath_enabled(),
        "torch function modes": torch._C._len_torch_function_stack(),
        "scaled_dot_product_attention": torch.nn.functional.scaled_dot_product_attention,
        "environment": {
            # pytest itself keeps the running test's name there
            key: value
            for key, value in os.environ.items()
            if key != "PYTEST_CURRENT_TEST"
        },
    }
    if "timm.layers" in sys.modules:
        from timm.layers import use_fused_attn

        state["timm's fused attention"] = use_fused_attn()
    if "torch._dynamo" in sys.modules:
        from torch._dynamo import eval_frame

        state["torch.compile stance"] = repr(eval_frame._stance)
    return state


@pytest.fixture(autouse=True)
def nothing_global_stays_changed() -> Iterator[None]:
    """Fail a test that leaves a process-wide switch other than it found it."""
    before = _global_state()
    yield
    after = _global_state()
    changed = {name: (before[name], value) for name, value in after.items() if name in before and value != before[name]}
    assert not changed, f"global state changed by this test (before, after): {changed}"
