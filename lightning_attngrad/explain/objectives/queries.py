"""Objectives about the queries of a detector: the class of one, and where its box lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_attngrad.explain.forward_pass import ForwardPass
from lightning_attngrad.explain.objectives.base import ValueObjective, class_in_words
from lightning_attngrad.explain.objectives.held import boxes_of_queries, scores_of_queries
from lightning_attngrad.explain.objectives.pixels import check_number
from lightning_attngrad.explain.plain import Plain, plain
from lightning_attngrad.state import outside_inference

#: The number of a query: one for all images, or one an image.
Query = int | list[int] | Tensor | None


@dataclass(frozen=True, eq=False)
class QueryClass(ValueObjective):
    """The score of a class for a query of a detector: what makes this box a cat.

    Of an output that holds ``logits`` (B, Q, K), as DETR and YOLOS have them in Hugging Face, or ``pred_logits``
    (RF-DETR). What a class is says ``task=``, as everywhere. Takes no target.

    Args:
        target: the class.
        query: the number of the query, one for all images, or a list or tensor of one an image. None is the query
            whose score of this class is the highest now.

    Raises:
        ValueError: for what is no class, or no query.

    Example:
        >>> QueryClass(3, query=17).in_words()
        'class 3 of query 17'
        >>> # attngrad.explain(detector, images, objective=attngrad.QueryClass(3))
    """

    target: int
    query: Query = None
    needs_target: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("target", self.target, "the number of a class, from 0")
        _check_query(self.query)

    def of_images(self, indices: Tensor) -> QueryClass:
        return replace(self, query=_of_images(self.query, indices))

    def plain(self) -> Plain:
        return {"query_class": self.target, "query": plain(self.query)}

    def in_words(self, class_name: Callable[[int], str] = str) -> str:
        return f"{class_in_words(self.target, class_name)} of {_in_words(self.query)}"

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:  # noqa: ARG002
        scores = _of_class(forward, self.target)  # (B, Q)
        return scores.gather(1, _queries(self.query, scores)[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class QueryBox(ValueObjective):
    """A number of the box of a query: what sets this edge, or this size.

    Of an output that holds ``pred_boxes`` (B, Q, 4), as DETR, YOLOS and RF-DETR have them: centre x, centre y, width
    and height, as shares of the image. Takes no target.

    Args:
        coordinate: which of the four numbers, 0 to 3, in the order that the model gives them.
        query: as for :class:`QueryClass`.
        target: the class whose best query is meant; needed, and taken, only where ``query`` is None.

    Raises:
        ValueError: for what is no coordinate, or where not exactly one of ``query`` and ``target`` is given.

    Example:
        >>> QueryBox(2, query=17).in_words()
        'box number 2 of query 17'
        >>> # attngrad.explain(detector, images, objective=attngrad.QueryBox(2, target=3))
    """

    coordinate: int
    query: Query = None
    target: int | None = None
    needs_target: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_number("coordinate", self.coordinate, "0 to 3: centre x, centre y, width, height of DETR's boxes")
        if self.coordinate > 3:
            raise ValueError(
                f"coordinate: got {self.coordinate}; expected 0 to 3: centre x, centre y, width, height of DETR's boxes"
            )
        if (self.query is None) == (self.target is None):
            raise ValueError(
                f"query: got {self.query!r:.60} with target={self.target!r}; expected one of them: the number of a "
                "query, or the class whose best query is meant"
            )
        _check_query(self.query)
        if self.target is not None:
            check_number("target", self.target, "the number of a class, from 0")

    def of_images(self, indices: Tensor) -> QueryBox:
        return replace(self, query=_of_images(self.query, indices))

    def plain(self) -> Plain:
        return {"query_box": self.coordinate, "query": plain(self.query), "target": self.target}

    def in_words(self, class_name: Callable[[int], str] = str) -> str:
        whose = (
            _in_words(self.query)
            if self.target is None
            else f"the best query for {class_in_words(self.target, class_name)}"
        )
        return f"box number {self.coordinate} of {whose}"

    def value(self, forward: ForwardPass, target: Tensor | None) -> Tensor:  # noqa: ARG002
        boxes = boxes_of_queries(forward.output, forward.batch)
        if boxes.shape[2] != 4:
            raise ValueError(f"model: its pred_boxes are {tuple(boxes.shape)}; expected (B, queries, 4)")
        numbers = boxes[:, :, self.coordinate]  # (B, Q)
        scores = numbers if self.target is None else _of_class(forward, self.target)
        return numbers.gather(1, _queries(self.query, scores)[:, None])[:, 0]


def _of_class(forward: ForwardPass, target: int) -> Tensor:
    """The score of a class for each query, (B, Q)."""
    found = scores_of_queries(forward.output, forward.batch)  # (B, Q, K)
    rows = found.flatten(0, 1)  # each query is classified as an image would be
    scores = forward.scores_of(rows)
    forward.task.of_rows.check_target(torch.full_like(scores[:1, 0], target, dtype=torch.long), scores.shape[1])
    return scores[:, target].view(found.shape[:2])


def _queries(query: Query, scores: Tensor) -> Tensor:
    """The number of a query for each image, (B,)."""
    if query is None:
        return scores.detach().argmax(dim=1)
    batch, count = scores.shape
    if isinstance(query, int):
        known, given = query < count, torch.full_like(scores[:, 0], query, dtype=torch.long)
    else:
        given = outside_inference(torch.as_tensor(query, device=scores.device)).long()
        known = given.shape == (batch,) and bool((given < count).all())
    if not known:
        raise ValueError(
            f"query: got {query!r}; expected numbers from 0 to {count - 1}, one, or one an image ({batch},)"
        )
    return given


def _check_query(query: Query) -> None:
    if query is None or (isinstance(query, int) and not isinstance(query, bool) and query >= 0):
        return
    given = torch.as_tensor(query) if isinstance(query, Tensor | list) else torch.tensor(0.5)
    integral = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
    if not integral or given.dim() != 1 or not given.numel() or bool((given < 0).any()):
        raise ValueError(
            f"query: got {query!r}; expected the number of a query, from 0, one, or a list or tensor of one an image, "
            "or None for the best one"
        )


def _of_images(query: Query, indices: Tensor) -> Query:
    if query is None or isinstance(query, int):
        return query
    given = torch.as_tensor(query)
    return given[indices.to(given.device)]


def _in_words(query: Query) -> str:
    if query is None:
        return "its best query"
    return f"query {query}" if isinstance(query, int) else "a query of each image"
