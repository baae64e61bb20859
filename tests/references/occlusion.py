"""Where the tokens of every attention product lie on the image, by looking: change some pixels and see what moves.

The model is a twin in float64 whose attention is cut (every product gives zeros, so that only what passes beside the
attention is followed) and whose convolution kernels are flat: places belong to the architecture and not to the weights,
and under a flat kernel what a token holds is centred where the token lies. Bands of pixels over the whole width, then
over the whole height, are replaced one at a time. How much each token moves with each band gives its centre; centres that
fall into well separated rows and columns are a grid. What never moves lies nowhere: a class token, or padding. Whatever
is not as clear as that is refused with `Undecided`: this is a judge and must not guess.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.references.attention_products import AttentionProduct, attention_products, rows_of

Grid = tuple[int, int]
#: A token: ("cell", image, row, column), ("slot", image, name, number), or None for padding.
Token = tuple[Any, ...] | None

#: Bands are so many pixels wide, or more where there would be too many.
_BAND, _MOST_BANDS = 4, 40
#: Names of parameters that are tokens themselves.
_TOKENS = ("token", "latent", "probe", "query", "register", "cls", "det_")


class Undecided(Exception):
    """The oracle does not see clearly enough to say where the tokens lie."""


@dataclass(frozen=True, eq=False)
class ProductPlaces:
    """Tokens of one product, whose probabilities have been flattened to (R, N, M).

    Attributes:
        queries: R lists of N tokens.
        keys: R lists of M tokens.
        query_grid: of the query tokens, None where none lies on the image.
        key_grid: likewise.
        heads: (R,) in how many rows the same queries read the same keys.
        kind: ``tokens``, or ``channels`` where channels read channels.
    """

    queries: list[list[Token]]
    keys: list[list[Token]]
    query_grid: Grid | None
    key_grid: Grid | None
    heads: list[int]
    kind: str


@dataclass(frozen=True, eq=False)
class _Moved:
    """How much each row (R, N) of a tensor moves: with bands from top to bottom, from left to right, with each image.

    Attributes:
        down: (bands, R, N).
        across: (bands, R, N).
        image: (B, R, N).
        names: parameter → (R, N).
    """

    down: Tensor
    across: Tensor
    image: Tensor
    names: dict[str, Tensor]


def places(
    model: nn.Module, images: Tensor, forward: Callable[[nn.Module, Tensor], object] | None = None
) -> list[ProductPlaces]:
    """Places of every attention product of ``model`` on ``images`` (B, C, H, W), in order.

    Raises:
        Undecided: where they cannot be seen.
    """
    twin = _flat_twin(model)
    run = forward or (lambda module, pixels: module(pixels))
    images = images.double()
    other = torch.randn(images.shape, generator=torch.Generator().manual_seed(7), dtype=images.dtype)

    def look(pixels: Tensor) -> list[tuple[Tensor | None, Tensor]]:
        torch.manual_seed(0)
        with torch.no_grad(), attention_products(_zeros) as products:
            run(twin, pixels)
        return [(None if p.query is None else rows_of(p.query), rows_of(p.value)) for p in products]

    clean = look(images)
    channel = _of_channels(clean, look, images, other)
    down = [look(_occluded(images, other, -2, band)) for band in _bands(images.shape[-2])]
    across = [look(_occluded(images, other, -1, band)) for band in _bands(images.shape[-1])]
    by_image = [look(torch.where(_only(images, b), other, images)) for b in range(len(images))]
    by_name = _by_parameter(twin, look, images)
    shapes = _shapes(twin, run, images)
    found = []
    for number, (query, value) in enumerate(clean):
        if any(len(looked) != len(clean) for looked in (*down, *across)):
            raise Undecided("the number of products changes with the pixels")

        def moved(side: int, number: int = number) -> _Moved:
            def size(looked: list[tuple[Tensor | None, Tensor]]) -> Tensor:
                before, after = clean[number][side], looked[number][side]
                assert before is not None
                assert after is not None
                return (after - before).square().sum(-1)

            return _Moved(
                torch.stack([size(looked) for looked in down]),
                torch.stack([size(looked) for looked in across]),
                torch.stack([size(looked) for looked in by_image]),
                {name: size(looked) for name, looked in by_name.items()},
            )

        if channel[number]:
            found.append(ProductPlaces([], [], None, None, [], "channels"))
            continue
        keys, key_grid = _tokens(moved(1), f"keys of product {number}")
        rows, asked = shapes[number]
        if query is not None and query.shape[:2] == (rows, asked):
            queries, query_grid = _tokens(moved(0), f"queries of product {number}")
        elif asked == value.shape[1]:
            queries, query_grid = keys, key_grid
        else:
            raise Undecided(f"product {number}: its queries were not seen")
        if asked == value.shape[1] and query_grid != key_grid and _shared_by_windows(queries, keys):
            queries, query_grid = keys, key_grid  # every window asks the same: its outputs go to its own tokens
        alike = Counter((tuple(q), tuple(k)) for q, k in zip(queries, keys, strict=True))
        heads = [alike[tuple(q), tuple(k)] for q, k in zip(queries, keys, strict=True)]
        found.append(ProductPlaces(queries, keys, query_grid, key_grid, heads, "tokens"))
    return found


def _zeros(number: int, product: AttentionProduct) -> Tensor:
    return torch.zeros_like(product.output)


def _flat_twin(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight.mean((-2, -1), keepdim=True).expand_as(module.weight))
    return twin


def _bands(length: int) -> list[slice]:
    width = max(_BAND, math.ceil(length / _MOST_BANDS))
    return [slice(start, start + width) for start in range(0, length, width)]


def _occluded(images: Tensor, other: Tensor, axis: int, band: slice) -> Tensor:
    changed = images.clone()
    where = (..., band, slice(None)) if axis == -2 else (..., band)
    changed[where] = other[where]
    return changed


def _only(images: Tensor, image: int) -> Tensor:
    return (torch.arange(len(images)) == image).view(-1, 1, 1, 1)


def _shapes(twin: nn.Module, run: Callable[[nn.Module, Tensor], object], images: Tensor) -> list[tuple[int, int]]:
    torch.manual_seed(0)
    with torch.no_grad(), attention_products(_zeros) as products:
        run(twin, images)
    return [tuple(rows_of(p.probabilities).shape[:2]) for p in products]  # type: ignore[misc]


def _of_channels(
    clean: list[tuple[Tensor | None, Tensor]],
    look: Callable[[Tensor], list[tuple[Tensor | None, Tensor]]],
    images: Tensor,
    other: Tensor,
) -> list[bool]:
    """Whether what a product reads are channels: the top of the image then moves all its rows and some of its columns."""
    top = slice(0, max(images.shape[-2] // 4, 1))
    changed = look(_occluded(images, other, -2, top))
    found = []
    for (_, before), (_, after) in zip(clean, changed, strict=True):
        moved = (after - before).square()  # (R, M, d)
        untouched = moved <= 1e-12 * moved.max().clamp_min(1e-300)
        rows, columns = untouched.all(-1).float().mean(), untouched.all(-2).float().mean()
        found.append(bool(columns > 0.1 and columns > 2 * rows))
    return found


def _by_parameter(
    twin: nn.Module, look: Callable[[Tensor], list[tuple[Tensor | None, Tensor]]], images: Tensor
) -> dict[str, list[tuple[Tensor | None, Tensor]]]:
    found = {}
    for name, parameter in twin.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if any(word in last for word in _TOKENS) and parameter.dim() >= 2:
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.add_(torch.randn(kept.shape, generator=torch.Generator().manual_seed(3), dtype=kept.dtype))
                found[name] = look(images)
                parameter.copy_(kept)
    return found


def _tokens(moved: _Moved, what: str) -> tuple[list[list[Token]], Grid | None]:
    """The token that each of (R, N) rows is, and the grid of those that lie on the image."""
    _, rows, number = moved.down.shape
    total = moved.image.sum(0)  # (R, N)
    located = total > 1e-18 * total.max().clamp_min(1e-300)
    everywhere = _flatness(moved.down).minimum(_flatness(moved.across))
    if located.any():
        usual = everywhere[located].median()
        global_ones = located & (everywhere > 0.3) & (everywhere > 10 * usual)
        located &= ~global_ones
    grid: Grid | None = None
    image = moved.image.argmax(0)
    down = across = torch.zeros(rows, number, dtype=torch.long)
    if located.any():
        shares = moved.image.amax(0)[located] / total[located]
        if shares.min() < 0.999:
            raise Undecided(f"{what}: a token holds something of two images")
        down, height = _ranks(_centres(moved.down), located, f"{what}, from top to bottom")
        across, width = _ranks(_centres(moved.across), located, f"{what}, from left to right")
        grid = (height, width)
        for b in range(len(moved.image)):
            here = located & (image == b)
            occupied = set(zip(down[here].tolist(), across[here].tolist(), strict=True))
            if len(occupied) != height * width:
                raise Undecided(f"{what}: {len(occupied)} places on a grid of {height} × {width}")
    tokens: list[list[Token]] = []
    for r in range(rows):
        cells = [
            ("cell", int(image[r, n]), int(down[r, n]), int(across[r, n])) if located[r, n] else None
            for n in range(number)
        ]
        seen = [cell for cell in cells if cell is not None]
        if len(set(seen)) < len(seen):
            raise Undecided(f"{what}: two tokens of a row at one place")
        whole = grid is None or len(seen) == grid[0] * grid[1]
        owner = seen[0][1] if seen else None
        tokens.append(_with_slots(cells, owner, whole, {name: size[r] for name, size in moved.names.items()}))
    return tokens, grid


def _with_slots(cells: list[Any], owner: int | None, whole: bool, moved: dict[str, Tensor]) -> list[Token]:
    """Tokens that lie nowhere, named by the parameter that they come from, or numbered; in part of an image: padding."""
    tokens: list[Token] = []
    numbers: Counter[str] = Counter()
    for n, cell in enumerate(cells):
        if cell is not None:
            tokens.append(cell)
        elif not whole:
            tokens.append(None)
        else:
            name = next((name for name, size in moved.items() if size[n] > 1e-18), "")
            tokens.append(("slot", owner, name, numbers[name]))
            numbers[name] += 1
    return tokens


def _flatness(moved: Tensor) -> Tensor:
    return moved.amin(0) / moved.amax(0).clamp_min(1e-300)


def _centres(moved: Tensor) -> Tensor:
    """Mean band of (bands, R, N), weighted by what moves above the least: statistics of the whole image move all alike."""
    weights = moved - moved.amin(0)
    numbers = torch.arange(len(moved), dtype=moved.dtype).view(-1, 1, 1)
    return (weights * numbers).sum(0) / weights.sum(0).clamp_min(1e-300)


def _ranks(centres: Tensor, located: Tensor, what: str) -> tuple[Tensor, int]:
    """Centres (R, N) fall into groups that lie apart: the number of each one's group, and how many there are."""
    values, order = centres[located].sort()
    gaps = values[1:] - values[:-1]
    if not len(gaps) or values[-1] - values[0] < 0.3:
        groups = torch.zeros_like(order)
    else:
        largest = gaps.sort(descending=True).values.clamp_min(1e-9)
        # The jump between the least gap that separates two groups and the largest inside one.
        jumps = largest[:-1] / largest[1:]
        count = int(jumps.argmax()) + 1 if len(jumps) else 1
        if len(jumps) and jumps.max() < 2:
            raise Undecided(f"{what}: no rows or columns of tokens stand out")
        groups = torch.zeros_like(order)
        groups[1:] = (gaps >= largest[count - 1]).cumsum(0)
    ranks = torch.zeros(centres.shape, dtype=torch.long)
    found = torch.empty_like(groups)
    found[order] = groups
    ranks[located] = found
    return ranks, int(groups[-1]) + 1


def _shared_by_windows(queries: list[list[Token]], keys: list[list[Token]]) -> bool:
    """Whether rows that read other keys ask with the same queries."""
    by_query: dict[Any, set[Any]] = {}
    for asked, read in zip(queries, keys, strict=True):
        by_query.setdefault(tuple(asked), set()).add(tuple(read))
    return max(len(reads) for reads in by_query.values()) > 1
