"""What holds for every test: one thread, and nothing global may stay changed after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import lightning.pytorch  # noqa: F401  (sets an environment variable when it is first imported)
import pytest
import torch
from torch.backends import cuda as attention_kernels

torch.set_num_threads(1)


#: Environment variables that pytest, Lightning (seed, rendezvous) and numerical libraries set of their own accord.
_SET_BY_OTHERS = (
    "PYTEST_",
    "PL_",
    "MASTER_",
    "OMP_",
    "KMP_",
    "CUDA_",
    "CUBLAS_",
    "TORCHINDUCTOR_",
    "WANDB_",
    "MLFLOW_",
    "QT_",  # OpenCV, which Quantus imports
)


_VARIABLE = "environment variable "


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
    }
    if "timm.layers" in sys.modules:
        from timm.layers import use_fused_attn

        state["timm's fused attention"] = use_fused_attn()
    if "torch._dynamo" in sys.modules:
        from torch._dynamo import eval_frame

        state["torch.compile stance"] = repr(eval_frame._stance)
    # Hashed: a failure names the variable, and never prints what may be a secret.
    state.update(
        {_VARIABLE + key: hash(value) for key, value in os.environ.items() if not key.startswith(_SET_BY_OTHERS)}
    )
    return state


@pytest.fixture(autouse=True)
def nothing_global_stays_changed() -> Iterator[None]:
    """Fail a test that leaves a process-wide switch other than it found it."""
    before = _global_state()
    yield
    after = _global_state()
    # A switch of a library that this very test imported has no value before it; a variable has: unset.
    names = {name for name in before.keys() | after.keys() if name in before or name.startswith(_VARIABLE)}
    changed = {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}
    assert not changed, f"global state changed by this test (before, after): {changed}"
