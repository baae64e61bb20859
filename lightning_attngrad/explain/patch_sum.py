"""The logit as the sum over patches that it is in a Hindered Transformer (arXiv 2502.17196)."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_attngrad.attention import CONSERVATIVE, AttentionCall, Cut, UnsupportedModelError, outside_autocast
from lightning_attngrad.explain.flow import first_tensors
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.placing import carry_tokens, scatter_tokens
from lightning_attngrad.explain.propagation import Terms, weighted_rows
from lightning_attngrad.explain.registry import TokenScores, register_method

#: Name of the part that belongs to no block and no patch, shared out equally.
SHARED = "shared equally"


@register_method(
    "patch_sum", source="arXiv 2502.17196", start="embedding", rules=CONSERVATIVE, signed=True, class_sensitive=True
)
def patch_sum(forward: ForwardPass, seeds: Seeds) -> TokenScores:
    """What each patch adds to Φ in each block: attention times its gradient, summed over heads, by the class token.

    For a model in which nothing but the class token attends, and to patches that never attend themselves, this is no
    approximation: the class token is a running sum of what it reads, and under the rules of ``conservative`` (the last
    normalisation with the token's own mean and variance) Φ is linear in it. What belongs to no patch (the class token
    at the start, biases) is shared out equally. The scores sum to Φ.

    Raises:
        UnsupportedModelError: for a model in which patches attend, or others than one class token do.
    """
    _check(forward)
    reader = _Reader(forward)
    forward.tap.on_gradient = reader
    try:
        seeds.gradients_at(first_tensors(forward.tap.calls))
    finally:
        forward.tap.on_gradient = None
    slots, grid = forward.places.slots, forward.places.grid
    parts = [reader.added[number] for number in sorted(reader.added)]
    if not parts:
        raise UnsupportedModelError("model: no gradient reaches its attention, so there is no sum over patches")
    found = torch.stack(parts, dim=2)  # (B, 1, L, S + h·w)
    cells = found.shape[-1] - slots
    rest = seeds.value.detach().to(found.dtype) - found.sum(dim=(1, 2, 3))
    shared = torch.zeros_like(found[:, :, :1])
    shared[..., slots:] = (rest / cells)[:, None, None, None]
    layers = torch.cat([found, shared], dim=2)
    scores = layers.sum(dim=2)
    names = tuple(forward.places.calls[number].name for number in sorted(reader.added))
    return TokenScores(
        scores,
        zero_gradient=found.flatten(1).eq(0).all(dim=1),
        layers=layers,
        layer_names=(*names, SHARED),
        relevance=scores[:, 0],
        grid=grid,
    )


class _Reader:
    """Takes the attention calls of one backward pass, and keeps what each adds, (B, 1, S + h·w) on the finest grid."""

    def __init__(self, forward: ForwardPass) -> None:
        self.added: dict[int, Tensor] = {}
        self._forward = forward
        self._numbers = {call.name: number for number, call in enumerate(forward.places.calls)}

    @torch.no_grad()
    def __call__(self, call: AttentionCall, gradient: Tensor) -> None:
        forward, number = self._forward, self._numbers[call.name]
        places, slots = forward.places.calls[number], forward.places.slots
        if places.kind != "tokens":
            return
        rows, _, queries, _ = call.shape
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        ones = torch.ones(rows, 1, places.keys.place.shape[1], queries, device=gradient.device, dtype=dtype)

        def terms(part: AttentionCall, cut: Cut) -> Terms:
            product = part.attention_gradient(cut.block, gradient[cut.rows, cut.heads]).mul_(part.attention(cut.block))
            yield cut.of(ones), product

        with outside_autocast(gradient.device):
            of_keys = weighted_rows(call, places.keys, ones, terms, forward.memory_budget, (0, queries))
            state = scatter_tokens(of_keys, places.keys, slots, forward.batch)
            self.added[number] = carry_tokens(state, slots, places.keys.grid, forward.places.grid)


def _check(forward: ForwardPass) -> None:
    """Refuse models that are no sum over patches."""
    slots = forward.places.slots
    for call in forward.places.calls:
        if not call.counts or call.kind != "tokens":
            continue
        reason = None
        if bool((call.queries.place >= slots).any()) or call.shape[2] != 1:
            reason = "others than one class token attend there"
        elif call.values_of:
            reason = "it reads tokens that have attended before"
        if reason is not None:
            raise UnsupportedModelError(
                f"model: its output is no sum over patches: in {call.name!r} {reason}. method='patch_sum' is for "
                "models whose class token alone attends (lightning_attngrad.models has a Hindered Transformer); use "
                "method='guided_relevance' or 'libragrad'"
            )
