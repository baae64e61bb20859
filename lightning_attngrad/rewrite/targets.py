"""Which class an image is rewritten to."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

TargetKind = Literal["random", "runner_up", "least_likely", "all"]
TARGET_KINDS: tuple[str, ...] = get_args(TargetKind)


def choose_targets(logits: Tensor, kind: str, *, avoid: Tensor | None = None, seed: int = 0) -> Tensor:
    """Target classes from a model's logits.

    Args:
        logits: (B, K).
        kind: ``random``: any class but the one to avoid, all alike; it depends on nothing but that class, the seed and
            the row's place in the batch. ``runner_up``: the most probable other class. ``least_likely``: the least
            probable. ``all``: every other class, in order.
        avoid: (B,) the class that each image is of; None takes the predicted one.
        seed: of ``random``.

    Returns:
        (B, 1) int64; (B, K − 1) for ``all``.

    Raises:
        ValueError: for another kind, or fewer than two classes.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 2.0]])
        >>> [choose_targets(logits, kind).tolist() for kind in ("runner_up", "least_likely", "all")]
        [[[2]], [[1]], [[1, 2]]]
    """
    if kind not in TARGET_KINDS:
        raise ValueError(f"target: got {kind!r}; expected a class, or one of {', '.join(TARGET_KINDS)}")
    batch, classes = logits.shape
    if classes < 2:
        raise ValueError(f"target: got {kind!r} for a model of {classes} output; expected two classes or more")
    own = (logits.argmax(dim=1) if avoid is None else avoid.to(logits.device)).clamp(0, classes - 1)  # (B,)
    if kind == "random":
        # On the CPU: the same draw on every device.
        generator = torch.Generator("cpu").manual_seed(seed)
        ahead = torch.randint(1, classes, (batch,), generator=generator, device="cpu").to(logits.device)
        return ((own + ahead) % classes)[:, None]
    if kind == "all":
        ahead = torch.arange(1, classes, device=logits.device)
        return ((own[:, None] + ahead) % classes).sort(dim=1).values
    others = logits.scatter(1, own[:, None], -torch.inf if kind == "runner_up" else torch.inf)
    return (others.argmax(dim=1) if kind == "runner_up" else others.argmin(dim=1))[:, None]
