"""Epipolar masks against closed forms, a loop over points, and what must hold of any two cameras."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_attngrad.guidance import epipolar_mask, fundamental_matrix
from tests.references import epipolar as reference

GRID_A, GRID_B = (5, 7), (6, 4)
some = settings(max_examples=60, deadline=None, derandomize=True)


def centres(grid: tuple[int, int]) -> Tensor:
    """Columns and rows of the centres in reading order, (N, 2)."""
    y, x = torch.meshgrid(*(torch.arange(n) + 0.5 for n in grid), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def cross_matrix(t: Tensor) -> Tensor:
    """[t]ₓ of (3,)."""
    x, y, z = t.tolist()
    return torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])


# Closed forms ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "axis"), [((1.0, 0.0, 0.0), 1), ((0.0, 1.0, 0.0), 0)])
def test_sideways_is_the_same_row_and_up_the_same_column(direction: tuple[float, ...], axis: int) -> None:
    F = cross_matrix(torch.tensor(direction))
    at_a, at_b = centres(GRID_A)[:, axis], centres(GRID_B)[:, axis]
    for tolerance in (0.0, 0.4, 1.0, 2.5):
        expected = (at_a[:, None] - at_b[None]).abs() <= tolerance
        assert torch.equal(epipolar_mask(F[None], GRID_A, GRID_B, tolerance)[0], expected)


def test_oblique_translation_gives_parallel_lines() -> None:
    F = cross_matrix(torch.tensor([3.0, 4.0, 0.0]))
    across = centres(GRID_A) @ torch.tensor([4.0, -3.0]) / 5  # coordinate at a right angle to the movement
    at_b = centres(GRID_B) @ torch.tensor([4.0, -3.0]) / 5
    expected = (across[:, None] - at_b[None]).abs() <= 1.1
    assert torch.equal(epipolar_mask(F[None], GRID_A, GRID_B, 1.1)[0], expected)


@pytest.mark.parametrize("epipole", [(2.5, 3.5), (3.0, 2.0), (2.8, 1.3), (-4.0, 2.2), (30.0, 3.1)])
def test_forward_motion_gives_lines_through_the_epipole(epipole: tuple[float, float]) -> None:
    grid = (6, 6)
    at = centres(grid)
    e = torch.tensor(epipole)
    away_a, away_b = at - e, at - e
    length = away_a.norm(dim=1, keepdim=True)
    distance = (away_a[:, None, 0] * away_b[None, :, 1] - away_a[:, None, 1] * away_b[None, :, 0]).abs() / length
    holds = (away_a.abs() <= 0.5).all(dim=1, keepdim=True)
    expected = (distance <= 0.8) | holds
    found = epipolar_mask(cross_matrix(torch.tensor([*epipole, 1.0]))[None], grid, grid, 0.8)[0]
    assert torch.equal(found, expected)
    inside = 0 <= epipole[0] <= 6
    assert bool(found.all(dim=1).any()) == inside
    assert not found.all()


def test_an_epipole_in_the_corner_of_patches_leaves_all_of_them_open() -> None:
    found = epipolar_mask(cross_matrix(torch.tensor([3.0, 2.0, 1.0]))[None], (4, 4), (4, 4), 0.1)[0]
    assert found.all(dim=1).view(4, 4).nonzero().tolist() == [[1, 2], [1, 3], [2, 2], [2, 3]]


@pytest.mark.parametrize("degrees", [30.0, 90.0, 180.0])
def test_rotation_about_the_optical_axis_turns_the_lines(degrees: float) -> None:
    side, angle = 6, math.radians(degrees)
    K = torch.tensor([[48.0, 0, 24.0], [0, 48.0, 24.0], [0, 0, 1]])
    R = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    F = fundamental_matrix(K[None], K[None], R[None], torch.tensor([[0.3, 0.0, 0.0]]), patch_size=8)
    # x_b = R (x_a − c) + c + (something) · (1, 0): the row in b is that of the turned point.
    turned = (centres((side, side)) - 3) @ R[:2, :2].T + 3
    distance = (turned[:, None, 1] - centres((side, side))[None, :, 1]).abs()
    for tolerance in (0.3, 0.77, 1.3):
        assert torch.equal(epipolar_mask(F, (side, side), (side, side), tolerance)[0], distance <= tolerance)


def test_points_at_infinity_lie_where_the_rotation_puts_them() -> None:
    K = torch.tensor([[60.0, 0, 32.0], [0, 60.0, 32.0], [0, 0, 1]], dtype=torch.float64)
    angle = 0.2
    R = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
    )
    F = fundamental_matrix(K[None], K[None], R[None], torch.tensor([[0.1, 0.4, -0.2]]).double(), patch_size=8)
    S = torch.diag(torch.tensor([8.0, 8.0, 1.0], dtype=torch.float64))
    infinite = torch.linalg.inv(S) @ K @ R @ torch.linalg.inv(K) @ S  # x_b = K R K⁻¹ x_a, however the camera moved
    at = torch.cat([centres((8, 8)), torch.ones(64, 1)], dim=1).double() @ infinite.T
    at = at[:, :2] / at[:, 2:]
    mask = epipolar_mask(F, (8, 8), (8, 8), math.sqrt(0.5) + 1e-9)[0]
    seen = 0
    for patch, (x, y) in enumerate(at.tolist()):
        if 0 <= x < 8 and 0 <= y < 8:
            seen += 1
            assert mask[patch, int(y) * 8 + int(x)]
    assert seen > 20


def test_a_line_at_infinity_is_near_nothing() -> None:
    # Row 2 alone: each line is (0, 0, c), which no point of the plane lies on.
    F = torch.tensor([[[0.0, 0, 0], [0, 0, 0], [0, 0, 1]]])
    assert not epipolar_mask(F, GRID_A, GRID_B, 1e6).any()


def test_nothing_known_leaves_everything_open() -> None:
    F = torch.stack([torch.zeros(3, 3), cross_matrix(torch.tensor([1.0, 0, 0]))])
    found = epipolar_mask(F, GRID_A, GRID_B, 0.5)
    assert found[0].all()
    assert not found[1].all()


# Any matrix ------------------------------------------------------------------------------------------------


def matrices() -> st.SearchStrategy[Tensor]:
    """Fundamental matrices of all sorts: of rank 2, with entries from −3 to 3."""
    entries = st.lists(st.floats(-3, 3, width=32), min_size=9, max_size=9)

    def of_rank_two(numbers: list[float]) -> Tensor:
        U, S, V = torch.linalg.svd(torch.tensor(numbers, dtype=torch.float64).view(3, 3))
        return (U * S.clone().index_fill(0, torch.tensor(2), 0)) @ V

    return entries.map(of_rank_two).filter(lambda F: float(torch.linalg.svdvals(F)[1]) > 0.1)


grids = st.tuples(st.integers(1, 6), st.integers(1, 6))
tolerances = st.floats(0, 4)


def distances(F: Tensor, grid_a: tuple[int, int], grid_b: tuple[int, int]) -> Tensor:
    """To see which pairs lie so close to the border that rounding decides."""
    at_a, at_b = (
        torch.cat([centres(grid), torch.ones(math.prod(grid), 1)], dim=1).double() for grid in (grid_a, grid_b)
    )
    lines = at_a @ F.T
    return (lines @ at_b.T).abs() / lines[:, :2].norm(dim=1, keepdim=True)


@some
@given(matrices(), grids, grids, tolerances)
def test_equals_the_definition(F: Tensor, grid_a: tuple[int, int], grid_b: tuple[int, int], tolerance: float) -> None:
    found = epipolar_mask(F[None], grid_a, grid_b, tolerance)[0]
    expected = torch.tensor(reference.plausible(F.tolist(), grid_a, grid_b, tolerance))
    decided = (distances(F, grid_a, grid_b) - tolerance).abs() > 2e-4
    e = torch.linalg.svd(F).Vh[2]  # F e = 0
    holds = ((e[:2] - centres(grid_a).double() * e[2]).abs() <= 0.501 * e[2].abs()).all(dim=1)
    assert (found == expected)[decided & ~holds[:, None]].all()
    assert found[((e[:2] - centres(grid_a).double() * e[2]).abs() < 0.499 * e[2].abs()).all(dim=1)].all()


@some
@given(matrices(), st.sampled_from([-1.0, 0.25, -64.0, 2.0**-60, 2.0**60]), tolerances)
def test_scale_and_sign_do_not_matter(F: Tensor, scale: float, tolerance: float) -> None:
    for dtype in (torch.float64, torch.float32):
        one = epipolar_mask(F[None].to(dtype), GRID_A, GRID_B, tolerance)
        assert torch.equal(one, epipolar_mask(scale * F[None].to(dtype), GRID_A, GRID_B, tolerance))


@some
@given(matrices(), tolerances, tolerances)
def test_a_larger_tolerance_only_adds(F: Tensor, one: float, other: float) -> None:
    narrow, wide = (epipolar_mask(F[None], GRID_A, GRID_B, tolerance) for tolerance in sorted((one, other)))
    assert not (narrow & ~wide).any()


@some
@given(matrices(), tolerances)
def test_seen_from_the_other_view(F: Tensor, tolerance: float) -> None:
    """x_bᵀ F x_a = x_aᵀ Fᵀ x_b: in both views the same residual, by the length of each view's own line."""
    forth = epipolar_mask(F[None], GRID_A, GRID_B, tolerance)[0]
    back = epipolar_mask(F[None].mT, GRID_B, GRID_A, tolerance)[0].mT
    at_a, at_b = (torch.cat([centres(g), torch.ones(math.prod(g), 1)], dim=1).double() for g in (GRID_A, GRID_B))
    in_b, in_a = (at_a @ F.T)[:, :2].norm(dim=1)[:, None], (at_b @ F)[:, :2].norm(dim=1)[None]
    opened = (forth.all(dim=1, keepdim=True)) | (back.all(dim=0, keepdim=True))
    assert not (forth & ~back & (in_b <= in_a) & ~opened).any()  # a shorter line here: a narrower band there
    assert not (back & ~forth & (in_a <= in_b) & ~opened).any()


@some
@given(st.floats(0, 6.28), tolerances)
def test_movement_across_the_optical_axis_is_the_same_from_either_view(angle: float, tolerance: float) -> None:
    F = cross_matrix(torch.tensor([math.cos(angle), math.sin(angle), 0.0])).double()
    forth = epipolar_mask(F[None], GRID_A, GRID_B, tolerance)[0]
    assert torch.equal(forth, epipolar_mask(F[None].mT, GRID_B, GRID_A, tolerance)[0].mT)


# Any two cameras -------------------------------------------------------------------------------------------

angles = st.tuples(*[st.floats(-0.5, 0.5)] * 3)


def turned(angles: tuple[float, float, float]) -> Tensor:
    a, b, c = torch.tensor(angles, dtype=torch.float64)
    return torch.linalg.matrix_exp(torch.stack([cross_matrix(torch.stack([a, b, c]))]).double())[0]


@some
@given(
    angles,
    st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda t: math.hypot(*t) > 0.05),
    st.floats(0.4, 20),
    st.tuples(st.floats(30, 90), st.floats(30, 90)),
    st.sampled_from([torch.float64, torch.float32]),
)
def test_true_correspondences_are_plausible(
    of: tuple[float, float, float],
    t: tuple[float, float, float],
    depth: float,
    focal: tuple[float, float],
    dtype: torch.dtype,
) -> None:
    """What is at the centre of a patch of a lies in a patch of b whose centre is at most half a diagonal away."""
    patch = 8
    K_a = [[focal[0], 1.5, 20.0], [0.0, focal[0] + 3, 26.0], [0.0, 0.0, 1.0]]
    K_b = [[focal[1], 0.0, 27.0], [0.0, focal[1], 19.0], [0.0, 0.0, 1.0]]
    R = turned(of)
    F = fundamental_matrix(
        torch.tensor([K_a], dtype=dtype),
        torch.tensor([K_b], dtype=dtype),
        R[None].to(dtype),
        torch.tensor([t], dtype=dtype),
        patch,
    )
    mask = epipolar_mask(F, GRID_A, GRID_B, math.sqrt(0.5) + 1e-3)[0]
    for number, (x, y) in enumerate(centres(GRID_A).tolist()):
        point = reference.point_at(K_a, x * patch, y * patch, depth)
        column, row, far = reference.seen_at(K_b, R.tolist(), t, point)
        if far > 0 and 0 <= column < GRID_B[1] * patch and 0 <= row < GRID_B[0] * patch:
            assert mask[number, int(row // patch) * GRID_B[1] + int(column // patch)]


def test_rows_and_columns_of_patches_that_are_not_square() -> None:
    K = torch.tensor([[[60.0, 0, 32.0], [0, 60.0, 32.0], [0, 0, 1]]])
    t = torch.tensor([[0.1, 0.3, 0.0]])
    eye = torch.eye(3)[None]
    F = fundamental_matrix(K, K, eye, t, patch_size=(8, 16))
    # In patches the movement is (1/16, 3/8) times something: across / down = 1 / 6.
    found = epipolar_mask(F, (8, 4), (8, 4), 0.6)[0]
    assert torch.equal(found, epipolar_mask(cross_matrix(torch.tensor([1.0, 6.0, 0.0]))[None], (8, 4), (8, 4), 0.6)[0])


def test_cameras_in_one_place_say_nothing() -> None:
    K = torch.tensor([[[60.0, 0, 32.0], [0, 60.0, 32.0], [0, 0, 1]]])
    F = fundamental_matrix(K, K, turned((0.1, 0.2, 0.3)).float()[None], torch.zeros(1, 3), patch_size=8)
    assert epipolar_mask(F, (4, 4), (4, 4), 0.5).all()


# How it is called ------------------------------------------------------------------------------------------


def test_autocast_and_half_precision_change_nothing() -> None:
    torch.manual_seed(0)
    K = torch.tensor([[[57.3, 0, 31.7], [0, 61.1, 30.3], [0, 0, 1]]])
    R, t = turned((0.1, -0.2, 0.05)).float()[None], torch.tensor([[0.3, -0.21, 0.13]])
    F = fundamental_matrix(K, K, R, t, 4)
    mask = epipolar_mask(F, (16, 16), (16, 16), 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fundamental_matrix(K, K, R, t, 4), F)
        assert torch.equal(epipolar_mask(F, (16, 16), (16, 16), 1.0), mask)
    assert epipolar_mask(F.bfloat16(), (16, 16), (16, 16), 1.0).dtype == torch.bool


def test_samples_do_not_mix() -> None:
    F = torch.stack([cross_matrix(torch.tensor(t)) for t in ([1.0, 0, 0], [0, 1.0, 0], [3.0, 2.0, 1.0])])
    together = epipolar_mask(F, GRID_A, GRID_B, 0.7)
    assert together.shape == (3, 35, 24)
    for index in range(3):
        assert torch.equal(together[index : index + 1], epipolar_mask(F[index : index + 1], GRID_A, GRID_B, 0.7))


def test_nothing_is_asked_of_the_graph() -> None:
    F = cross_matrix(torch.tensor([1.0, 0, 0]))[None].requires_grad_()
    assert not epipolar_mask(F, GRID_A, GRID_B, 0.7).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"F": torch.eye(3)}, r"F: got torch.float32 \(3, 3\); expected .* \(B, 3, 3\)"),
        ({"F": torch.zeros(1, 3, 3, dtype=torch.long)}, "F: got torch.int64"),
        ({"F": [[1.0]]}, "F: got list"),
        ({"F": torch.full((1, 3, 3), torch.nan)}, "F: some numbers are NaN"),
        ({"grid_a": 7}, "grid_a: got 7"),
        ({"grid_b": (0, 4)}, r"grid_b: got \(0, 4\); expected \(rows, columns\)"),
        ({"tolerance": -1.0}, "tolerance: got -1.0"),
        ({"tolerance": math.nan}, "tolerance: got nan"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    good = {"F": torch.zeros(1, 3, 3), "grid_a": (2, 2), "grid_b": (2, 2), "tolerance": 1.0}
    with pytest.raises(ValueError, match=message):
        epipolar_mask(**{**good, **change})  # type: ignore[arg-type]


def test_cameras_of_another_shape_are_refused() -> None:
    eye = torch.eye(3)[None]
    with pytest.raises(ValueError, match=r"translation: got shape \(3,\); expected \(1, 3\)"):
        fundamental_matrix(eye, eye, eye, torch.zeros(3), 8)
    with pytest.raises(ValueError, match="intrinsics_b"):
        fundamental_matrix(eye, eye[0], eye, torch.zeros(1, 3), 8)
