"""What the attention heads of each layer do: how widely and how far they look, and what they leave to a few tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import AttentionCall, UnsupportedModelError, outside_autocast
from lightning_attngrad.attention.places import CallPlaces, Grid, TokenPlaces
from lightning_attngrad.explain.forward_pass import forward_pass
from lightning_attngrad.explain.placing import scatter_tokens, sum_by_image

#: How many times the median length makes an outlier. The published cut of 150 is that of one family; this has no unit.
OUTLIER = 4.0
#: Less attention than this is none.
_NOTHING = 1e-12


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of the attention of patches to patches in a batch: B images, L layers, H heads.

    In a layer with fewer heads than others, those that it has not are NaN. Tokens of padding do not count, neither as
    queries nor as keys.

    Attributes:
        layer_names: the model's own names for the layers.
        entropy: (B, L, H), mean over queries of ``−Σ_j A log A / log N`` over the N keys that are no padding, of which
            A is made a share: 0 looks at one token, 1 at all alike.
        distance: (B, L, H), mean distance between a patch and the patches it attends to, weighted by the attention
            (Dosovitskiy et al., arXiv 2010.11929, figure 7); in patches of the layer's own grid, that of its queries.
        prefix_mass: (B, L, H), share of the attention of the patches (as queries) that goes to tokens that lie nowhere
            on the image (class, distillation, register tokens); 0 in a model without such tokens.
        high_norm_share: (B, L), share of the patches whose token is longer than `OUTLIER` times the median patch of
            the image, where it enters the last normalisation in front of the layer: in a pre-norm ViT the residual
            stream at the block's input. Such patches hold little of their place and serve as registers (Darcet et
            al., arXiv 2309.16588, who cut at a fixed length of 150). NaN where no normalisation comes before, or its
            tokens are not those of the layer.
    """

    layer_names: tuple[str, ...]
    entropy: Tensor
    distance: Tensor
    prefix_mass: Tensor
    high_norm_share: Tensor


def head_statistics(
    model: nn.Module,
    images: Tensor,
    *,
    forward: Callable[[Tensor], Any] | None = None,
    memory_budget: int | None = None,
) -> HeadStatistics:
    """Statistics of every attention head, from one forward pass that keeps no activations.

    Layers are the attention calls in which patches attend to patches; those between channels, of a class token alone or
    of an attention pooling are left out. Where patches lie is traced as :func:`lightning_attngrad.explain` does.

    Args:
        model: as for :func:`lightning_attngrad.explain`.
        images: (B, C, H, W), normalised as the model takes them.
        forward: called instead of ``model(images)``.
        memory_budget: bytes for the temporaries of a block of attention rows; None as for ``explain``.

    Raises:
        UnsupportedModelError: for a model without readable attention between patches.
        NonFiniteOutputError: if the output is NaN or infinite.

    Example:
        >>> import timm
        >>> statistics = head_statistics(timm.create_model("test_vit"), torch.rand(2, 3, 160, 160))
        >>> statistics.entropy.shape, bool(statistics.entropy.max() <= 1)
        (torch.Size([2, 6, 2]), True)
    """
    with (
        forward_pass(model, images, forward=forward, memory_budget=memory_budget, backward=False) as ran,
        torch.no_grad(),
        outside_autocast(images.device),
    ):
        found = [
            statistics_of_call(call, places, ran.places.slots, ran.batch, ran.memory_budget)
            for call, places in zip(ran.tap.calls, ran.places.calls, strict=True)
            if places.kind == "tokens" and places.queries.grid is not None and places.keys.grid is not None
        ]
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__}: in none of its {len(ran.places.calls)} attention calls do patches attend to "
            "patches, so there are no statistics of its heads"
        )
    return HeadStatistics(
        layer_names=tuple(layer.name for layer in found),
        entropy=_padded([layer.entropy for layer in found]),
        distance=_padded([layer.distance for layer in found]),
        prefix_mass=_padded([layer.prefix_mass for layer in found]),
        high_norm_share=torch.stack([layer.high_norm_share for layer in found], dim=1),
    )


class CallStatistics(NamedTuple):
    """Statistics of one call, (B, H) each, and (B,)."""

    name: str
    entropy: Tensor
    distance: Tensor
    prefix_mass: Tensor
    high_norm_share: Tensor


def statistics_of_call(
    call: AttentionCall, places: CallPlaces, slots: int, batch: int, memory_budget: int
) -> CallStatistics:
    """Statistics of one call in which patches attend to patches, see :class:`HeadStatistics`."""
    rows, heads, _, _ = call.shape
    queries, keys = places.queries, places.keys
    of_query = torch.stack([queries.place >= 0, queries.place >= slots], dim=-1).float()  # (R, G, N, 2)
    any_key, patch_key = keys.place >= 0, keys.place >= slots
    of_key = torch.stack([any_key, patch_key, any_key & ~patch_key], dim=-1).float()  # (R, G, M, 3)
    largest = of_key[..., 0].sum(dim=-1, keepdim=True).clamp_min(2).log()  # (R, G, 1), entropy of all keys alike
    distances = _Distances(places, slots)
    sums = torch.zeros(rows, heads, 3, device=queries.place.device)
    for of_rows, of_heads in call.parts(memory_budget):
        part, at_keys = call.part(of_rows, of_heads), _cut(of_key, of_rows, of_heads)
        for block in part.blocks(memory_budget):
            attention = part.attention(block).float().clamp_min_(0)  # (r, h, n, M); heads that are mixed go below 0
            travelled = (attention * distances.between(of_rows, of_heads, block)).sum(dim=-1)
            seen, by_patches, by_slots = (attention @ at_keys).unbind(-1)  # (r, h, n)
            entropy = (torch.special.entr(attention) @ at_keys[..., :1]).squeeze(-1)
            entropy = torch.where(seen > 0, entropy / seen + seen.log(), 0)  # of the shares attention / seen
            asking, of_patch = _cut(of_query, of_rows, of_heads)[:, :, block].unbind(-1)  # (r, g, n)
            of_block = [
                entropy / _cut(largest, of_rows, of_heads) * asking,
                travelled / by_patches.clamp_min(_NOTHING) * of_patch,
                by_slots / seen.clamp_min(_NOTHING) * of_patch,
            ]
            sums[of_rows, of_heads] += torch.stack([one.sum(dim=-1) for one in of_block], dim=-1)
    asking, of_patch = of_query.sum(dim=2).unbind(-1)  # (R, G)
    counts = torch.stack([asking, of_patch, of_patch], dim=-1).expand(-1, heads, -1)  # (R, H, 3)
    means = sum_by_image(sums, queries, batch) / sum_by_image(counts, queries, batch)
    entropy, distance, prefix_mass = means.unbind(-1)
    return CallStatistics(call.name, entropy, distance, prefix_mass, _high_norm_share(call, queries, slots, batch))


def _cut(values: Tensor, rows: slice, heads: slice) -> Tensor:
    """Values (R, G, …) of these rows and heads, (r, g, …)."""
    return values[rows, heads if values.shape[1] > 1 else slice(None)]


class _Distances:
    """Distances between the centres of patches, in patches of the grid of a call's queries; 0 to what is no patch.

    Args:
        places: of the call.
        slots: S.
    """

    def __init__(self, places: CallPlaces, slots: int) -> None:
        grid = places.queries.grid
        self._alike = places.queries.in_order and places.keys.in_order  # in every row
        tokens = [places.queries, places.keys]
        rows = slice(0, 1) if self._alike else slice(None)
        self._queries, self._keys = (_centres(one.place[rows], one.grid, slots, grid) for one in tokens)
        self._known = (places.keys.place[rows] >= slots).unsqueeze(2)  # (R, G, 1, M)
        self._whole = self._of(self._queries, self._keys, self._known) if self._alike else None

    def between(self, rows: slice, heads: slice, block: slice) -> Tensor:
        """Of these query tokens to all keys, (r, g, n, M)."""
        if self._whole is not None:
            return self._whole[:, :, block]
        at_queries = _cut(self._queries, rows, heads)[:, :, block]
        return self._of(at_queries, _cut(self._keys, rows, heads), _cut(self._known, rows, heads))

    @staticmethod
    def _of(queries: Tensor, keys: Tensor, known: Tensor) -> Tensor:
        down, across = (queries.unsqueeze(3) - keys.unsqueeze(2)).unbind(-1)
        return torch.hypot(down, across) * known


def _centres(place: Tensor, grid: Grid | None, slots: int, unit: Grid | None) -> Tensor:
    """Row and column of the centres of cells (…) of a grid, in units of the cells of another, (…, 2)."""
    assert grid is not None
    assert unit is not None
    cells = place - slots
    row, column = torch.div(cells, grid[1], rounding_mode="floor"), cells % grid[1]
    return torch.stack([(row + 0.5) * (unit[0] / grid[0]), (column + 0.5) * (unit[1] / grid[1])], dim=-1).float()


def _padded(layers: list[Tensor]) -> Tensor:
    """Layers (B, H) of different numbers of heads, (B, L, H); NaN where a layer has no such head."""
    most = max(layer.shape[1] for layer in layers)
    return torch.stack([F.pad(layer, (0, most - layer.shape[1]), value=torch.nan) for layer in layers], dim=1)


def _high_norm_share(call: AttentionCall, queries: TokenPlaces, slots: int, batch: int) -> Tensor:
    """Share of outliers among the patches that enter a call, (B,); NaN where these are not its query tokens."""
    norms = call.token_norms
    if norms is None or norms.shape != queries.place[:, 0].shape or queries.place.shape[1] > 1:
        return torch.full((batch,), torch.nan, device=queries.place.device)
    by_place = scatter_tokens(norms[:, None, None], queries, slots, batch)  # (B, 1, S + h·w)
    of_patches = by_place[:, 0, slots:]
    middle = (of_patches.shape[1] - 1) // 2  # sorted, as no GPU kernel of the median is deterministic
    median = of_patches.sort(dim=1).values[:, middle : middle + 1]
    return (of_patches > OUTLIER * median).float().mean(dim=1)
