"""Two photographs of one scene: photographs on planes at several depths, seen by two cameras whose places are known.

Nothing is downloaded: the photographs are in scikit-image and scikit-learn. The scenes have what two pictures of a flat
wall have not: parallax, and parts that one camera sees and the other does not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_attngrad.guidance import fundamental_matrix

SIZE, PATCH = 64, 8
GRID = (SIZE // PATCH, SIZE // PATCH)
#: Side of a photograph.
PIXELS = 256
#: In front of a wall.
PANELS = 4

SEEN = (
    "astronaut",
    "brick",
    "camera",
    "coffee",
    "coins",
    "grass",
    "rocket",
    "immunohistochemistry",
    "moon",
    "flower.jpg",
)
HELD_OUT = ("chelsea", "china.jpg", "gravel", "hubble_deep_field", "retina")


class Pairs(NamedTuple):
    """Two views of B scenes.

    Attributes:
        a: (B, 3, 64, 64) in [0, 1].
        b: likewise.
        matches: (B, 64), the patch of b in which lies what is at the centre of each patch of a; −1 where b does not
            see it.
        geometry: (B, 3, 3) fundamental matrices in patches.
    """

    a: Tensor
    b: Tensor
    matches: Tensor
    geometry: Tensor


def photographs(names: tuple[str, ...]) -> Tensor:
    """The photographs (T, 3, 256, 256) in [0, 1], square cuts from their middle."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    found = []
    for name in names:
        pixels = load_sample_image(name) if name.endswith(".jpg") else getattr(data, name)()
        picture = torch.from_numpy(pixels.copy()).float() / 255
        picture = picture.movedim(-1, 0) if picture.dim() == 3 else picture.expand(3, -1, -1)
        side = min(picture.shape[1:])
        top, left = ((length - side) // 2 for length in picture.shape[1:])
        square = picture[None, :, top : top + side, left : left + side]
        found.append(F.interpolate(square, (PIXELS, PIXELS), mode="bilinear", antialias=True))
    return torch.cat(found)


class Planes(NamedTuple):
    """Planes of B scenes, the wall first: P of them, (B, P, …).

    Attributes:
        middle: a point of each, (B, P, 3), in the coordinates of camera a.
        axes: two directions in it, (B, P, 2, 3).
        extent: half its width and height along them, (B, P, 2).
        photograph: which of them, (B, P).
        window: left, top, width and height of the part of the photograph, (B, P, 4), in shares of it.
    """

    middle: Tensor
    axes: Tensor
    extent: Tensor
    photograph: Tensor
    window: Tensor


def _random(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _turned(angles: Tensor) -> Tensor:
    """Rotations (…, 3, 3) about an axis, by an angle that is its length, (…, 3)."""
    x, y, z = angles.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [torch.stack(row, dim=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return torch.linalg.matrix_exp(torch.stack(rows, dim=-2))


def _planes(count: int, photographs: int, generator: torch.Generator) -> Planes:
    """A wall far behind, and panels before it, all of them a little turned."""
    number = 1 + PANELS
    depth = torch.cat([_random(generator, 4.0, 5.5, count, 1), _random(generator, 1.5, 3.5, count, PANELS)], dim=1)
    aside = torch.cat([torch.zeros(count, 1, 2), _random(generator, -0.42, 0.42, count, PANELS, 2)], dim=1)
    middle = torch.cat([aside * depth[..., None], depth[..., None]], dim=-1)
    tilt = _random(generator, -0.45, 0.45, count, number, 3)
    axes = _turned(tilt).mT[..., :2, :]  # (B, P, 2, 3)
    extent = torch.cat(
        [torch.full((count, 1, 2), 6.0), depth[:, 1:, None] * _random(generator, 0.15, 0.32, count, PANELS, 2)], dim=1
    )
    photograph = torch.randint(photographs, (count, number), generator=generator)
    # About one pixel of a photograph to one of a view.
    share = (extent / depth[..., None] * 2 * SIZE / PIXELS * _random(generator, 0.9, 1.3, count, number, 1)).clamp_max(
        1
    )
    share[:, 0] = 1.0
    corner = _random(generator, 0, 1, count, number, 2) * (1 - share)
    return Planes(middle, axes, extent, photograph, torch.cat([corner, share], dim=-1))


def _meet(planes: Planes, origin: Tensor, rays: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What rays (B, N, 3) from a point (B, 3) meet first.

    Returns:
        How often the ray has to be taken to get there (B, N), the plane (B, N), and where on it (B, N, 2) in −1 … 1.
    """
    normal = torch.linalg.cross(planes.axes[..., 0, :], planes.axes[..., 1, :])  # (B, P, 3)
    ahead = (normal * (planes.middle - origin[:, None])).sum(-1)  # (B, P)
    steps = ahead[:, :, None] / (normal @ rays.mT)  # (B, P, N)
    start = planes.axes @ (origin[:, None] - planes.middle)[..., None]  # (B, P, 2, 1)
    place = start + (planes.axes @ rays.mT[:, None]) * steps[:, :, None]  # (B, P, 2, N)
    place = place / planes.extent[..., None]
    misses = (place.abs() > 1).any(dim=2) | (steps <= 0.1)
    misses[:, 0] = False  # behind everything there is the wall
    steps = steps.masked_fill(misses, math.inf)
    nearest, plane = steps.min(dim=1)
    return nearest, plane, place.gather(1, plane[:, None, None].expand(-1, 1, 2, -1))[:, 0].mT


def _view(planes: Planes, textures: Tensor, origin: Tensor, rays: Tensor) -> Tensor:
    """What a camera sees along rays (B, 64·64, 3): (B, 3, 64, 64)."""
    _, plane, place = _meet(planes, origin, rays)
    window = planes.window.gather(1, plane[..., None].expand(-1, -1, 4))
    inside = window[..., :2] + window[..., 2:] * (place + 1) / 2  # of the photograph, 0 … 1
    inside = 1 - (inside.remainder(2) - 1).abs()  # mirrored beyond its borders
    inside = inside.clamp(1 / PIXELS, 1 - 1 / PIXELS)
    which = planes.photograph.gather(1, plane)
    # All photographs below one another, as one picture.
    stacked = textures.movedim(1, 0).reshape(1, 3, -1, PIXELS)
    down = (which + inside[..., 1]) / len(textures)
    at = torch.stack([inside[..., 0], down], dim=-1) * 2 - 1
    seen = F.grid_sample(stacked, at.reshape(1, -1, 1, 2), align_corners=False)
    return seen.view(3, len(rays), SIZE, SIZE).movedim(1, 0)


def scenes(count: int, textures: Tensor, generator: torch.Generator) -> Pairs:
    """Random scenes, each seen by two random cameras.

    Args:
        count: B.
        textures: photographs (T, 3, 256, 256).
        generator: of everything that is drawn.
    """
    planes = _planes(count, len(textures), generator)
    focal = _random(generator, 0.9, 1.2, count) * SIZE
    K = torch.zeros(count, 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :2, 2], K[:, 2, 2] = SIZE / 2, 1
    # The second camera stands aside, before or behind, and looks about where the first one looks.
    place = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
    place = place * _random(generator, 0.9, 1.8, count, 1) * torch.tensor([1.0, 1.0, 0.6])
    sight = torch.tensor([0.0, 0.0, 3.0]) - place  # of the middle of the scene
    turn = torch.linalg.cross(F.normalize(sight, dim=1), torch.tensor([[0.0, 0.0, 1.0]]).expand(count, -1))
    roll = torch.zeros(count, 3)
    roll[:, 2] = _random(generator, -0.5, 0.5, count)
    R = _turned(roll) @ _turned(_random(generator, -0.2, 0.2, count, 3)) @ _turned(turn)
    t = -(R @ place[..., None])[..., 0]

    pixels = _points(torch.arange(SIZE) + 0.5)  # (64·64, 3)
    inverse = torch.linalg.inv(K)
    nowhere = torch.zeros(count, 3)
    a = _view(planes, textures, nowhere, pixels @ inverse.mT)
    b = _view(planes, textures, place, pixels @ inverse.mT @ R)

    centres = _points((torch.arange(GRID[0]) + 0.5) * PATCH) @ inverse.mT  # (B, 64, 3)
    steps, _, _ = _meet(planes, nowhere, centres)
    points = steps[..., None] * centres
    there = (points @ R.mT + t[:, None]) @ K.mT
    column, row = (there[..., :2] / there[..., 2:]).unbind(-1)
    first, _, _ = _meet(planes, place, points - place[:, None])  # 1 where nothing is in between
    sees = (first > 0.99) & (there[..., 2] > 0) & (column >= 0) & (column < SIZE) & (row >= 0) & (row < SIZE)
    match = (row / PATCH).long() * GRID[1] + (column / PATCH).long()
    return Pairs(a, b, torch.where(sees, match, -1), fundamental_matrix(K, K, R, t, PATCH))


def _points(along: Tensor) -> Tensor:
    """(x, y, 1) of a square of places in reading order."""
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)
