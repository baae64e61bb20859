"""Which patches of two views may show the same point: those on one another's epipolar lines."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_attngrad.attention import outside_autocast
from lightning_attngrad.attention.places import Grid

#: In patches: what lies on a border, as whole tolerances and views side by side have it, is not left to rounding.
_ROUNDING = 1e-4
#: An epipole whose three numbers are all smaller than this, beside a matrix whose largest entry is 1, is none.
_NO_EPIPOLE = 1e-6


@torch.no_grad()
def epipolar_mask(F: Tensor, grid_a: Grid, grid_b: Grid, tolerance: float) -> Tensor:
    """Which patches of view b lie near the epipolar line of each patch of view a.

    A point of view a is seen in view b somewhere on one line, ``l = F x_a``, however far away it is. A pair (i, j) is
    plausible where the centre of patch j lies within ``tolerance`` patches of the line of the centre of patch i.

    - Lines of points inside one patch differ: moving by half a patch moves the line, and the point that is seen lies
      anywhere in its patch. Where both views are about as large a tolerance of 1 is a line that is two patches wide;
      below ½ a line passes between patches.
    - A patch of view a that holds the epipole (the place of the other camera) has lines in all directions: all pairs
      are plausible.
    - A line at infinity, as of directions that the other camera cannot see, is near no patch.
    - An ``F`` of zeros says nothing of two views, and all pairs are plausible: for samples whose geometry is unknown.

    The distance is measured in view b. Of view a it is ``epipolar_mask(F.mT, grid_b, grid_a, tolerance).mT``, which is
    the same only where lines lie as far apart in both.

    Args:
        F: (B, 3, 3) fundamental matrices, ``x_bᵀ F x_a = 0`` with points (x, y, 1) in patches: x is the column, y the
            row, and the centre of the first patch lies at (½, ½). Their scale and sign do not matter. See
            :func:`fundamental_matrix`.
        grid_a: rows and columns of patches in view a, N_a of them.
        grid_b: the same of view b, N_b.
        tolerance: in patches of view b, 0 or more.

    Returns:
        (B, N_a, N_b) bool on the device of ``F``, patches in reading order.

    Raises:
        ValueError: for matrices, grids or a tolerance that are none.

    Source:
        Bhalgat et al., arXiv 2211.15107, who guide cross-attention along epipolar lines; lines and epipoles as in
        Hartley and Zisserman, Multiple View Geometry, chapter 9. The mask in patches is our reading.

    Example:
        >>> sideways = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]])  # moved to the right
        >>> epipolar_mask(sideways, (3, 2), (3, 2), tolerance=0.5)[0, 2].view(3, 2)  # of the first patch of row 1
        tensor([[False, False],
                [ True,  True],
                [False, False]])
    """
    F = _scaled(_checked_matrices("F", F))
    for name, grid in (("grid_a", grid_a), ("grid_b", grid_b)):
        _check_grid(name, grid)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance: got {tolerance!r}; expected a number of patches, 0 or more")
    x_a, y_a = _centres(grid_a, F)  # (N_a,)
    x_b, y_b = _centres(grid_b, F)
    # Sums of products rather than matrix products: autocast would compute those in half precision.
    columns = F.unsqueeze(1).unbind(-1)  # three (B, 1, 3)
    lines = columns[0] * x_a[:, None] + columns[1] * y_a[:, None] + columns[2]  # (B, N_a, 3)
    across, down, offset = lines.unsqueeze(2).unbind(-1)  # (B, N_a, 1)
    residual = across * x_b + down * y_b + offset  # (B, N_a, N_b): distance × ‖(across, down)‖, which may be 0
    near = residual.abs() <= (tolerance + _ROUNDING) * torch.hypot(across, down)
    return near | _holds_epipole(F, x_a, y_a).unsqueeze(2)


def _holds_epipole(F: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Whether a patch of view a with its centre at (x, y), (N_a,), holds the point that F maps to no line: (B, N_a)."""
    rows = F.unbind(1)  # lines of view a through the epipole: any two that differ meet there
    meeting = torch.stack(
        [torch.linalg.cross(rows[one], rows[other]) for one, other in ((0, 1), (1, 2), (2, 0))], dim=1
    )  # (B, 3, 3)
    surest = meeting.abs().amax(dim=2).argmax(dim=1)
    epipole = torch.take_along_dim(meeting, surest[:, None, None], dim=1)  # (B, 1, 3)
    e_x, e_y, e_w = epipole.unbind(-1)  # (B, 1)
    within = torch.maximum((e_x - x * e_w).abs(), (e_y - y * e_w).abs()) <= (0.5 + _ROUNDING) * e_w.abs()
    return within & (epipole.abs().amax(dim=2) > _NO_EPIPOLE)


@torch.no_grad()
def fundamental_matrix(
    intrinsics_a: Tensor, intrinsics_b: Tensor, rotation: Tensor, translation: Tensor, patch_size: int | tuple[int, int]
) -> Tensor:
    """Fundamental matrices of two cameras in patches, as :func:`epipolar_mask` takes them.

    A point X in the coordinates of camera a has those ``R X + t`` in camera b.

    Args:
        intrinsics_a: (B, 3, 3) K of camera a in pixels, for an image whose first pixel has its centre at (½, ½).
            Where it lies at (0, 0), as in OpenCV, add ½ to the principal point.
        intrinsics_b: the same of camera b.
        rotation: R, (B, 3, 3).
        translation: t, (B, 3); its length does not matter.
        patch_size: height and width of a patch in pixels, or one number for both.

    Returns:
        ``K_b⁻ᵀ [t]ₓ R K_a⁻¹`` (B, 3, 3), in units of patches, with 1 as the largest entry; zeros for cameras in one
        place, which no two lines tell apart.

    Raises:
        ValueError: for tensors of another shape.

    Source:
        Hartley and Zisserman, Multiple View Geometry, equation 9.2.

    Example:
        >>> K = torch.tensor([[[64.0, 0.0, 32.0], [0.0, 64.0, 32.0], [0.0, 0.0, 1.0]]])
        >>> fundamental_matrix(K, K, torch.eye(3)[None], torch.tensor([[-0.2, 0.0, 0.0]]), patch_size=8)[0].sign()
        tensor([[ 0.,  0.,  0.],
                [ 0.,  0.,  1.],
                [ 0., -1.,  0.]])
    """
    K_a, K_b, R = (
        _checked_matrices(name, matrix)
        for name, matrix in (("intrinsics_a", intrinsics_a), ("intrinsics_b", intrinsics_b), ("rotation", rotation))
    )
    if translation.shape != (len(R), 3):
        raise ValueError(f"translation: got shape {tuple(translation.shape)}; expected ({len(R)}, 3)")
    height, width = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    in_pixels = torch.diag(R.new_tensor([width, height, 1.0]))
    with outside_autocast(R.device):
        t = translation.to(R)[:, None].expand_as(R)  # each row t: the columns of R are multiplied with it
        essential = torch.linalg.cross(t.mT, R, dim=1)  # [t]ₓ R
        F = torch.linalg.solve(K_b.mT, essential) @ torch.linalg.inv(K_a)
        F = in_pixels @ F @ in_pixels  # x in pixels = in_pixels · x in patches
    return _scaled(F)


def _scaled(F: Tensor) -> Tensor:
    """The same matrices with 1 as the largest entry, and zeros as they are."""
    largest = F.abs().amax(dim=(1, 2), keepdim=True)
    return torch.where(largest > 0, F / largest, F)


def _centres(grid: Grid, like: Tensor) -> tuple[Tensor, Tensor]:
    """Columns and rows of the centres of all patches in reading order, (N,) each."""
    rows, columns = (torch.arange(number, device=like.device, dtype=like.dtype) + 0.5 for number in grid)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return x.flatten(), y.flatten()


def _checked_matrices(name: str, given: Tensor) -> Tensor:
    """Matrices (B, 3, 3) in float32 or wider."""
    if not isinstance(given, Tensor) or given.shape[1:] != (3, 3) or not given.is_floating_point():
        got = f"{given.dtype} {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"{name}: got {got}; expected a floating-point tensor (B, 3, 3), a matrix a sample")
    if not bool(torch.isfinite(given).all()):
        raise ValueError(
            f"{name}: some numbers are NaN or infinite; expected a matrix a sample (zeros: nothing is known)"
        )
    return given.to(torch.promote_types(given.dtype, torch.float32))


def _check_grid(name: str, grid: Grid) -> None:
    numbers = grid if isinstance(grid, tuple | list) and len(grid) == 2 else ()
    if not numbers or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in numbers):
        raise ValueError(f"{name}: got {grid!r}; expected (rows, columns) of the patches")
