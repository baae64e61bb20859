"""Which keys each query should read from, which not, and which do not matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PlausiblePairs:
    """Pairs of a query and a key that one attention call, with probabilities (R, H, N, M), is to be guided by.

    R is the number of images B, or that of their windows. The masks are broadcastable to (R, n, M), where n is the
    number of guided queries.

    Attributes:
        inside: bool, where a query should look.
        outside: bool, where it should not look. What is neither is left out: probabilities are shares of what lies
            inside or outside. None is everything that is not inside.
        queries: numbers of the guided query tokens, (n,) int64; None is all N.
        asks: bool, broadcastable to (R, n), which of these are guided in each row; None is all.
        images: to which image each row belongs, (R,) int64; None where row r is image r.
        batch: number of images B; None is R.

    Example:
        >>> PlausiblePairs(torch.eye(4, dtype=torch.bool)).image_weights(2, 4, torch.empty(0))
        tensor([[0.1250, 0.1250, 0.1250, 0.1250],
                [0.1250, 0.1250, 0.1250, 0.1250]])
    """

    inside: Tensor
    outside: Tensor | None = None
    queries: Tensor | None = None
    asks: Tensor | None = None
    images: Tensor | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        for name, mask in (("inside", self.inside), ("outside", self.outside)):
            if mask is not None and (not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.dim() > 3):
                got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
                raise ValueError(f"{name}: got {got}; expected a bool tensor, broadcastable to (B, N_q, N_k)")

    def image_weights(self, rows: int, queries: int, like: Tensor) -> Tensor:
        """What each query counts in the mean over images of the mean over an image's queries, (R, n).

        A query without any plausible key counts 0: there is no place where it should look. The weights of an image do
        not depend on the other images of its batch, so that batches may be cut and shared among processes at will.

        Args:
            rows: R.
            queries: n.
            like: of the device and floating-point type of the result.
        """
        some: Tensor = self.inside.to(like.device).any(dim=-1)
        counted = (some if self.asks is None else some & self.asks.to(like.device)).to(like.dtype)
        counted = counted.expand(rows, queries)
        batch = rows if self.batch is None else self.batch
        if self.images is None:
            return counted / counted.sum(dim=1, keepdim=True).clamp_min(1) / batch
        images = self.images.to(like.device)
        of_image = counted.new_zeros(batch + 1).index_add(0, images % (batch + 1), counted.sum(dim=1))
        weights: Tensor = counted / of_image[images % (batch + 1)].clamp_min(1)[:, None] / batch
        return weights * images.ge(0)[:, None]
