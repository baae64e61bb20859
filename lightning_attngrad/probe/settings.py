"""ProbeImages: which images every callback of a Trainer looks at, and how they reach the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from os import PathLike
from types import MethodType
from typing import Any, TypeAlias

from torch import Tensor

from lightning_attngrad.explain import Task, check_task
from lightning_attngrad.probe.class_names import check_class_names
from lightning_attngrad.probe.given import GivenImages, check_images
from lightning_attngrad.probe.masks import MaskSource, load_mask_source
from lightning_attngrad.probe.resolve import BatchAdapter, Key, import_callable, load_batch_adapter
from lightning_attngrad.probe.ways import way_of_function
from lightning_attngrad.rewrite.pixels import Normalisation, check_normalisation, check_pixel_range
from lightning_attngrad.state import check_seed

ModelForward: TypeAlias = Callable[..., Any]

_EXPECTED_FORWARD = (
    "expected a callable (model, images) -> output or (model, images, batch) -> output, or its import path "
    "'package.module.function'"
)
_EXPECTED_TRANSFORM = "expected a callable picture -> tensor (C, H, W), or its import path 'package.module.function'"
# Where a batch holds what: images without a batch have no use for them.
_OF_A_BATCH = ("image_key", "target_key", "batch_adapter", "mask")


@dataclass(frozen=True, eq=False)
class ProbeImages:
    """Which images the callbacks look at, said once and given to each as ``probe=``.

    Without anything said, these are 16 images of the validation data, as many of one class as of another: those of the
    training data in a run without a validation loader. They are chosen once and stay the same through the run, on
    every process and after a resume, so that numbers of different epochs can be compared.

    Two settings are equal where their values are; tensors, loaders and functions are compared by identity. Callbacks
    with equal settings share their images.

    Args:
        num_images: how many images; fewer where the data hold fewer.
        image_key: where in a batch the images that are explained are: a name (``"pixel_values"``), an index (``0``), a
            dotted path (``"inputs.image"``) or a list of names and indices (``[0, 0]``: the first of several views).
            None tries the places that are common. Other images of the batch are held as they are.
        target_key: where the class targets are, likewise.
        batch_adapter: a function from a batch to ``(images, targets or None)``, or its import path; it replaces both
            keys.
        forward: how the model is run, where none of the ways that are tried unasked is the right one: a function
            ``(model, images) -> output``, or ``(model, images, batch) -> output``, or its import path. ``batch`` is the
            batch of just these samples as the step gets it, with ``images`` in the place of their own; where a
            ``batch_adapter`` has made the images, it holds what they were made of. What is said of a sample must not
            depend on the others.
        mask: where in a batch the mask of each image's object is, as ``image_key``, or a function from a batch to
            masks, or its import path with a colon (``"package.module:function"``). Only metrics of localisation
            need it.
        mean: by which the images were normalised, one number a channel, or one for all, in units of pixels in
            [0, 1], or of ``pixel_range``. None looks for it: in the transforms of the data, in what the transfer hooks
            do to a batch, on datamodule, processor and model.
        std: likewise; both or neither.
        pixel_range: black and white in the units of the data before they are normalised: ``(0, 255)``, or ``(0,
            10000)`` for reflectances. Distances of rewriting are in units of it. None is [0, 1], or [0, 255] where the
            images tell.
        channels: which channels figures show, from 0: three for red, green and blue, or one for grey; each image is
            then stretched in these. None shows images of three channels or one as they are, and of more the first
            three.
        class_names: what the classes are called, in the order of their numbers, or a mapping from number to name.
            None looks for them in the data and the model.
        model: the part of the LightningModule that is explained, as a path: ``"net"`` for ``self.net``. None is the
            LightningModule itself.
        dataloader_idx: which one of several validation loaders.
        seed: of the choice, and of random transforms while reading.
        images: the images themselves, instead of those of the run: a folder; a list of files, of PIL pictures or of
            tensors (C, H, W); a tensor (N, C, H, W); or a loader, that is a ``DataLoader`` or a list of batches.
            Tensors are taken as the model takes them, normalised already; the batches of a loader go through the
            module's transfer hooks, as those of a validation do; files and pictures go through ``transform``.
        transform: from a PIL picture (RGB) to the tensor (C, H, W) that the model takes, or its import path. Needed
            for files where the run's data set has none as its ``transform``.
        task: what the model's output means: ``"multiclass"``, ``"binary"``, ``"multilabel"``, ``"regression"``,
            ``"embedding"``, or :class:`~lightning_attngrad.Similarity` to vectors, which then are the classes. None
            reads it off outputs and labels where that is certain, and asks where it is not.

    Raises:
        ValueError: for a value that can never work; it says what would do.

    Attributes:
        normalisation: the one that ``mean`` and ``std`` say, or None.
        given: what ``images`` is, or None.

    Example:
        >>> images = ProbeImages(num_images=8, image_key=[0, 0], mean=0.5, std=0.5)
        >>> images == ProbeImages(num_images=8, image_key=(0, 0), mean=[0.5], std=[0.5])
        True
        >>> # attngrad.AttentionMapMonitor(probe=images), attngrad.AttentionDriftMonitor(probe=images)
        >>> ProbeImages(num_images=0)
        Traceback (most recent call last):
        ValueError: num_images: got 0; expected an int of at least 1
    """

    num_images: int = 16
    image_key: str | int | Sequence[str | int] | None = None
    target_key: str | int | Sequence[str | int] | None = None
    batch_adapter: BatchAdapter | str | None = None
    forward: ModelForward | str | None = None
    mask: MaskSource | None = None
    mean: Sequence[float] | float | None = None
    std: Sequence[float] | float | None = None
    pixel_range: Sequence[float] | None = None
    channels: Sequence[int] | int | None = None
    class_names: Sequence[str] | Mapping[int, str] | None = None
    model: str | None = None
    dataloader_idx: int = 0
    seed: int = 0
    images: str | PathLike[str] | Sequence[Any] | Tensor | Iterable[Any] | None = None
    transform: Callable[[Any], Tensor] | str | None = None
    task: str | Task | None = None

    def __post_init__(self) -> None:
        for name, value, least in (
            ("num_images", self.num_images, 1),
            ("dataloader_idx", self.dataloader_idx, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}; expected an int of at least {least}")
        check_seed(self.seed)
        check_task(self.task)
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise ValueError(
                f"model: got {type(self.model).__name__} {self.model!r:.60}; expected the path of a part of the "
                "LightningModule, such as 'net' for self.net, or None for the LightningModule itself"
            )
        ends, normalisation = check_pixel_range(self.pixel_range), self.normalisation
        check_images(self.images)
        # In one form each, so that settings that say the same are equal.
        self._set(
            image_key=_checked_key("image_key", self.image_key),
            target_key=_checked_key("target_key", self.target_key),
            batch_adapter=load_batch_adapter(self.batch_adapter),
            forward=_load("forward", self.forward, _EXPECTED_FORWARD),
            mask=_as_tuple(load_mask_source(self.mask)),
            mean=None if normalisation is None else normalisation.mean,
            std=None if normalisation is None else normalisation.std,
            pixel_range=ends,
            channels=_checked_channels(self.channels),
            class_names=None if self.class_names is None else check_class_names(self.class_names),
            images=_as_tuple(self.images),
            transform=_load("transform", self.transform, _EXPECTED_TRANSFORM),
        )
        given = self.given
        if given is not None and not given.is_loader:
            self._refuse_what_needs_a_batch(given)
        if self.transform is not None and (given is None or not given.has_pictures):
            raise ValueError(
                f"transform: it is for the files or pictures of images=, which is {_kind(given)}; leave it out"
            )

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _refuse_what_needs_a_batch(self, given: GivenImages) -> None:
        for name in _OF_A_BATCH:
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name}: got {value!r:.60}, but images= is {_kind(given)}, without a batch in which to look; "
                    f"leave {name} out, or give a loader whose batches hold both"
                )
        forward: Any = self.forward
        if forward is not None and way_of_function(forward).needs_batch:
            raise ValueError(
                f"forward: {way_of_function(forward).words} takes a batch, but images= is {_kind(given)}, without one; "
                "give a function (model, images), or a loader as images="
            )

    @cached_property
    def normalisation(self) -> Normalisation | None:
        """The normalisation that ``mean`` and ``std`` say, or None."""
        if self.mean is None and self.std is None:
            return None
        return check_normalisation(self.mean, self.std, self.pixel_range)

    @cached_property
    def given(self) -> GivenImages | None:
        """What ``images`` is, or None."""
        return check_images(self.images)

    def _identity(self) -> tuple[Any, ...]:
        return tuple(_identity(getattr(self, field.name)) for field in fields(self))

    def __eq__(self, other: object) -> bool:
        """Whether both say the same."""
        return self._identity() == other._identity() if isinstance(other, ProbeImages) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._identity())


def _identity(value: Any) -> Any:
    """What stands for a value in comparisons: plain values for themselves, anything else for its identity."""
    if isinstance(value, tuple):
        return tuple(_identity(item) for item in value)
    if isinstance(value, PathLike):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, MethodType):  # made anew each time that it is asked for
        return id(value.__func__), id(value.__self__)
    return type(value).__name__, id(value)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _checked_key(argument: str, key: Key | None) -> Key | None:
    if key is None:
        return None
    parts = [key] if isinstance(key, str | int) else list(key) if isinstance(key, Sequence) else []
    if not parts or any(isinstance(part, bool) or not isinstance(part, str | int) or part == "" for part in parts):
        raise ValueError(
            f"{argument}: got {key!r}; expected a name such as 'pixel_values', an index, a path such as "
            "'inputs.image', or a list of names and indices such as [0, 0]"
        )
    return key if isinstance(key, str | int) else tuple(parts)


def _checked_channels(channels: Sequence[int] | int | None) -> tuple[int, ...] | None:
    if channels is None:
        return None
    chosen = [channels] if isinstance(channels, int) else list(channels) if isinstance(channels, Sequence) else []
    if len(chosen) not in (1, 3) or any(
        isinstance(channel, bool) or not isinstance(channel, int) or channel < 0 for channel in chosen
    ):
        raise ValueError(
            f"channels: got {channels!r}; expected three numbers of channels, from 0, for red, green and blue, such as "
            "(3, 2, 1), or one for grey"
        )
    return tuple(chosen)


def _load(argument: str, value: Any, expected: str) -> Callable[..., Any] | None:
    """A callable, imported where its import path is given."""
    return value if value is None or callable(value) else import_callable(argument, value, expected)


def _kind(given: GivenImages | None) -> str:
    return "None" if given is None else given.kind
