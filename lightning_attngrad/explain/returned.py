"""Where in what a model returned its scores and embeddings are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.explain.squashed import refuse_probabilities


def find_logits(output: Any) -> Tensor | None:
    """The tensor of class scores in a model's output: itself, its ``logits``, or the first of a tuple.

    Of a model of images and texts, ``logits_per_image`` (CLIP, SigLIP): the texts are the classes. Of a `ModelOutput`
    of terratorch, its ``output``.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = output.get("logits", output.get("logits_per_image"))
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, list | tuple) and output:
        output = output[0]
    else:
        output = getattr(output, "output", None)
    return output if isinstance(output, Tensor) else None


def find_embedding_vector(output: Any, batch: int) -> Tensor:
    """The embeddings (B, D) in a model's output; (B, D, 1, 1), as pooled features often are, is read alike.

    Raises:
        ValueError: if there are none.
    """
    if isinstance(output, Tensor):
        found: Any = output
    elif isinstance(output, list | tuple):
        found = output[0] if output else None
    else:
        values = output if isinstance(output, Mapping) else {name: getattr(output, name, None) for name in _EMBEDDINGS}
        found = next((one for name in _EMBEDDINGS if isinstance(one := values.get(name), Tensor)), None)
    if isinstance(found, Tensor) and found.dim() == 4 and found.shape[2:] == (1, 1):
        found = found.flatten(1)
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != batch:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise ValueError(
            f"model: no embeddings ({batch}, D) are in its output ({got}); give Similarity(…, read=function) from the "
            "output to them"
        )
    return found


_EMBEDDINGS = ("image_embeds", "image_features", "embedding", "embeddings", "pooler_output", "features")


def row_of_numbers(output: Any, batch: int) -> Tensor:
    """One row of numbers an image in a model's output, (B, K), float32 or wider.

    Raises:
        ValueError: if it holds no such tensor, or several that differ.
    """
    found = find_logits(output)
    if found is None or found.dim() not in (1, 2) or found.shape[0] != batch:
        got = f"shape {tuple(found.shape)}" if found is not None else type(output).__name__
        raise ValueError(
            f"model: its output ({got}) is not one row of logits an image, ({batch}, classes). "
            f"{_rows_in_words(output, batch)}Explain a part that ends in a classifier, or give objective= a function "
            "from the output to one number an image."
        )
    if isinstance(output, list | tuple) and not hasattr(output, "logits"):
        rows = [one.shape[1] for one in output if isinstance(one, Tensor) and one.dim() == 2 and len(one) == batch]
        if len(set(rows)) > 1:
            raise ValueError(
                f"model: its output holds {len(rows)} rows of numbers an image, and which of them are class scores is "
                f"not said: {_listed(_rows_within(output, batch))}. Give forward= a function that returns those alone."
            )
    found = found.unsqueeze(1) if found.dim() == 1 else found
    return found if found.dtype == torch.float64 else found.float()


def row_of_scores(output: Any, batch: int) -> Tensor:
    """The same, where the numbers are scores of classes.

    Raises:
        ValueError: if it holds no such tensor, or several that differ, or probabilities.
    """
    numbers = row_of_numbers(output, batch)
    refuse_probabilities(numbers)
    return numbers


def _rows_in_words(output: Any, batch: int) -> str:
    """What in an output that is none itself could be rows of scores, and how to get at it."""
    rows = list(_rows_within(output, batch))
    if not rows:
        return ""
    one = "that" if len(rows) == 1 else "one of these"
    return f"It holds {_listed(rows)}: if {one} is the class scores, give forward= a function that returns it alone. "


def _listed(rows: Iterable[tuple[str, Tensor]]) -> str:
    return ", ".join(f"output{path} {tuple(row.shape)}" for path, row in rows)


def _rows_within(output: Any, batch: int, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in an output that is a row of numbers an image, up to axes of one, and as Python gets at it."""
    if isinstance(output, Tensor):
        long = [axis for axis in range(1, output.dim()) if output.shape[axis] > 1]
        if len(long) == 1 and len(output) == batch and output.is_floating_point():
            axes = ", ".join(":" if axis in (0, *long) else "0" for axis in range(output.dim()))
            yield (path if output.dim() == 2 else f"{path}[{axes}]"), output.flatten(1)
    for step, part in _parts(output):
        yield from _rows_within(part, batch, path + step)


def _parts(output: Any) -> list[tuple[str, Any]]:
    if isinstance(output, Mapping):
        return [(f"[{key!r}]", part) for key, part in output.items()]
    if dataclasses.is_dataclass(output):
        return [(f".{field.name}", getattr(output, field.name, None)) for field in dataclasses.fields(output)]
    if hasattr(output, "_fields"):  # a named tuple
        return [(f".{name}", getattr(output, name)) for name in output._fields]
    if isinstance(output, list | tuple):
        return [(f"[{place}]", part) for place, part in enumerate(output)]
    return []
