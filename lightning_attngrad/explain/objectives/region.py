"""Objective: the share of the last attention that falls inside a mask."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_attngrad.attention import AttentionCall, ExplicitAttentionCall, FusedAttentionCall, outside_autocast
from lightning_attngrad.attention.places import CallPlaces
from lightning_attngrad.explain.flow import sum_of
from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives.base import Objective, Seeds
from lightning_attngrad.explain.objectives.classes import Logit
from lightning_attngrad.explain.placing import gather_queries, gather_tokens, in_cells, sum_by_image, within_area
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.explain.pooling import last_attention
from lightning_attngrad.state import outside_inference


@dataclass(frozen=True, eq=False)
class Region(Objective):
    """The share of the last attention that falls inside a mask: guided from outside by place, not by class.

    ``Φ = Σ_i w_i mean_h Σ_{j in mask} A_L[h, i, j]`` with w the weights by which tokens are pooled; the mean of these
    where several calls are last (side by side, or of several towers). The target only decides which tokens count as
    pooled; Φ itself knows no class.

    Args:
        mask: (H, W), (B, H, W) of the images, or of any grid over the part of them that the map covers
            (:attr:`Explanation.area`); True or 1 inside. None leaves it to whoever asks: the monitors take the masks
            of their images.
    """

    mask: Tensor | None = None

    @property
    def lacks(self) -> Literal["masks"] | None:
        return "masks" if self.mask is None else None

    def filled(self, found: Tensor) -> Region:
        return replace(self, mask=found)

    def check(self) -> None:
        if self.mask is None:
            raise ValueError(
                "objective: Region() has no mask; expected Region(mask), a tensor (H, W) or (B, H, W) that is True "
                "inside. Only monitors fill it in, from the masks of their images"
            )

    def plain(self) -> Plain:
        return {"region": plain(self.mask)}

    def of_images(self, indices: Tensor) -> Region:
        mask = self.mask
        if mask is None or mask.dim() < 3 or len(mask) == 1:
            return self
        return replace(self, mask=mask[indices.to(mask.device)])

    def seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        self.check()
        with outside_autocast(forward.tap.calls[-1].tensor.device):
            return self._seeds(forward, target)

    def _seeds(self, forward: ForwardPass, target: Tensor | None) -> Seeds:
        logit = Logit().value(forward, target)
        # Only the head behind the last attention is walked back for this: it tells which tokens are pooled.
        last = last_attention(forward, (logit,), (torch.ones_like(logit),), retain_graph=True)
        values, outputs, given = [], [], []
        for number, weights in last.weights.items():
            call, places = forward.tap.calls[number], forward.places.calls[number]
            known = self._known(forward, call, places)
            at_attention = gather_queries(weights / len(last.weights), places, forward.places.slots)
            at_attention = at_attention[:, 0].unsqueeze(-1).expand(-1, call.shape[1], -1, -1)  # (R, H, N, 1)
            if isinstance(call, ExplicitAttentionCall):
                by_row, graph = _at_probabilities(call, known, at_attention)
            else:
                by_row, graph = _through_scores(call, known, at_attention, forward.memory_budget)  # type: ignore[arg-type]
                given.append((known, at_attention))
            values.append(sum_by_image(by_row, places.queries, forward.batch))
            outputs += graph
        return Seeds(
            sum_of(values),
            tuple(tensor for tensor, _ in outputs),
            tuple(gradient.to(tensor.dtype) for tensor, gradient in outputs),
            given=tuple(given),
            pooled=last.weights,
        )

    def _known(self, forward: ForwardPass, call: AttentionCall, places: CallPlaces) -> _RegionCall:
        """The call with the mask as its gradient: 1 at keys inside, by area, 0 outside and at keys in slots."""
        mask = outside_inference(torch.as_tensor(self.mask, dtype=torch.float32, device=call.tensor.device))
        if mask.dim() not in (2, 3) or (mask.dim() == 3 and len(mask) not in (1, forward.batch)):
            raise ValueError(f"mask: got shape {tuple(mask.shape)}; expected (H, W) or ({forward.batch}, H, W)")
        slots, grid = forward.places.slots, places.keys.grid
        inside = mask.new_zeros(forward.batch, 1, slots)
        if grid is not None:
            mask = within_area(mask, forward.places.area).expand(forward.batch, -1, -1)
            cells = in_cells(mask, grid, forward.places).flatten(1)  # (B, h·w)
            inside = torch.cat([inside, cells.unsqueeze(1)], dim=2)
        at_keys = gather_tokens(inside, places.keys, slots)[:, 0]  # (R, G, M)
        return _RegionCall(call.name, call.tensor, call, at_keys / places.heads)


def _at_probabilities(
    call: ExplicitAttentionCall, known: _RegionCall, at_attention: Tensor
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Start at the probabilities, a tensor of the graph: Φ of each row (R,), and that tensor with its gradient."""
    every = slice(0, call.shape[2])
    whole = known.attention_gradient(every, at_attention)  # (R, H, N, M)
    value = (call.attention(every) * whole).sum(dim=(1, 2, 3))
    return value, [(call.tensor, whole.reshape(call.tensor.shape))]


def _through_scores(
    call: FusedAttentionCall, known: _RegionCall, at_attention: Tensor, memory_budget: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Start at queries and keys: the probabilities are no tensor of the graph under a fused kernel."""
    rows, heads, _, _ = call.shape
    value = torch.zeros(rows, device=at_attention.device, dtype=at_attention.dtype)
    at_query = torch.zeros_like(call.query, dtype=at_attention.dtype)
    at_key = torch.zeros_like(call.key, dtype=at_attention.dtype)
    for block in call.blocks(memory_budget):
        attention = call.attention(block)
        product = attention * known.attention_gradient(block, at_attention)
        mass = product.sum(dim=-1, keepdim=True)
        value += mass.sum(dim=(1, 2, 3))
        at_scores = (product - attention * mass) * call.scale  # ∂Φ/∂S = A ⊙ (G − rowsum(A ⊙ G))
        key = call.key.detach().to(at_scores.dtype).repeat_interleave(heads // call.key.shape[1], dim=1)
        at_query[:, :, block] = at_scores @ key
        to_keys = at_scores.transpose(-1, -2) @ call.query.detach()[:, :, block].to(at_scores.dtype)
        at_key += to_keys.unflatten(1, (call.key.shape[1], -1)).sum(dim=2)
    graph = [(call.query, at_query), (call.key, at_key)]
    return value, [(tensor, gradient) for tensor, gradient in graph if tensor.requires_grad]


@dataclass(eq=False)
class _RegionCall(AttentionCall):
    """A last attention call, whose gradient at the probabilities is the mask itself: ``w_i·mask_j / H``."""

    inner: AttentionCall
    inside: Tensor  # mask / H at the keys, (R, H or 1, M)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.inner.shape

    def attention(self, rows: slice) -> Tensor:
        return self.inner.attention(rows)

    def attention_gradient(self, rows: slice, gradient: Tensor) -> Tensor:
        return gradient[:, :, rows] * self.inside[:, :, None, :]

    def part(self, images: slice, heads: slice) -> _RegionCall:
        inside = self.inside[images, heads if self.inside.shape[1] > 1 else slice(None)]
        return _RegionCall(self.name, self.tensor, self.inner.part(images, heads), inside)
