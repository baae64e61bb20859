"""Which classes are asked about: one for all images, one an image, or several of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_attngrad.state import outside_inference


def classes_of(target: int | Sequence[int] | Tensor, batch: int, device: torch.device, *, otherwise: str) -> Tensor:
    """Classes as :func:`lightning_attngrad.explain` and :func:`lightning_attngrad.rewrite` both take them.

    Args:
        target: an int, the same class for all images; a list of P ints, these P for each image; a tensor (B,), one an
            image; a tensor (B, P).
        batch: B.
        device: of the images.
        otherwise: what else may be said, for messages.

    Returns:
        (B,) or (B, P) int64. Whether the model has these classes is not asked.

    Raises:
        ValueError: for anything else.

    Example:
        >>> classes_of([3, 5], batch=2, device=torch.device("cpu"), otherwise="None").tolist()
        [[3, 5], [3, 5]]
        >>> classes_of(torch.tensor([3, 5]), batch=2, device=torch.device("cpu"), otherwise="None").tolist()
        [3, 5]
    """
    expected = (
        f"expected {otherwise}, an int (a class for all images), a list of ints (these classes for each image), or an "
        f"integer tensor ({batch},) or ({batch}, P)"
    )
    try:
        classes = outside_inference(torch.as_tensor(target, device=device))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"target: got {target!r}; {expected}") from error
    if isinstance(target, list | tuple) and classes.dim() == 1:
        classes = classes.expand(batch, -1)
    elif classes.dim() == 0:
        classes = classes.expand(batch)
    integral = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
    if not integral or classes.dim() not in (1, 2) or classes.shape[0] != batch or classes.numel() == 0:
        raise ValueError(
            f"target: got {classes.dtype} of shape {tuple(classes.shape)} for {batch} images; {expected}"
            f"{_ONE_HOT if classes.dim() > 1 else ''}"
        )
    # Zeros and ones in rows of three and more name the same class twice: nobody asks for that, they are no numbers.
    if classes.dim() == 2 and classes.shape[1] > 2 and bool(((classes == 0) | (classes == 1)).all()):
        hint = "; write torch.tensor(target) for one class an image" if isinstance(target, list | tuple) else _ONE_HOT
        raise ValueError(f"target: got rows of zeros and ones, {tuple(classes.shape)}; {expected}{hint}")
    return classes.long()


_ONE_HOT = (
    ". Of rows that are one-hot, or probabilities, write target.flatten(1).argmax(dim=1); several labels: one by one"
)
