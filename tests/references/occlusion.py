"""Where the tokens of every attention product lie on the image, by looking: change some pixels and see what moves.

The model is a twin in float64 whose attention is cut (every product gives zeros, so that only what passes beside the
attention is followed) and whose convolutions read what lies under the middle of their kernels, on images of one colour
each: places belong to the architecture and not to weights or pixels, and like this a token holds what lies where it
lies. Bands of pixels over the whole width, then over the whole height, are made a little brighter one at a time. How
much each token moves with each band gives its centre; centres that fall into well separated rows and columns are a
grid. What never moves lies nowhere: a class token, or padding. Whatever is not as clear as that is refused with
`Undecided`: this is a judge and must not guess.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.layers
import torch
from torch import Tensor, nn

from tests.references.attention_products import AttentionProduct, Replace, attention_products, rows_of

Grid = tuple[int, int]
#: A token: ("cell", image, row, column), ("slot", image, name, number), or None for padding.
Token = tuple[Any, ...] | None

#: Bands are so many pixels wide, or more where there would be too many.
_BAND, _MOST_BANDS = 4, 40
#: So much brighter: a small change, for each to count for itself.
_STEP = 1e-3
#: So many times the largest gap inside a row of tokens must the smallest between two rows be.
_CLEAR = 1.3
#: Activations that let nothing through from some point on.
_DEAD = ("ReLU", "ReLU6", "Hardswish", "HardSwish", "Hardsigmoid", "HardSigmoid")
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
        proportion: height of the image over its width.
    """

    down: Tensor
    across: Tensor
    image: Tensor
    names: dict[str, Tensor]
    proportion: float


def places(
    model: nn.Module, images: Tensor, forward: Callable[[nn.Module, Tensor], object] | None = None
) -> list[ProductPlaces]:
    """Places of every attention product of ``model`` on ``images`` (B, C, H, W), in order.

    Raises:
        Undecided: where they cannot be seen.
    """
    twin = _flat_twin(model)
    run = forward or (lambda module, pixels: module(pixels))
    colours = torch.randn(*images.shape[:2], 1, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    images = colours.expand(images.shape).contiguous()
    other = images + _STEP

    def look(pixels: Tensor, cut: Replace = _zeros) -> list[tuple[Tensor | None, Tensor]]:
        torch.manual_seed(0)
        with torch.no_grad(), attention_products(cut) as products:
            run(twin, pixels)
        return [(None if p.query is None else rows_of(p.query), rows_of(p.value)) for p in products]

    clean, brighter = look(images), look(other)
    if any(torch.equal(a[1], b[1]) for a, b in zip(clean, brighter, strict=True)):
        # Behind a product with no path beside it nothing is left: its output then carries the place of its queries.
        look = functools.partial(look, cut=_queries)
        clean = look(images)
    channel = _of_channels(clean, look, images, other)
    sides = [side for both in clean for side in both if side is not None]
    finest = max((side.shape[0] * side.shape[1] for side in sides), default=1) / len(images)
    width = math.ceil(max(_BAND, math.sqrt(images.shape[-2] * images.shape[-1] / finest) / 2))
    down = [look(_occluded(images, other, -2, band)) for band in _bands(images.shape[-2], width)]
    across = [look(_occluded(images, other, -1, band)) for band in _bands(images.shape[-1], width)]
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
                images.shape[-2] / images.shape[-1],
            )

        if channel[number]:
            found.append(ProductPlaces([], [], None, None, [], "channels"))
            continue
        keys, key_grid = _tokens(moved(1), f"keys of product {number}")
        rows, asked = shapes[number]
        seen = query is not None and query.shape[:2] == (rows, asked)
        if asked == value.shape[1] and (not seen or _shared_by_windows(query, keys)):
            queries, query_grid = keys, key_grid  # its outputs go to its own tokens
        elif seen:
            queries, query_grid = _tokens(moved(0), f"queries of product {number}")
        else:
            raise Undecided(f"product {number}: its queries were not seen")
        alike = Counter((tuple(q), tuple(k)) for q, k in zip(queries, keys, strict=True))
        heads = [alike[tuple(q), tuple(k)] for q, k in zip(queries, keys, strict=True)]
        found.append(ProductPlaces(queries, keys, query_grid, key_grid, heads, "tokens"))
    return found


def _zeros(number: int, product: AttentionProduct) -> Tensor:
    return torch.zeros_like(product.output)


def _queries(number: int, product: AttentionProduct) -> Tensor:
    if product.query is None or product.query.shape[:-1] != product.output.shape[:-1]:
        return torch.zeros_like(product.output)
    return product.query.mean(-1, keepdim=True).expand_as(product.output).contiguous()


def _flat_twin(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(_narrow(module.weight))
                if "StdConv" in type(module).__name__:  # takes the mean off its weights, and would fill them in again
                    same = getattr(module, "same_pad", False)
                    module.__class__ = timm.layers.Conv2dSame if same else nn.Conv2d
        for name, parameter in twin.named_parameters():
            if "pos" in name.rsplit(".", 1)[-1]:  # one place must not answer otherwise than another
                parameter.zero_()
    for name, module in list(twin.named_modules()):
        owner, _, last = name.rpartition(".")
        if type(module).__name__ in _DEAD:  # on an image of one colour it would be dead everywhere, or nowhere
            setattr(twin.get_submodule(owner), last, nn.Softplus())
        elif type(module).__name__ == "MaxPool2d":
            setattr(twin.get_submodule(owner), last, nn.AvgPool2d(module.kernel_size, module.stride, module.padding))
        elif type(module).__name__ == "MaxPool2dSame":
            pool = timm.layers.AvgPool2dSame(module.kernel_size, module.stride)
            setattr(twin.get_submodule(owner), last, pool)
    return twin


def _narrow(weight: Tensor) -> Tensor:
    """The kernel with the weights of its middle alone, where it has one, else with their mean everywhere."""
    height, width = weight.shape[-2:]
    if height % 2 and width % 2:
        narrow = torch.zeros_like(weight)
        narrow[..., height // 2, width // 2] = weight.sum((-2, -1)) / math.sqrt(height * width)
        return narrow
    return weight.mean((-2, -1), keepdim=True).expand_as(weight)


def _bands(length: int, width: int) -> list[slice]:
    width = max(width, math.ceil(length / _MOST_BANDS))
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
    """Whether a product reads channels: the top of the image then moves all its rows and some of its columns."""
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
        down, across, grid = _on_a_grid(moved, located, image, moved.proportion, what)
    tokens: list[list[Token]] = []
    for r in range(rows):
        cells = [
            ("cell", int(image[r, n]), int(down[r, n]), int(across[r, n])) if located[r, n] else None
            for n in range(number)
        ]
        seen = [cell for cell in cells if cell is not None]
        whole = grid is None or len(seen) == grid[0] * grid[1]
        owner = seen[0][1] if seen else None
        tokens.append(_with_slots(cells, owner, whole, {name: size[r] for name, size in moved.names.items()}))
    return tokens, grid


def _with_slots(cells: list[Any], owner: int | None, whole: bool, moved: dict[str, Tensor]) -> list[Token]:
    """Tokens that lie nowhere, named by the parameter that they come from, or numbered; in a window: padding."""
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
    """Mean band of (bands, R, N), weighted by what moves above the least: statistics of the image move all alike."""
    weights = moved - moved.amin(0)
    numbers = torch.arange(len(moved), dtype=moved.dtype).view(-1, 1, 1)
    return (weights * numbers).sum(0) / weights.sum(0).clamp_min(1e-300)


def _on_a_grid(
    moved: _Moved, located: Tensor, image: Tensor, proportion: float, what: str
) -> tuple[Tensor, Tensor, Grid]:
    """Row and column of each token (R, N), and the grid that they fill.

    Of all ways to tell rows and columns apart by the gaps between centres those are left in which every cell of the
    grid is taken by every image, and by one token of a row at most; of these the one with the clearest gaps is taken.
    Where some have all cells taken equally often, others do not count.
    """
    below, beside = (_groupings(_centres(size), located, len(size)) for size in (moved.down, moved.across))
    best: tuple[tuple[bool, float], Tensor, Tensor, Grid] | None = None
    rows = torch.arange(len(image)).view(-1, 1).expand_as(image)
    for (height, apart_down, down), (width, apart_across, across) in itertools.product(below, beside):
        cell = (image * height + down) * width + across
        taken = cell[located].bincount(minlength=len(moved.image) * height * width)
        in_row = rows * (len(moved.image) * height * width) + cell
        if (taken == 0).any() or len(in_row[located].unique()) < int(located.sum()):
            continue
        if abs(math.log((height / width) / proportion)) > math.log(1.5):  # cells are about as high as wide in pixels
            continue
        key = (bool((taken == taken[0]).all()), min(apart_down, apart_across))
        if best is None or key > best[0]:
            best = (key, down, across, (height, width))
    if best is None or best[0][1] < _CLEAR:
        raise Undecided(f"{what}: no grid of tokens stands out")
    return best[1:]


def _groupings(centres: Tensor, located: Tensor, bands: int) -> list[tuple[int, float, Tensor]]:
    """Ways to tell centres (R, N) apart into groups along one axis: how many, by how clear a gap, the group of each."""
    values, order = centres[located].sort()
    gaps = values[1:] - values[:-1]
    largest = torch.cat([gaps.sort(descending=True).values, gaps.new_zeros(1)]).clamp_min(1e-6)
    found = []
    for count in range(1, min(bands + 1, len(values)) + 1):
        # One group: as clear as its spread is small beside a band.
        apart = (
            float(largest[count - 2] / largest[count - 1]) if count > 1 else 0.5 / float(values[-1] - values[0] + 1e-6)
        )
        if apart < _CLEAR:
            continue
        numbers = torch.zeros_like(order)
        if count > 1:
            numbers[1:] = (gaps >= largest[count - 2]).cumsum(0)
        if int(numbers[-1]) + 1 != count:
            continue
        ranks = torch.zeros(centres.shape, dtype=torch.long)
        back = torch.empty_like(numbers)
        back[order] = numbers
        ranks[located] = back
        found.append((count, apart, ranks))
    return sorted(found, key=lambda grouping: -grouping[1])[:12]


def _shared_by_windows(query: Tensor | None, keys: list[list[Token]]) -> bool:
    """Whether rows (R, N, e) of one image that read other keys ask with the very same queries."""
    assert query is not None
    first: dict[Any, list[tuple[int, Any]]] = {}
    for r, read in enumerate(keys):
        owner = next((token[1] for token in read if token is not None), None)
        first.setdefault(owner, []).append((r, tuple(read)))
    for rows in first.values():
        for (a, one), (b, other) in itertools.combinations(rows, 2):
            if one != other and torch.equal(query[a], query[b]):
                return True
    return False
