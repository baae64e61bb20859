"""Conservative propagation and AttnLRP as gradient × input of a model with constants in its forward pass.

    LayerNorm     y = (x − mean)·stop(1/std)·w + b                 both
    activation    y = x·stop(act(x)/x)                             both
    product       y = ½·a·stop(b) + ½·stop(a)·b                    both
    gate          y = x·stop(sigmoid(…))                           both
    attention     O = stop(A) V                                    conservative (arXiv 2202.07304)
    attention     O = half(A) half(V),  S = half(Q) half(K)ᵀ·s     attn_lrp (arXiv 2402.05602)

with half(x) = ½x + ½·stop(x): V is reached by half its gradient, Q and K by a quarter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import timm.layers
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.references import guided
from tests.references.recorded_attention import RecordedCall, patched, plain_scores, plain_softmax
from tests.zoo import ZooModel, logits_of

ACTIVATIONS = ("GELU", "GELUTanh", "QuickGELU", "SiLU", "ReLU", "GELUActivation")


def half(x: Tensor) -> Tensor:
    """The value of x, half its gradient."""
    return 0.5 * x + 0.5 * x.detach()


def product(a: Tensor, b: Tensor) -> Tensor:
    """The value a·b, half the gradient to each factor."""
    return 0.5 * a * b.detach() + 0.5 * a.detach() * b


def _norm(module: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    (x,) = inputs
    centred = x - x.mean(-1, keepdim=True)
    inverse = (x.var(-1, keepdim=True, unbiased=False) + module.eps).rsqrt()
    y = centred * inverse.detach()
    if module.weight is not None:
        y = y * module.weight
    if module.bias is not None:
        y = y + module.bias
    return y


def _activation(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    (x,) = inputs
    return x * (output / x).detach()


def _packed_swiglu(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        first, second = module.fc1(x).chunk(2, dim=-1)
        hidden = product(first, module.act(second)) if module.gate_last else product(module.act(first), second)
        y: Tensor = module.fc2(module.norm(hidden))
        return y

    return forward


def _swiglu(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        y: Tensor = module.fc2(module.norm(product(module.act(module.fc1_g(x)), module.fc1_x(x))))
        return y

    return forward


@contextlib.contextmanager
def relevance_rules(module: nn.Module, method: str) -> Iterator[list[RecordedCall]]:
    """Run `module` with the rules of `method`; yields the attention calls that it makes."""
    calls: list[RecordedCall] = []

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        assert not enable_gqa
        if method == "conservative":
            probabilities = plain_softmax(plain_scores(query, key, attn_mask, is_causal=is_causal, scale=scale))
            output = probabilities.detach() @ value
        else:
            scores = plain_scores(half(query), half(key), attn_mask, is_causal=is_causal, scale=scale)
            probabilities = plain_softmax(scores)
            output = half(probabilities) @ half(value)
        calls.append(RecordedCall(probabilities, value, output))
        return output

    handles = []
    sigmoid = torch.Tensor.sigmoid
    replaced: list[tuple[object, str, object]] = [
        (F, "scaled_dot_product_attention", attention),
        (torch.Tensor, "sigmoid", lambda x: sigmoid(x).detach()),
    ]
    for child in module.modules():
        if isinstance(child, nn.LayerNorm):
            handles.append(child.register_forward_hook(_norm))
        elif type(child).__name__ in ACTIVATIONS:
            handles.append(child.register_forward_hook(_activation))
        elif isinstance(child, timm.layers.SwiGLU):
            replaced.append((child, "forward", _swiglu(child)))
        elif isinstance(child, timm.layers.GluMlp):
            replaced.append((child, "forward", _packed_swiglu(child)))
    try:
        with patched(*replaced):
            yield calls
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Relevance:
    """Token relevance and what the same backward pass said about the attention.

    Attributes:
        tokens: Σ_channels embedding × gradient, (B, N).
        reading: A and G = (∂Φ/∂O) Vᵀ of each call, ∂Φ/∂O taken in the modified backward pass.
        phi: The objective, (B,).
    """

    tokens: Tensor
    reading: guided.Reading
    phi: Tensor


def relevance(
    model: ZooModel, module: nn.Module, images: Tensor, objective: guided.Objective, method: str
) -> Relevance:
    """Relevance under the rules of `method` ("conservative", "attn_lrp"), or of none ("plain")."""
    assert model.twin is None, "take the fused twin: it has the same mathematics"
    embeddings: list[Tensor] = []

    def keep_embedding(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        embeddings.append(inputs[0].detach().requires_grad_())
        return (embeddings[0], *inputs[1:])

    handle = module.get_submodule(model.first_block).register_forward_pre_hook(keep_embedding)
    rules = contextlib.nullcontext([]) if method == "plain" else relevance_rules(module, method)
    try:
        with torch.enable_grad(), rules as calls:
            logits = logits_of(module(images))
            phi = objective(logits, calls)
    finally:
        handle.remove()
    outputs = [call.output for call in calls]
    gradient, *at_outputs = torch.autograd.grad(phi.sum(), [embeddings[0], *outputs])
    tokens = (embeddings[0].detach() * gradient).sum(-1)
    reading = guided.Reading(
        [call.probabilities.detach() for call in calls],
        [g @ call.value.detach().transpose(-2, -1) for g, call in zip(at_outputs, calls, strict=True)],
        logits.detach(),
    )
    return Relevance(tokens, reading, phi.detach())


def smoothed(maps: Tensor) -> Tensor:
    """Average of each patch (weight 4), its neighbours along an edge (2) and across a corner (1), those that exist."""
    rows, columns = maps.shape[-2:]
    average = torch.zeros_like(maps)
    for row in range(rows):
        for column in range(columns):
            weights = 0
            for down in (-1, 0, 1):
                for right in (-1, 0, 1):
                    if 0 <= row + down < rows and 0 <= column + right < columns:
                        weight = {0: 4, 1: 2, 2: 1}[abs(down) + abs(right)]
                        average[..., row, column] += weight * maps[..., row + down, column + right]
                        weights += weight
            average[..., row, column] /= weights
    return average


def guided_relevance(model: ZooModel, found: Relevance, combine: str) -> Tensor:
    """Positive relevance and the positive guided map of one attn_lrp backward pass, on patches (B, h, w).

    Each is divided by its sum over the patches; "sum" is half their sum, "product" their geometric mean. "gated_sum"
    is half the sum again, once the guided map is multiplied by 1 / (1 + exp(−2 r / rms(r))), r the smoothed relevance.
    """

    def share(patches: Tensor) -> Tensor:
        positive = patches.clamp(min=0)
        return positive / positive.sum((-2, -1), keepdim=True)

    relevance = guided.patches(model, found.tokens)
    attended = guided.patches(model, guided.guided_tokens(model, found.reading, "positive"))
    if combine == "gated_sum":
        r = smoothed(relevance)
        attended = attended / (1 + torch.exp(-2 * r / r.square().mean((-2, -1), keepdim=True).sqrt()))
    first, second = share(relevance), share(attended)
    return (first * second).sqrt() if combine == "product" else (first + second) / 2
