"""By which tokens a prediction reads the image: pooling weights, read off the gradient at the last attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, UnsupportedModelError
from lightning_attngrad.attention.places import CallPlaces
from lightning_attngrad.explain.flow import calls_behind
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.placing import scatter_tokens


@dataclass(frozen=True, eq=False)
class LastAttention:
    """The calls from which a prediction is read directly, no other attention between.

    Attributes:
        weights: by the number of such a call, its pooling weights, a state (B, 1, S + h·w) on the grid of its queries.
        reached: numbers of all calls that the prediction depends on, first call first.
        zero_gradient: (B,) bool: no gradient arrived at any of them.
    """

    weights: dict[int, Tensor]
    reached: tuple[int, ...]
    zero_gradient: Tensor


def last_attention(
    forward: ForwardPass, outputs: Sequence[Tensor], gradients: Sequence[Tensor], *, retain_graph: bool
) -> LastAttention:
    """Find them, by a backward pass that ends there.

    Args:
        forward: the forward pass.
        outputs: tensors of the graph from which the backward pass starts.
        gradients: at each of them.
        retain_graph: whether another backward pass follows.

    Raises:
        ValueError: if the outputs depend on no attention call.
    """
    calls, places = forward.tap.calls, forward.places
    reached = [number for number in calls_behind(outputs, calls) if places.calls[number].kind == "tokens"]
    if not reached:
        raise no_attention_reached(forward)
    last = [number for number in reached if not any(number in places.calls[later].reads for later in reached)]
    arrived: dict[int, Tensor] = {}

    def keep(call: AttentionCall, gradient: Tensor) -> None:
        arrived[id(call)] = gradient

    forward.tap.on_gradient = keep
    try:
        tensors = [calls[number].tensor for number in last]
        torch.autograd.grad(outputs, tensors, gradients, retain_graph=retain_graph, allow_unused=True)
    finally:
        forward.tap.on_gradient = None
    weights, zero = {}, []
    for number in last:
        gradient = arrived.get(id(calls[number]))
        if gradient is None:
            gradient = calls[number].tensor.new_zeros(*calls[number].shape[:3], 1)
        weights[number], untouched = read_pooling(places.calls[number], gradient, places.slots, forward.batch)
        zero.append(untouched)
    return LastAttention(weights, tuple(reached), torch.stack(zero).all(dim=0))


def no_attention_reached(forward: ForwardPass) -> ValueError:
    """Why no attention call takes part in a map."""
    calls = forward.places.calls
    if calls and all(call.kind != "tokens" for call in calls):
        return UnsupportedModelError(
            f"model: none of its {len(calls)} attention calls reads tokens of the image from tokens of the image (the "
            "attention is between channels, or of something else), so no map follows it. Use a method of relevance, "
            "method='attn_lrp' or 'conservative'"
        )
    return ValueError(
        f"model: what is explained depends on none of the {len(calls)} attention calls that were seen: no gradient "
        "came to them. Explain an output that is computed from them, and not from detached features"
    )


def read_pooling(places: CallPlaces, gradient: Tensor, slots: int, batch: int) -> tuple[Tensor, Tensor]:
    """Pooling weights of an attention call behind which no other follows, and which images have no gradient there.

    Args:
        places: of the call.
        gradient: what autograd delivered at its ``tensor``, (R, H, N, ·).
        slots: S.
        batch: number of images B.

    Returns:
        A state (B, 1, S + h·w) on the grid of the queries, and (B,) bool.
    """
    queries = places.queries
    over = (1, 3) if queries.place.shape[1] == 1 else (3,)
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    of_tokens = torch.linalg.vector_norm(gradient.detach(), dim=over, dtype=dtype).reshape(queries.place.shape)
    norms = scatter_tokens(of_tokens.unsqueeze(1), queries, slots, batch)[:, 0]
    present = scatter_tokens(torch.ones_like(of_tokens).unsqueeze(1), queries, slots, batch)[:, 0] > 0
    return pooling_weights(norms, present, slots).unsqueeze(1), ~norms.any(dim=1)


def pooling_weights(norms: Tensor, present: Tensor, slots: int) -> Tensor:
    """Weights with which the query tokens of a last attention call feed the prediction, (B, S + P), each row sum 1.

    Read off the gradient: behind the last attention nothing mixes tokens any more, so it is zero at all tokens but
    the pooled ones. A class token gives a one-hot row; mean pooling equal weights; class and distillation token one
    half each; attention pooling its query. Where tokens in slots *and* patches are pooled, it is either a mean over all
    of them, with gradients of like size everywhere: equal weights; or the class token beside the mean of the patches
    (Hugging Face's DINOv2 classifier), where it outweighs a single patch by their number: one half each. Without any
    gradient the first slot is taken if there are patches beside it, else all tokens alike; a gradient that is not
    finite gives NaN.

    Args:
        norms: (B, S + P), how much gradient arrived at each token.
        present: (B, S + P) bool, which tokens are queries of the call.
        slots: S, the tokens in front that lie nowhere on the image (class, register, query tokens).
    """
    touched = norms > 0
    broken = (norms * 0).sum(dim=1, keepdim=True)  # NaN where a norm is not finite
    untouched = torch.where(present[:, slots:].any(dim=1, keepdim=True), _first_slot(present, slots), present)
    touched = torch.where(touched.any(dim=1, keepdim=True), touched, untouched).to(norms.dtype)
    in_front, patches = _normalised(touched[:, :slots]), _normalised(touched[:, slots:])
    by_group = _normalised(torch.cat([in_front, patches], dim=1))
    # Halfway, on a logarithmic scale, between equal size and as many times as large as there are patches.
    number = present[:, slots:].sum(dim=1)
    apart = (norms[:, :slots] * in_front).sum(dim=1) > (norms[:, slots:] * patches).sum(dim=1) * number.sqrt()
    return torch.where(apart.unsqueeze(1), by_group, _normalised(touched)) + broken


def _first_slot(present: Tensor, slots: int) -> Tensor:
    """The first slot that holds one of these tokens (B, S + P) alone; without any, all of them."""
    tokens = torch.arange(present.shape[1], device=present.device)
    first = torch.where(present & (tokens < slots), tokens, slots).amin(dim=1, keepdim=True)
    return present & torch.where(first < slots, tokens == first, True)


def _normalised(weights: Tensor) -> Tensor:
    """Each row divided by its sum, where that is not zero."""
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(1.0)
