"""Structural similarity of small and large pictures alike, by torchmetrics' own function."""

from __future__ import annotations

from torch import Tensor

from lightning_attngrad.metrics.functional.precision import full_precision

_LARGEST_WINDOW, _SIGMA = 11, 1.5  # in pixels (Wang et al., 2004)


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each pair of pictures whose values span 1, with a Gaussian window of 11 pixels (σ 1.5).

    Where a picture has a side of less than 11, the window is the widest odd one that fits and σ shrinks with it:
    small pictures compare with small pictures only.

    Args:
        a: (M, C, H, W), with M at least 1.
        b: the pictures to compare with, of the same shape.

    Returns:
        (M,), at most 1 up to rounding.

    Example:
        >>> import torch
        >>> picture = torch.eye(5)[None, None]
        >>> structural_similarity(picture, 1 - picture) < 0
        tensor([True])
    """
    # torchmetrics loads matplotlib where it is installed; most functions here need torch alone.
    from torchmetrics.functional.image import structural_similarity_index_measure  # noqa: PLC0415

    # The window has 2·int(3.5 σ + ½) + 1 pixels: 11, 9, 7, 5, 3 or 1 for these σ.
    window = min(_LARGEST_WINDOW, (min(a.shape[-2:]) - 1) // 2 * 2 + 1)
    with full_precision(a.device):
        similarity = structural_similarity_index_measure(
            a, b, sigma=_SIGMA * window / _LARGEST_WINDOW, reduction="none", data_range=1.0
        )
    assert isinstance(similarity, Tensor)  # a pair only where the map of every pixel was asked for
    return similarity
