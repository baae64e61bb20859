"""What the outputs of models beyond classification hold: maps of scores, scores of queries, boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.explain.forward_pass import NonFiniteOutputError, numbers_of

_MAPS_OF_SCORES = ("logits", "out", "output")
_MAPS_OF_NUMBERS = ("predicted_depth", "depth", *_MAPS_OF_SCORES)
_SCORES_OF_QUERIES = ("logits", "pred_logits")
_BOXES = ("pred_boxes",)


def map_of_scores(output: Any, batch: int) -> Tensor:
    """Scores of each class at each place, (B, K, h, w), as semantic segmentation gives them.

    The output itself, its ``logits`` (Hugging Face) or ``out`` (torchvision) or ``output`` (terratorch), or the one
    tensor of that shape in a list.

    Raises:
        ValueError: if there is none, or several.
    """
    return _wide(_only(output, _MAPS_OF_SCORES, batch, 4, "scores of each class at each place, (B, classes, h, w)"))


def map_of_numbers(output: Any, batch: int) -> Tensor:
    """One number at each place, (B, h, w), as models of depth give it; (B, 1, h, w) is read alike.

    The output itself, its ``predicted_depth`` or ``depth``, or where :func:`map_of_scores` looks.

    Raises:
        ValueError: if there is none, or several.
    """
    what = "one number at each place, (B, h, w)"
    for found in _candidates(output, _MAPS_OF_NUMBERS):
        if found.dim() == 4 and len(found) == batch and found.shape[1] > 1:
            raise ValueError(
                f"model: its output has {found.shape[1]} numbers at each place, {tuple(found.shape)}, and which of "
                "them is explained is not said. PixelClass(target, where) explains the score of a class; for other "
                "numbers give objective= a function from the output to one number an image"
            )
    flat = [found[:, 0] if found.dim() == 4 else found for found in _candidates(output, _MAPS_OF_NUMBERS)]
    return _wide(_only(flat, (), batch, 3, what, described=output))


def scores_of_queries(output: Any, batch: int) -> Tensor:
    """Scores of each class for each query of a detector, (B, Q, K): its ``logits`` or ``pred_logits``.

    Raises:
        ValueError: if there are none.
    """
    return _wide(_only(output, _SCORES_OF_QUERIES, batch, 3, "scores of each query, (B, queries, classes)"))


def boxes_of_queries(output: Any, batch: int) -> Tensor:
    """Boxes of the queries of a detector, (B, Q, 4): its ``pred_boxes``.

    Raises:
        ValueError: if there are none.
    """
    return _wide(_only(output, _BOXES, batch, 3, "boxes of each query, pred_boxes (B, queries, 4)", by_name=True))


def _only(
    output: Any,
    names: Sequence[str],
    batch: int,
    dim: int,
    what: str,
    *,
    by_name: bool = False,
    described: Any = None,
) -> Tensor:
    fitting = [one for one in _candidates(output, names, by_name=by_name) if one.dim() == dim and len(one) == batch]
    if len(fitting) == 1:
        return fitting[0]
    holds = describe(output if described is None else described)
    if not fitting:
        raise ValueError(
            f"model: its output holds no {what} for {batch} images; it holds {holds}. Give forward= a function that "
            "returns them alone, or objective= a function from the output to one number an image"
        )
    raise ValueError(
        f"model: its output holds {len(fitting)} tensors that may be the {what}; it holds {holds}. Give forward= a "
        "function that returns the right one alone"
    )


def _candidates(output: Any, names: Sequence[str], *, by_name: bool = False) -> list[Tensor]:
    """The tensors that may be meant: by name where the output has names, else all."""
    if isinstance(output, Tensor):
        return [] if by_name else [output]
    named = [one for name in names if isinstance(one := _named(output, name), Tensor)]
    if named:
        return named[:1]
    is_list = isinstance(output, list | tuple) and not by_name
    return [one for one in output if isinstance(one, Tensor)] if is_list else []


def _named(output: Any, name: str) -> Any:
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def _wide(tensor: Tensor) -> Tensor:
    """Float32 or wider, also where the model ran under autocast; what is not finite is refused."""
    finite = torch.isfinite(tensor).flatten(1).all(dim=1)
    if not bool(finite.all()):
        images, named = numbers_of(~finite)
        raise NonFiniteOutputError(
            f"model: its output is NaN or infinite for {named}; there is nothing to explain until it is finite", images
        )
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def describe(output: Any) -> str:
    """What an output holds, for messages.

    Example:
        >>> describe({"out": torch.zeros(2, 5, 8, 8), "aux": None})
        'out float32[2, 5, 8, 8]'
        >>> describe(torch.zeros(2, 7))
        'one tensor float32[2, 7]'
    """
    if isinstance(output, Tensor):
        return f"one tensor {_shape(output)}"
    parts = [f"{name} {_shape(one)}".strip() for name, one in _parts(output) if isinstance(one, Tensor)]
    return ", ".join(parts) if parts else f"no tensors ({type(output).__name__})"


def _parts(output: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(output, Mapping):
        yield from ((str(name), one) for name, one in output.items())
    elif isinstance(output, list | tuple):
        names = getattr(output, "_fields", None) or [f"[{index}]" for index in range(len(output))]
        yield from zip(names, output, strict=True)
    else:
        yield from getattr(output, "__dict__", {}).items()


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
