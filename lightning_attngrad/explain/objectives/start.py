"""Objective: what stays of each image's own embedding as it was at the start of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives.base import ValueObjective
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.explain.returned import find_embedding_vector

#: An embedding is told from the mean of all where it is so far from it, in its own lengths: more than rounding.
_ALIKE = 1e-5


@dataclass(frozen=True, eq=False)
class Start(ValueObjective):
    """The cosine of each image's embedding to its own starting embedding, ``objective="start"`` of monitors.

    Both are taken from c, the mean of all starting embeddings of the images: ``Φ_i = cos(e_i − c, s_i − c)``. The
    length of ``e_i − c`` counts as constant in the gradient, so that Φ is guided by the direction ``s_i − c``, the same
    one through the whole run.

    Without c there would be no map: a cosine has no gradient where it is 1, as it is at the start; behind a last
    LayerNorm, which keeps all embeddings at one length, the product with s_i has none there either; and the embeddings
    of all images point much the same way.

    Args:
        starting: s, (B, D), one row an image; None leaves it to monitors, which take the embeddings that they find at
            the first evaluation of the run.
        centre: c, (D,).
    """

    starting: Tensor | None = None
    centre: Tensor | None = None
    needs_target: bool = field(default=False, init=False, repr=False)
    asks_task: bool = field(default=False, init=False, repr=False)

    @property
    def lacks(self) -> Literal["embeddings"] | None:
        return "embeddings" if self.starting is None else None

    def filled(self, found: Tensor) -> Start:
        return Start(found, found.mean(dim=0))

    def check(self) -> None:
        if self.starting is None:
            raise ValueError(
                "objective: 'start' compares with the embeddings of the start of a run, which only monitors know: "
                "AttentionMapMonitor(objective='start'). To explain one model give objective= a function, such as "
                "lambda embedding: (embedding * other).sum(dim=1), or task=Similarity(vectors)"
            )

    def of_images(self, indices: Tensor) -> Start:
        return self if self.starting is None else replace(self, starting=self.starting[indices])

    def plain(self) -> Plain:
        return "start" if self.starting is None else {"start": plain(self.starting), "centre": plain(self.centre)}

    def in_words(self, class_name: Callable[[int], str] = str) -> str:  # noqa: ARG002
        return "likeness to the start"

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:  # noqa: ARG002
        self.check()
        assert self.starting is not None
        assert self.centre is not None
        embedding = find_embedding_vector(forward.output, forward.batch)
        dtype = torch.promote_types(embedding.dtype, torch.float32)
        if embedding.shape != self.starting.shape:
            raise ValueError(
                f"model: its embeddings are {tuple(embedding.shape)}, and those of the start of the run "
                f"{tuple(self.starting.shape)}"
            )
        centre = self.centre.to(embedding.device, dtype)
        starting = self.starting.to(embedding.device, dtype)
        begin = starting - centre
        lengths = torch.linalg.vector_norm(begin, dim=1)
        if not bool((lengths > _ALIKE * torch.linalg.vector_norm(starting, dim=1)).all()):
            raise ValueError(
                "objective: 'start' compares what distinguishes each image, and the starting embeddings of the images "
                "are all alike; give two images or more, of a model that tells them apart"
            )
        now = embedding.to(dtype) - centre
        length = torch.linalg.vector_norm(now.detach(), dim=1).clamp_min(torch.finfo(dtype).tiny)
        value: Tensor = (now * begin).sum(dim=1) / (length * lengths)
        return value
