"""Places of a model's tokens, traced once for each model and size of images and kept as long as the model lives."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lightning_attngrad.attention.places import ImagePlaces, TensorPlaces
from lightning_attngrad.attention.tap import AttentionTap
from lightning_attngrad.attention.traced import TracedPlaces
from lightning_attngrad.attention.tracing import trace
from lightning_attngrad.state import RandomMoment

#: So many images are enough to tell images from windows and heads.
_TRACED = 2
#: So many ways in which one model moves the tokens of images of one size are kept.
_KEPT = 4

_KNOWN: WeakKeyDictionary[nn.Module, dict[Hashable, list[TracedPlaces]]] = WeakKeyDictionary()


class KnownPlaces:
    """Places for one forward pass: those that are known, or traced now.

    Args:
        model: of which places are remembered.
        images: (B, C, H, W) that it will be run on.
        forward: how; None is ``model(images)``.
        answers: the tensors of its output that may be explained.
        afresh: whether nothing that is known counts: it did not hold for the pass that was run.

    Attributes:
        places: for these images.
        is_fresh: whether they were traced now.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        forward: Callable[[Tensor], Any] | None,
        answers: Callable[[Any], Iterable[Tensor]],
        *,
        afresh: bool = False,
    ) -> None:
        of_model = _KNOWN.setdefault(model, {})
        # The function itself may be a new one each time; a model may be run in several ways.
        way = getattr(forward, "__code__", type(forward))
        kind = images.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        key = (images.shape[1:], images.device, autocast, way)
        known = of_model.setdefault(key, [])
        found = next((one for one in known if one.holds_for(len(images))), None)
        self.is_fresh = found is None or afresh
        if found is None or afresh:
            found = _traced(model, images, forward, answers, exactly=afresh)
            if not found.holds_for(len(images)):
                found = _traced(model, images, forward, answers, exactly=True)
            if not found.chosen:
                known.insert(0, found)
                del known[_KEPT:]
        self._traced = found
        self.places: ImagePlaces = found.of_batch(len(images))

    @property
    def embedding_number(self) -> int | None:
        """By which a tap knows the embedding; None where the model has none."""
        return self._traced.embedding_number

    def of_tensor(self, number: int | None) -> TensorPlaces | None:
        """Places of the tensor that a tap knows by this number; None where they are not known.

        What is pooled, of the whole image, has none either.
        """
        found, embedding = self._traced.tensors.places(number, self.places.batch), self.places.embedding
        pooled = found is not None and found.tokens.grid == (1, 1)
        return None if pooled and (embedding is None or embedding.tokens.grid != (1, 1)) else found

    @property
    def chosen(self) -> bool:
        """Whether the model picks tokens by what the images hold, or by chance: no other pass has these places."""
        return self._traced.chosen

    @property
    def detached(self) -> bool:
        """Whether no gradient leads from the output to the images."""
        return self._traced.detached

    def hold_for(self, tap: AttentionTap) -> bool:
        """Whether the pass that a tap has seen moved its tokens as the traced one did."""
        calls = self.places.calls
        return (
            self._traced.moves == tap.moves
            and self._traced.count == tap.numbered.last
            and len(calls) == len(tap.calls)
            and all(
                known.name == seen.name and known.shape == seen.shape
                for known, seen in zip(calls, tap.calls, strict=True)
            )
        )


def _traced(
    model: nn.Module,
    images: Tensor,
    forward: Callable[[Tensor], Any] | None,
    answers: Callable[[Any], Iterable[Tensor]],
    *,
    exactly: bool,
) -> TracedPlaces:
    """Trace; a few images will do unless the caller's own function is to be run, or they did not."""
    some = images
    if forward is None and not exactly:
        some = images[:_TRACED] if len(images) >= _TRACED else images.repeat(_TRACED, 1, 1, 1)
    with RandomMoment().again():  # the pass that follows draws the same random numbers
        traced = trace(model, some, forward or model, answers=answers)
    if traced.chosen and some is not images:
        return _traced(model, images, forward, answers, exactly=True)
    return traced
