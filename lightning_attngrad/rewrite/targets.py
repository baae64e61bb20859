"""Which class an image is rewritten to."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_attngrad.explain import UNSAID, Multilabel, Task

TargetKind = Literal["random", "runner_up", "least_likely", "all"]
TARGET_KINDS: tuple[str, ...] = get_args(TargetKind)


def choose_targets(
    logits: Tensor, kind: str, *, avoid: Tensor | None = None, seed: int = 0, task: Task = UNSAID
) -> Tensor:
    """Target classes from the scores of a model's classes.

    In multi-label classification they are labels switched from what ``avoid`` says, or from what is predicted: one at
    random, the one nearest to its threshold, the one farthest from it, or each of them.

    Args:
        logits: (B, K).
        kind: ``random``: any class but the one to avoid, all alike; it depends on nothing but that class, the seed and
            the row's place in the batch. ``runner_up``: the most probable other class. ``least_likely``: the least
            probable. ``all``: every other class, in order.
        avoid: (B,) the class that each image is of, or (B, labels) bool, which labels it has; None takes what is
            predicted.
        seed: of ``random``.
        task: what the scores mean.

    Returns:
        (B, 1) int64; (B, K − 1) for ``all``; (B, labels) for that of labels.

    Raises:
        ValueError: for another kind, or fewer than two classes.

    Example:
        >>> logits = torch.tensor([[3.0, 1.0, 2.0]])
        >>> [choose_targets(logits, kind).tolist() for kind in ("runner_up", "least_likely", "all")]
        [[[2]], [[1]], [[1, 2]]]
    """
    if kind not in TARGET_KINDS:
        raise ValueError(f"target: got {kind!r}; expected a class, or one of {', '.join(TARGET_KINDS)}")
    if isinstance(task, Multilabel):
        return _labels(logits, kind, avoid, seed, task)
    batch, classes = logits.shape
    if classes < 2:
        raise ValueError(f"target: got {kind!r} for a model of {classes} output; expected two classes or more")
    own = (task.chosen(logits) if avoid is None else avoid.to(logits.device)).clamp(0, classes - 1)  # (B,)
    if kind == "random":
        # On the CPU: the same draw on every device.
        generator = torch.Generator("cpu").manual_seed(seed)
        ahead = torch.randint(1, classes, (batch,), generator=generator, device="cpu").to(logits.device)
        return ((own + ahead) % classes)[:, None]
    if kind == "all":
        ahead = torch.arange(1, classes, device=logits.device)
        return ((own[:, None] + ahead) % classes).sort(dim=1).values
    others = logits.scatter(1, own[:, None], -torch.inf if kind == "runner_up" else torch.inf)
    return (others.max(dim=1) if kind == "runner_up" else others.min(dim=1)).indices[:, None]


def _labels(scores: Tensor, kind: str, present: Tensor | None, seed: int, task: Multilabel) -> Tensor:
    """Labels to be switched, as the classes that they lead to, (B, 1) or (B, labels)."""
    logits = task.logits(scores)
    batch, labels = logits.shape
    present = logits > 0 if present is None else present.to(logits.device).bool()
    if kind == "all":
        chosen = torch.arange(labels, device=logits.device).expand(batch, -1)
    elif kind == "random":
        generator = torch.Generator("cpu").manual_seed(seed)
        chosen = torch.randint(0, labels, (batch,), generator=generator, device="cpu").to(logits.device)[:, None]
    else:
        size = logits.abs()
        chosen = (size.min(dim=1) if kind == "runner_up" else size.max(dim=1)).indices[:, None]
    return torch.where(present.gather(1, chosen), chosen + labels, chosen)
