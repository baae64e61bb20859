"""A loss on attention: look where it is plausible, and nowhere else.

Source: Bhalgat et al., arXiv 2211.15107, epipolar guidance of cross-attention; the formula is in METHODS, section
"Guidance while training".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lightning_attngrad.attention import AttentionCall, ExplicitAttentionCall, FusedAttentionCall, outside_autocast
from lightning_attngrad.guidance.pairs import PlausiblePairs

Plausible = Tensor | PlausiblePairs


@dataclass(frozen=True, eq=False)
class AttentionGuidanceLoss:
    """What :func:`attention_guidance_loss` found, means over heads, queries, images and calls.

    Attributes:
        loss: scalar float32 or wider, in the graph; 0 where no query has a plausible key.
        mass_inside: scalar, share of the attention inside, outside the graph; NaN where no query has a plausible key.
        mass_outside: scalar, the rest.
    """

    loss: Tensor
    mass_inside: Tensor
    mass_outside: Tensor


def attention_guidance_loss(
    calls: AttentionCall | Sequence[AttentionCall],
    plausible: Plausible | Sequence[Plausible] | Mapping[str, Plausible],
    *,
    largest: float = 1.0,
    memory_budget: int | None = None,
) -> AttentionGuidanceLoss:
    """Binary cross-entropy that pushes the mass outside to 0 and the largest value inside to 1.

    Of the probabilities ``A`` of one query and head, with its plausible keys ``P``::

        loss = −log(1 − Σ_{j ∉ P} A_j) − largest · log(max_{j ∈ P} A_j)

    It is the mean over the heads and those queries of an image that have a plausible key, then over the images, then
    over the calls. A query without any (its epipolar line misses the other picture) adds nothing, and an image of such
    queries alone counts as 0. So the loss of a batch is the mean of those of its parts, and processes that share a
    batch have the gradient of one.

    The gradient reaches queries and keys, and through them the projections and all that lies before. ``A`` is rebuilt
    from queries and keys in blocks of rows, and the gradient is found in the same go, so that nothing of size N_q × N_k
    is kept: fused kernels stay fused. It is computed in at least float32 whatever autocast is on. Where a model has the
    probabilities of a softmax itself, the gradient reaches those.

    Args:
        calls: as :func:`capture_attention` captures them.
        plausible: bool, broadcastable to (B, N_q, N_k), True where a query may look; or :class:`PlausiblePairs`. One
            for all calls, one for each in order, or one for each by name (only the named calls are guided then).
        largest: weight of the term of the largest value, which asks for one match a query. 0 leaves it free how the
            attention lies inside: right for objects, which cover many patches.
        memory_budget: in bytes, for a block of rows; None follows the device.

    Raises:
        TypeError: for something else than attention calls.
        ValueError: without calls, for masks that do not fit, or for calls whose attention no gradient can reach.

    Example:
        >>> import timm, torch
        >>> from lightning_attngrad.guidance import capture_attention
        >>> model = timm.create_model("test_vit", num_classes=3)
        >>> with capture_attention(model, layers=["blocks.0.attn"]) as calls:
        ...     logits = model(torch.rand(2, 3, 160, 160))
        >>> plausible = torch.zeros(2, 1, 101, dtype=torch.bool)
        >>> plausible[:, :, 1:51] = True  # the upper half of the image, behind the class token
        >>> guidance = attention_guidance_loss(calls, plausible)
        >>> (logits.square().mean() + 0.1 * guidance.loss).backward()
        >>> bool(model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0)
        True
    """
    if not largest >= 0:
        raise ValueError(f"largest: got {largest!r}; expected a number of at least 0")
    pairs = list(_paired([calls] if isinstance(calls, AttentionCall) else list(calls), plausible))
    losses, inside = [], []
    for call, mask in pairs:
        found = _of_call(call, mask, largest, memory_budget)
        losses.append(found[0])
        inside.append(found[1])
    mass = torch.stack(inside)
    counted = mass.isfinite()
    share = torch.where(counted, mass, 0.0).sum() / counted.sum()  # NaN where none counts
    return AttentionGuidanceLoss(torch.stack(losses).mean(), share, 1 - share)


def _paired(
    calls: list[AttentionCall], plausible: Plausible | Sequence[Plausible] | Mapping[str, Plausible]
) -> list[tuple[AttentionCall, PlausiblePairs]]:
    if not calls:
        raise ValueError(
            "calls: got none; expected the attention calls of a forward pass inside capture_attention(model). A model "
            "that is compiled, or that calls a kernel of its own, shows none"
        )
    masks: list[Plausible]
    if isinstance(plausible, Mapping):
        missing = sorted(set(plausible) - {call.name for call in calls})
        if missing or not plausible:
            raise ValueError(
                f"plausible: got masks of {missing}, which no captured call is named; expected some of "
                f"{[call.name for call in calls]}"
            )
        calls = [call for call in calls if call.name in plausible]
        masks = [plausible[call.name] for call in calls]
    elif isinstance(plausible, Tensor | PlausiblePairs):
        masks = [plausible] * len(calls)
    else:
        masks = list(plausible)
    if len(masks) != len(calls):
        raise ValueError(f"plausible: got {len(masks)} masks for {len(calls)} calls; expected one for each, or one")
    pairs = [PlausiblePairs(mask) if isinstance(mask, Tensor) else mask for mask in masks]
    for call, mask in zip(calls, pairs, strict=True):
        _check_fit(call, mask)
    return list(zip(calls, pairs, strict=True))


def _check_fit(call: AttentionCall, pairs: PlausiblePairs) -> None:
    rows, _, queries, keys = call.shape
    expected = (rows, queries if pairs.queries is None else len(pairs.queries), keys)
    for name, mask in (("plausible", pairs.inside), ("outside", pairs.outside)):
        if mask is None:
            continue
        try:
            fits = torch.broadcast_shapes(mask.shape, expected) == expected
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: got {tuple(mask.shape)} for the attention of {call.name!r}; expected a shape that is "
                f"broadcastable to {expected}: images (or windows), queries, keys"
            )


def _of_call(
    call: AttentionCall, pairs: PlausiblePairs, largest: float, memory_budget: int | None
) -> tuple[Tensor, Tensor]:
    """The loss of one call, and the mass inside (NaN where no query counts), both scalars."""
    device = call.tensor.device
    rows, heads, queries, _ = call.shape
    queries = queries if pairs.queries is None else len(pairs.queries)
    wide = torch.promote_types(call.tensor.dtype, torch.float32)
    weights = pairs.image_weights(rows, queries, torch.empty(0, dtype=wide, device=device))  # (R, n)
    inside = pairs.inside.to(device)
    counted = None if pairs.outside is None else pairs.outside.to(device) | inside
    chosen = None if pairs.queries is None else pairs.queries.to(device)
    blocks = list(call.blocks(memory_budget, 0, queries))
    ask = _Asked(inside, counted, chosen, weights / heads, largest, blocks, torch.is_grad_enabled())
    if isinstance(call, FusedAttentionCall):
        if not (call.query.requires_grad or call.key.requires_grad):
            _check_reachable(call)
        shared = call.query.shape[1] // call.key.shape[1]  # query heads that share a key head
        key = call.key if shared == 1 else call.key.repeat_interleave(shared, dim=1)
        total, mass = _FromQueriesAndKeys.apply(call.query, key, call, ask)
    elif isinstance(call, ExplicitAttentionCall):
        if not call.tensor.requires_grad or call.tensor.shape != call.shape:
            _check_reachable(call)
        total, mass = _FromProbabilities.apply(call.tensor, ask)
    else:
        raise TypeError(f"calls: got {type(call).__name__}; expected the calls of capture_attention(model)")
    return total, mass


def _check_reachable(call: AttentionCall) -> None:
    if not torch.is_grad_enabled():
        return  # a validation step: the number is all that is wanted
    raise ValueError(
        f"calls: no gradient leads to the attention of {call.name!r}. Capture it with capture_attention(model), with "
        "gradients on and parameters that learn; activation checkpointing has to be that of use_reentrant=False; or "
        "leave this layer out (layers=)"
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked of a call.

    Attributes:
        inside: bool, broadcastable to (R, n, M).
        counted: likewise, inside or outside; None is everything.
        queries: numbers of the guided query tokens, (n,); None is all.
        weights: of each query, (R, n), which sum to 1 over all heads.
        largest: weight of the term of the largest value.
        blocks: slices of the n queries.
        learns: whether a gradient is wanted.
    """

    inside: Tensor
    counted: Tensor | None
    queries: Tensor | None
    weights: Tensor
    largest: float
    blocks: list[slice]
    learns: bool

    def rows(self, block: slice) -> slice | Tensor:
        """Which query tokens of the call a block is."""
        return block if self.queries is None else self.queries[block]

    def of(self, mask: Tensor, block: slice) -> Tensor:
        """A mask for a block and every head, broadcastable to (R, H, block, M)."""
        mask = mask if mask.dim() < 2 or mask.shape[-2] == 1 else mask[..., block, :]
        return mask.unsqueeze(-3) if mask.dim() == 3 else mask

    def of_scores(
        self, scores: Tensor, block: slice, *, gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Loss and mass inside, weighted and summed; the sum of the weights; and the gradient at the scores.

        With log-sum-exps over the keys that count and over those inside the loss is
        ``(1 + largest)·LSE − LSE_inside − largest·max_inside``: finite however little mass there is inside.

        Args:
            scores: (R, H, block, M), of which the probabilities are the softmax; written to.
            block: of the guided queries.
            gradient: whether it is wanted.
        """
        inside = self.of(self.inside, block)
        if self.counted is not None:
            scores = scores.masked_fill_(~self.of(self.counted, block), -torch.inf)
        whole = torch.logsumexp(scores, dim=-1, keepdim=True)  # (R, H, block, 1)
        of_inside = scores.masked_fill(~inside, -torch.inf)
        part = torch.logsumexp(of_inside, dim=-1, keepdim=True)
        # Hidden from a query by the model's own mask: there is nothing that it could do.
        sees = part.isfinite()
        weights = torch.where(sees.squeeze(-1), self.weights[:, None, block].to(scores.dtype), 0.0)  # (R, H, block)
        most, where = of_inside.max(dim=-1, keepdim=True)
        log_share = torch.where(sees, part - whole, 0.0).squeeze(-1)
        loss = -log_share
        if self.largest:
            loss = loss - self.largest * torch.where(sees, most - whole, 0.0).squeeze(-1)
        found = ((weights * loss).sum(), (weights * log_share.exp()).sum(), weights.sum())
        if not gradient:
            return *found, None
        safe_whole, safe_part = (torch.where(sees, each, torch.inf) for each in (whole, part))
        of_inside = of_inside.sub_(safe_part).exp_()
        at_scores = scores.sub_(safe_whole).exp_().mul_(1 + self.largest).sub_(of_inside)
        if self.largest:
            at_scores.scatter_add_(-1, where, torch.full_like(most, -self.largest))
        return *found, at_scores.mul_(weights.unsqueeze(-1))


class _FromQueriesAndKeys(torch.autograd.Function):
    """Of queries (R, H, N, d) and keys (R, H, M, d): the gradient is found in the forward pass, block by block."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, call: FusedAttentionCall, ask: _Asked) -> tuple[Tensor, Tensor]:
        at_query = at_key = None
        sums = []
        for block in ask.blocks:
            rows = ask.rows(block)
            scores = call.scores(rows)  # (R, H, block, M), float32 or wider
            if (hidden := call.hidden(rows)) is not None:
                scores.masked_fill_(hidden, -torch.inf)
            *found, at_scores = ask.of_scores(scores, block, gradient=ask.learns)
            sums.append(torch.stack(found))
            if at_scores is None:
                continue
            with outside_autocast(query.device):
                if at_query is None or at_key is None:
                    at_query, at_key = (torch.zeros_like(each, dtype=scores.dtype) for each in (query, key))
                at_query[:, :, rows] = (at_scores @ key.to(scores.dtype)).mul_(call.scale)
                at_key += at_scores.mT @ query[:, :, rows].to(scores.dtype).mul(call.scale)
        ctx.save_for_backward(at_query, at_key)
        ctx.dtypes = query.dtype, key.dtype
        return _loss_and_mass(ctx, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        found = [
            (each * at_loss).to(dtype) if needed else None
            for each, dtype, needed in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad, strict=False)
        ]
        return *found, None, None


class _FromProbabilities(torch.autograd.Function):
    """Of probabilities (R, H, N, M) that the model keeps anyway: the gradient at them is found in the backward pass."""

    @staticmethod
    def forward(ctx: Any, probabilities: Tensor, ask: _Asked) -> tuple[Tensor, Tensor]:
        sums = [
            torch.stack(ask.of_scores(_logarithm(probabilities[:, :, ask.rows(block)]), block, gradient=False)[:3])
            for block in ask.blocks
        ]
        ctx.save_for_backward(probabilities)
        ctx.ask = ask
        return _loss_and_mass(ctx, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, at_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (probabilities,), ask = ctx.saved_tensors, ctx.ask
        at_probabilities = torch.zeros_like(probabilities)
        for block in ask.blocks:
            rows = ask.rows(block)
            scores = _logarithm(probabilities[:, :, rows])
            seen, some = scores.isfinite(), scores.exp()
            at_scores = ask.of_scores(scores, block, gradient=True)[3]
            # d log A = dA / A. Behind it the softmax multiplies by A again.
            at_some = torch.where(seen, at_scores / some, 0.0) * at_loss
            at_probabilities[:, :, rows] = at_some.to(probabilities.dtype)
        return at_probabilities, None


def _loss_and_mass(ctx: Any, sums: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Of all blocks, each with its loss, its mass inside and the sum of its weights; the mass has no gradient."""
    loss, mass, weight = torch.stack(list(sums)).sum(dim=0)
    share = mass / weight
    ctx.mark_non_differentiable(share)
    return loss, share


def _logarithm(probabilities: Tensor) -> Tensor:
    """Scores of which these (…, M) are the softmax, float32 or wider; −∞ where nothing of a key is left."""
    wide = probabilities.detach().to(torch.promote_types(probabilities.dtype, torch.float32), copy=True)
    least = _LEAST_OF_HALF if probabilities.dtype == torch.float16 else _LEAST
    return wide.masked_fill_(wide < least, 0).log_()


#: Of a probability, whose inverse a gradient can hold: what is less is hidden by the model, or as good as.
_LEAST, _LEAST_OF_HALF = 1e-20, 1e-4
