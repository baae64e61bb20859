"""One forward pass of a model under a tap: what every method starts from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import (
    PLAIN,
    AttentionTap,
    BackwardRules,
    ImagePlaces,
    KnownPlaces,
    NoEmbeddingError,
    Ruled,
    UnsupportedModelError,
    default_memory_budget,
)
from lightning_attngrad.attention.feature_maps import Features, output_of
from lightning_attngrad.explain.flow import calls_behind
from lightning_attngrad.explain.inputs import check_images, check_model
from lightning_attngrad.explain.outputs import UNSAID, Task
from lightning_attngrad.explain.returned import find_logits
from lightning_attngrad.state import RandomMoment, differentiable, held_still

#: So many images are named in a message.
_NAMED = 8


class NonFiniteError(ValueError):
    """Something that a map is made of is NaN or infinite.

    Attributes:
        images: which images of the batch, counted from 0.
    """

    def __init__(self, message: str, images: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.images = images


class NonFiniteOutputError(NonFiniteError):
    """The model's output is NaN or infinite: nothing about it can be explained."""


class NonFiniteGradientError(NonFiniteError):
    """The output is finite and its gradient is not: no map can be made of it."""


def numbers_of(images: Tensor) -> tuple[tuple[int, ...], str]:
    """Which images (B,) bool are meant: their numbers in the batch, and the same in words."""
    numbers = tuple(images.cpu().nonzero().flatten().tolist())
    named = ", ".join(map(str, numbers[:_NAMED])) + (", …" if len(numbers) > _NAMED else "")
    return numbers, f"{len(numbers)} of {len(images)} images (number {named}, counted from 0)"


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A forward pass whose graph is still there.

    Attributes:
        tap: the attention calls, and where the graph begins.
        output: what the model returned.
        known: where on the image the model's tensors lie.
        batch: number of images B.
        memory_budget: bytes for the temporaries of a block of attention rows.
        image_size: height and width of the images in pixels.
        layer_output: of the module that was asked for, one map of features; empty where none was, or it did not
            run.
        task: what the output means.
        rules: what replaces the plain gradient.
        images: the leaf that the graph begins at, where it begins at the images; else None.
    """

    tap: AttentionTap
    output: Any
    known: KnownPlaces
    batch: int
    memory_budget: int
    image_size: tuple[int, int]
    layer_output: tuple[Features, ...] = ()
    task: Task = UNSAID
    rules: BackwardRules = PLAIN
    images: Tensor | None = None

    @property
    def places(self) -> ImagePlaces:
        """Where on the image the tokens of every attention call lie."""
        return self.known.places

    @property
    def logits(self) -> Tensor:
        """Scores of the classes in the graph, (B, C), float32 or wider, as the task has them.

        Raises:
            ValueError: if the output holds no such tensor.
        """
        return self._scores(self.task, self.output, self.batch)

    def scores_of(self, rows: Tensor) -> Tensor:
        """The same of rows (R, K) that are of no image, see :attr:`Task.of_rows`."""
        return self._scores(self.task.of_rows, rows, len(rows))

    def _scores(self, task: Task, output: Any, rows: int) -> Tensor:
        """Under the rules of the way back: a task may normalise, as a model would in its own forward."""
        with Ruled(self.rules):
            return task.scores(output, rows)


@contextlib.contextmanager
def forward_pass(
    model: nn.Module,
    images: Tensor,
    *,
    forward: Callable[[Tensor], Any] | None = None,
    start: Literal["attention", "embedding", "images"] = "attention",
    rules: BackwardRules = PLAIN,
    score_offsets: Sequence[Tensor | None] = (),
    memory_budget: int | None = None,
    backward: bool = True,
    follows_attention: bool = True,
    layer: str | None = None,
    keep_statistics: bool = False,
    task: Task = UNSAID,
) -> Iterator[ForwardPass]:
    """Run ``model`` on ``images`` (B, C, H, W) under a tap, and let go of everything when the block ends.

    Args:
        model: any module with attention; its flags are restored.
        images: as the model takes them.
        forward: run instead of ``model(images)``.
        start: where the graph begins, see :class:`AttentionTap`.
        rules: what replaces the plain gradient.
        score_offsets: additions to the scores of the calls, see :class:`AttentionTap`.
        memory_budget: in bytes; None is :func:`default_memory_budget` of the device that the images lie on.
        follows_attention: whether a map is to be made of its attention calls. Without, models pass that make none, or
            whose attention cannot be followed.
        layer: name of a module whose output is kept in :attr:`ForwardPass.layer_output`.
        keep_statistics: whether the tap keeps what normalisations of tokens divide by, see :class:`AttentionTap`.
        task: what the output means.
        backward: whether a backward pass through the model will follow. Without one, nothing that only it would need
            is kept.

    Raises:
        TypeError: for a model or images of another type.
        ValueError: for images of another shape.
        UnsupportedModelError: if the attention cannot be read as one map over the image.
        NoEmbeddingError: if the graph is to begin at an embedding, and the model has none.
        NonFiniteOutputError: if the logits are not finite.
    """
    _check_arguments(model, images, memory_budget)
    with differentiable(), held_still(model):
        # A copy, made here: a batch that was loaded under inference mode can enter no graph, and a model that
        # normalises in place must not write into the caller's images.
        images = images.detach().clone()
        moment = RandomMoment()
        known = KnownPlaces(model, images, forward, answers_of)
        for again in (False, True):
            if again:  # the model moved its tokens in another way than the pass that is known
                moment.rewind()
                known = KnownPlaces(model, images, forward, answers_of, afresh=True)
            refusal = _refusal(known, type(model).__name__, follows_attention, start == "embedding" and layer is None)
            if refusal is not None:
                if not known.is_fresh:  # the model may have been changed since, as its message asked
                    continue
                raise refusal
            tap = AttentionTap(
                model,
                start=start,
                rules=rules,
                score_offsets=score_offsets,
                embedding_number=known.embedding_number if start == "embedding" else None,
                keep_statistics=keep_statistics,
            )
            try:
                # Outside the tap, which would number it.
                begin = tap.begin_at(images) if start == "images" else images.clone()
                with (
                    output_of(model, layer, tap) as of_layer,
                    tap,
                    contextlib.nullcontext() if backward else _structure_only(tap),
                ):
                    output = (forward or model)(begin)
                if not known.hold_for(tap):
                    if not again:
                        continue
                    raise UnsupportedModelError(
                        f"{type(model).__name__} moves its tokens in another way each time that it is run on the same "
                        "images; a map needs two passes that are alike. Seed what is drawn in its forward"
                    )
                if follows_attention:
                    _check_graph(tap, known.places, output, type(model).__name__)
                _check_finite(output, type(model).__name__)
                budget = default_memory_budget(images.device) if memory_budget is None else memory_budget
                size = (images.shape[-2], images.shape[-1])
                leaf = images if start == "images" else None
                yield ForwardPass(tap, output, known, len(images), budget, size, tuple(of_layer), task, rules, leaf)
                return
            finally:
                tap.release()


def _refusal(
    known: KnownPlaces, model_name: str, follows_attention: bool, needs_embedding: bool
) -> UnsupportedModelError | NoEmbeddingError | None:
    """Why no pass is to be run: a new error each time, for one that is kept would keep all that it passed through."""
    obstacle = known.places.obstacle
    if follows_attention and obstacle is not None:
        return type(obstacle)(*obstacle.args)
    if needs_embedding and known.embedding_number is None and not known.detached:
        return NoEmbeddingError(_no_embedding(model_name, attends=obstacle is None))
    return None


def _check_arguments(model: nn.Module, images: Tensor, memory_budget: int | None) -> None:
    check_model(model)
    check_images(images)
    if memory_budget is not None and memory_budget < 1:
        raise ValueError(f"memory_budget: got {memory_budget!r}; expected a number of bytes above 0, or None")


def _check_graph(tap: AttentionTap, places: ImagePlaces, output: Any, model_name: str) -> None:
    """Refuse a model of whose attention calls some count, and no gradient comes to them."""
    outputs = [tensor for tensor in answers_of(output) if tensor.requires_grad]
    reached = set(calls_behind(outputs, tap.calls))
    counting = [number for number, call in enumerate(places.calls) if call.counts and call.kind == "tokens"]
    missing = [places.calls[number].name for number in counting if number not in reached]
    if outputs and missing:
        raise UnsupportedModelError(
            f"{model_name}: no gradient comes to the attention in {missing[0]!r}, which its output depends on: it is "
            "computed inside a torch.autograd.Function, or its result is detached. Let the model use torch's own "
            "attention, or explain the part behind it"
        )


def _no_embedding(model_name: str, *, attends: bool) -> str:
    instead = ". Use method='gradient_guided', which follows its attention, or explain one tower" if attends else ""
    return (
        f"model: {model_name} has no one tensor through which all goes that its output has of the image (it has "
        f"several towers, or a path past the tokens), so there is no embedding that relevance could be measured at"
        f"{instead}"
    )


def answers_of(output: Any) -> Iterator[Tensor]:
    """The tensors of an output that may be explained: its logits where it has any."""
    found = find_logits(output)
    if found is not None:
        yield found
        return
    parts = output.values() if isinstance(output, Mapping) else output
    if not isinstance(parts, Iterable) and not isinstance(parts, Tensor):
        parts = getattr(parts, "__dict__", {}).values()
    if isinstance(parts, Iterable) and not isinstance(parts, str | bytes | Tensor):
        for part in parts:
            yield from [part] if isinstance(part, Tensor) else answers_of(part)


def _structure_only(tap: AttentionTap) -> contextlib.AbstractContextManager[object]:
    """A graph that says what comes from what, and behind the first attention keeps no activation to differentiate."""

    def keep(tensor: Tensor) -> Tensor | None:
        return None if tap.calls else tensor

    hooks: contextlib.AbstractContextManager[object] = torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept)
    return hooks


def _check_finite(output: Any, model_name: str) -> None:
    scores = find_logits(output)
    if scores is None or torch.isfinite(scores).all():
        return
    bad = ~torch.isfinite(scores)
    images, named = numbers_of(bad.flatten(1).any(1) if bad.dim() > 1 else bad.reshape(-1))
    raise NonFiniteOutputError(
        f"model: {model_name} gives NaN or infinite outputs for {named}; there is nothing to explain until it gives "
        "finite ones",
        images,
    )
