"""Functions run under a tap with the rules of `conservative`, and the relevance that comes back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import CONSERVATIVE, AttentionTap


def relevance(function: Callable[[Tensor], Tensor], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Input × gradient of the sum of a function, shaped like the input, and the function's values."""
    inputs = inputs.clone().requires_grad_()
    with AttentionTap(nn.Identity(), rules=CONSERVATIVE):
        output = function(inputs.clone())  # some work in place
    (gradient,) = torch.autograd.grad(output.sum(), inputs)
    return (inputs * gradient).detach(), output.detach()


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Seeded numbers of both signs, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
