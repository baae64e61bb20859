"""A few images of a run, frozen: the same ones in every epoch, on every rank and after a resume."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar
from weakref import ref

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_attngrad.probe.class_names import find_class_names
from lightning_attngrad.probe.display import Display, shown_pixels
from lightning_attngrad.probe.hook_effect import HookEffect, measure_hooks
from lightning_attngrad.probe.isolation import hooks_of_batches, isolated, transfer_batch
from lightning_attngrad.probe.loaders import release_loaders
from lightning_attngrad.probe.normalisation import KnownPixels, Normalisation, find_pixels
from lightning_attngrad.probe.origin import NAMES_OF_DATA, Source, find_origin, named_datasets, transforms_of
from lightning_attngrad.probe.parts import Part, hash_of, joined, part_of
from lightning_attngrad.probe.reading import read_ahead
from lightning_attngrad.probe.resolve import ProbeInputError
from lightning_attngrad.probe.samples import Path, Samples, path_in_words, path_to
from lightning_attngrad.probe.selection import known_targets
from lightning_attngrad.probe.settings import ProbeImages
from lightning_attngrad.probe.stream import GatheredBatches
from lightning_attngrad.probe.tasks import Seen
from lightning_attngrad.probe.written_constants import of_datamodule, of_module, of_processors, of_transforms

T = TypeVar("T")

logger = logging.getLogger("lightning_attngrad")

#: Images of a stream beyond this size are not kept in a checkpoint.
STATE_LIMIT_BYTES = 64 * 2**20
_COLOURS_AND_ONE_MORE = 4  # channels: with an opacity, a depth or an infrared behind red, green and blue
_TRANSFER_HOOKS = ("on_after_batch_transfer", "on_before_batch_transfer", "transfer_batch_to_device")
_LIMIT_OF_BATCHES = {"validation": "limit_val_batches", "training": "limit_train_batches"}


class ProbeSet:
    """N images, their targets and, where asked for, their masks, chosen once.

    They come from the validation data; in a run without a validation loader from the training data; or they are those
    that the user gave. From a map-style loader they are read at once (``read``), before the first training step, and
    chosen with the same number from each class where the targets are known. From a stream (an iterable data set, a
    loader of another kind) they are gathered as batches go by (``collect``), and ``freeze`` gives those of rank 0 to
    all ranks.

    The run's loaders are never iterated, so its order of data does not change, and each rank of a distributed run reads
    the same images. A sampler is asked only where no position in the data set can be read, and then by a fresh
    iterator. Data sets that draw from generators of their own, held anywhere else than in an attribute of themselves or
    of their transforms, are the one thing that reading can disturb.

    What is found about the images (names of classes, normalisation) is found once, and so is their way to the device.

    Args:
        settings: which images; the defaults if None.

    Attributes:
        settings: which images.
        source: which data they come from: ``"validation"``, ``"training"`` or ``"given"``; certain after ``read``.
        is_stream: whether they are gathered as batches of ``source`` go by; certain after ``read``.
        images: (N, C, H, W), on the CPU, perhaps uint8. From a map-style loader: as collated, before any transfer
            hook. From a stream: as the step saw them.
        targets: labels in a form of `probe.labels`, on the CPU, or None.
        seen: what is known of labels beyond those of the images; None where nothing is.
        masks: (N, H, W) float32 in [0, 1], on the CPU, 1 on the object; they have been through the transfer
            hooks, as the images that the model takes. None where ``settings.mask`` is.
        indices: positions in the data set; None for a stream, and for images that no position indexes.
        hash: SHA-256 of images and targets, and of masks if there are any.
        are_bytes: whether a step gets the images as uint8; certain after ``to_device``.
    """

    def __init__(self, settings: ProbeImages | None = None) -> None:
        self.settings = ProbeImages() if settings is None else settings
        self.source: Source = "validation" if self.settings.given is None else "given"
        self.is_stream = False
        self.images: Tensor | None = None
        self.targets: Tensor | None = None
        self.masks: Tensor | None = None
        self.seen: Seen | None = None
        self.indices: list[int] | None = None
        self.hash: str | None = None
        self._batches: list[Any] | None = None  # as collated; None where the images are as the model takes them
        self._gathered: list[Part] = []
        self._stream = GatheredBatches()
        self._keeps_batches = False
        self.are_bytes = False
        self._dataset_length: int | None = None
        self._resumed: dict[str, Any] | None = None
        self._said: set[str] = set()
        self._unsaid: list[str] = []  # of batches that went by
        self._found: dict[str, Any] = {}
        self._on_device: tuple[Any, Part, Samples | None] | None = None  # what it depends on, and the images

    def __getstate__(self) -> dict[str, Any]:
        """Without the images on the device, which belong to a running Trainer."""
        return {**vars(self), "_on_device": None}

    @property
    def is_frozen(self) -> bool:
        """Whether the images are there and will not change."""
        return self.hash is not None

    @property
    def is_full(self) -> bool:
        """Whether a stream has given all N images to this rank, so that ``freeze`` may be called."""
        return self.is_frozen or sum(len(part.images) for part in self._gathered) >= self.settings.num_images

    @property
    def dataloader_idx(self) -> int:
        """Which one of several loaders."""
        return self.settings.dataloader_idx

    def __len__(self) -> int:
        return 0 if self.images is None else len(self.images)

    # Reading ------------------------------------------------------------------------------------------------

    def read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Freeze the images now if they can be read, from any hook; later calls do nothing.

        Returns:
            True if the set is frozen; False if the loader is a stream, whose batches go to ``collect``: those of
            validation or of training, as ``source`` says.

        Raises:
            ProbeInputError: if there is no loader, no such ``dataloader_idx``, or no images in the data.
        """
        if self.is_frozen:
            return True
        with isolated(trainer, pl_module):  # from one seed, whichever set is the first to ask for the loaders
            origin = find_origin(trainer, self.settings)
        self.source = origin.source
        for remark in origin.remarks:
            self.say(trainer, remark)
        split = partial(self._split, trainer)
        found = read_ahead(trainer, pl_module, origin, self.settings, self._indices_of_state, split)
        self.is_stream = found is None
        if found is None:
            self.class_names(trainer)  # labels that go by may be words
            self.say(
                trainer,
                f"the {self.source} loader ({type(origin.loader).__name__}) cannot be read ahead: the "
                f"{self.settings.num_images} probe images are gathered as {self.source} goes by",
            )
            return False
        for remark in found.remarks:
            self.say(trainer, remark)
        self.seen = found.seen
        self._batches, self._dataset_length, self.indices = found.batches, found.dataset_length, found.indices
        part = found.part
        if self.settings.mask is not None:  # where the hooks have put them: they may crop images and masks alike
            part = part._replace(masks=self._moved(trainer, pl_module, found.batches or []).masks)
        if found.batches:
            first = found.batches[0]
            self._say_if_view(trainer, first, path_to(first, part_of(first, self.settings, as_collated=True).images))
        self._set(part)
        self._compare_with_state(trainer)
        self._say_if_masks_are_useless(trainer)
        return True

    def _split(self, trainer: pl.Trainer, batch: Any, *, quietly: bool = False) -> Part:
        """A collated batch into its parts; labels that cannot be read are told of, unless quietly."""
        say = None if quietly else partial(self.say, trainer)
        names = partial(self.class_names, trainer)
        return part_of(batch, self.settings, as_collated=True, class_names=names, say=say)

    # Gathering ----------------------------------------------------------------------------------------------

    def collect(self, batch: Any, dataloader_idx: int = 0) -> None:
        """Take images from a batch of a stream, as a hook of ``source`` receives it, until there are N.

        Raises:
            ProbeInputError: if the batch holds no images.
        """
        if self.is_full or (self.source == "validation" and dataloader_idx != self.dataloader_idx):
            return
        missing = self.settings.num_images - sum(len(part.images) for part in self._gathered)
        with torch.no_grad():
            names: Any = self.settings.class_names or self._found.get("class names")
            part = part_of(
                batch,
                self.settings,
                as_collated=True,
                with_masks=True,
                class_names=lambda: names,
                say=self._unsaid.append,
            )
            # Cloned, since the memory of a batch may be reused; freeze() makes normal tensors of inference ones.
            kept = [None if values is None else values[:missing].detach().clone().cpu() for values in part]
            self._gathered.append(Part(*kept))  # type: ignore[arg-type]  # there are images
            self._stream.add(batch, part.images, missing)

    def start_over(self) -> None:
        """Drop what has been gathered: the stream begins again, and its first images would be taken twice."""
        self._gathered = []
        self._stream = GatheredBatches()

    def freeze(self, trainer: pl.Trainer) -> None:
        """End the gathering: rank 0's images become those of all ranks. A collective: every rank calls it.

        Raises:
            ProbeInputError: on every rank, if rank 0 has gathered nothing, or images of several sizes.
        """
        if self.is_frozen:
            return
        with torch.inference_mode(False):
            # An error on rank 0 alone would leave the others waiting, so it travels in the place of the images.
            mine = self._all_gathered() if trainer.is_global_zero else None
            received: Any = trainer.strategy.broadcast(mine, src=0)
        self._gathered = []
        for message in self._unsaid[:1]:  # of all batches alike
            self.say(trainer, message)
        self._unsaid = []
        self._say_if_view(trainer, *self._stream.first)
        if isinstance(received, str):
            raise ProbeInputError(received)
        if len(received[0]) < self.settings.num_images:
            self.say(
                trainer,
                f"{self.settings.num_images} probe images were asked for, {len(received[0])} went by: using those",
            )
        self.is_stream = True
        self._set(Part(*received))
        self._compare_with_state(trainer)
        self._say_if_masks_are_useless(trainer)

    def _all_gathered(self) -> Part | str:
        """What went by, or why there is nothing to use."""
        of = NAMES_OF_DATA[self.source]
        if not self._gathered:
            return (
                f"{of}: no batch went by from which probe images could be gathered; check "
                f"{_LIMIT_OF_BATCHES[self.source]} and dataloader_idx={self.dataloader_idx}"
            )
        try:
            return joined(self._gathered, self.settings.num_images, of)
        except ProbeInputError as error:
            return str(error)

    # For an evaluation --------------------------------------------------------------------------------------

    def to_device(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Tensor, Tensor | None]:
        """The images as a validation step would get them: through the transfer hooks, on the model's device.

        They go through the hooks once, with random augmentation in ``on_after_batch_transfer`` from the seed, and are
        kept on the device as long as it, the precision and the module stay the same.

        Returns:
            Images (N, C, H, W) and labels in a form of `probe.labels` or None, as normal (not inference) tensors, which
            the caller may write to.

        Raises:
            ProbeInputError: if the set is not frozen yet, or the hooks leave no floating images.
        """
        if self.images is None:
            raise ProbeInputError("probe set: there are no images yet; call read(), or collect() and freeze()")
        release_loaders(trainer)
        with torch.inference_mode(False):
            if self._batches is not None:
                images, targets, _ = self._moved(trainer, pl_module, self._batches).clone()
            else:
                images, targets, _ = self._sent(trainer.strategy.root_device).clone()
            self.are_bytes = images.dtype == torch.uint8
            if self.are_bytes:
                images = images.float()  # the same numbers, of which there are gradients
            if targets is None and self.targets is not None:
                targets = self.targets.to(images.device)
            return images, targets

    def _sent(self, device: torch.device) -> Part:
        """Images that are as the model takes them already, on the device."""
        assert self.images is not None
        images, targets = self.images, self.targets

        def send() -> tuple[Part, Samples | None]:
            samples = self._stream.samples if self._keeps_batches else None
            part = Part(images.to(device), None if targets is None else targets.to(device), None)
            return part, None if samples is None else samples.map(lambda tensor: tensor.to(device))

        return self._kept(device, send)

    def _moved(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batches: list[Any]) -> Part:
        """The images of collated batches as a validation step would get them; with their masks, on the CPU."""
        return self._kept(
            (trainer.strategy.root_device, str(trainer.precision), ref(pl_module)),
            lambda: self._through_hooks(trainer, pl_module, batches),
        )

    def _through_hooks(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batches: list[Any],
        *,
        in_precision_of_run: bool = True,
    ) -> tuple[Part, Samples | None]:
        place = 0 if self.source == "given" else self.dataloader_idx
        with isolated(trainer, pl_module, seed=self.settings.seed), torch.no_grad():
            moved = [
                transfer_batch(trainer, pl_module, batch, place, in_precision_of_run=in_precision_of_run)
                for batch in batches
            ]
            names, say = partial(self.class_names, trainer), partial(self.say, trainer)
            parts = [
                part_of(
                    batch,
                    self.settings,
                    as_collated=True,
                    with_masks=in_precision_of_run,
                    class_names=names,
                    say=say,
                )
                for batch in moved
            ]
            part = joined(parts, self.settings.num_images, NAMES_OF_DATA[self.source])
            if not self._keeps_batches or not in_precision_of_run:
                return part, None
            sizes = [len(one.images) for one in parts]
            paths = [path_to(batch, one.images) for batch, one in zip(moved, parts, strict=True)]
            return part, Samples.of(moved, sizes, paths)

    def _kept(self, depends_on: Any, make: Callable[[], tuple[Part, Samples | None]]) -> Part:
        if self._on_device is None or self._on_device[0] != depends_on:
            self._on_device = depends_on, *make()
        return self._on_device[1]

    def keep_batches(self, trainer: pl.Trainer) -> None:
        """Keep all that the batches hold of the samples, not only their images; a collective operation.

        Raises:
            ProbeInputError: on every process, if the images of a stream are there without their batches.
        """
        if self._keeps_batches:
            return
        self._keeps_batches, self._on_device = True, None
        if self.is_stream:
            with torch.inference_mode(False):
                self._stream.share(trainer)

    def leave_batches(self) -> None:
        """Images are enough: let go of what else a stream's batches hold."""
        self._stream = GatheredBatches()

    @property
    def samples(self) -> Samples | None:
        """What the batches hold of the samples, with the images that ``to_device`` gave last.

        None where they are not kept, and for images that were given without a batch.
        """
        return None if self._on_device is None else self._on_device[2]

    def class_names(self, trainer: pl.Trainer) -> tuple[str, ...] | None:
        """What the classes are called: see `find_class_names`. Looked for at the first call only.

        Returns:
            The names in the order of their numbers, or None if nothing tells.
        """

        def find() -> tuple[str, ...] | None:
            with isolated(trainer, trainer.lightning_module):  # the user's loaders may be asked for
                return find_class_names(trainer, datasets=named_datasets(trainer))

        explicit: Any = self.settings.class_names  # checked by the settings
        return explicit if explicit is not None else self._find("class names", find)

    def seen_labels(self, trainer: pl.Trainer) -> Seen | None:
        """What is known of labels beyond those of the images; of images that the user gave, from the run's own data."""

        def find() -> Seen | None:
            with isolated(trainer, trainer.lightning_module):  # the user's loaders may be asked for
                known = (known_targets(dataset) for dataset in named_datasets(trainer) if hasattr(dataset, "__len__"))
                labels = next((one for one in known if one is not None), None)
            return None if labels is None else Seen.of(torch.from_numpy(labels), whole=True)

        if self.seen is None and self.source == "given" and self.targets is None:
            return self._find("labels of the run", find)
        return self.seen

    def stated_normalisation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Normalisation | None:
        """What the arguments, or a ``Normalize`` in transforms of the data, say. Looked for at the first call only."""

        def find() -> Normalisation | None:
            with isolated(trainer, pl_module):  # the user's loaders may be asked for
                return of_transforms(transforms_of(trainer, self.settings, self.source))

        return self.settings.normalisation or self._find("stated normalisation", find)

    def known_pixels(self, trainer: pl.Trainer, pl_module: pl.LightningModule, images: Tensor) -> KnownPixels:
        """What turns the images that the model takes back into pixels: see `find_pixels`. Found at the first call.

        Args:
            trainer: the Trainer.
            pl_module: the LightningModule.
            images: as ``to_device`` gives them.
        """

        def find() -> KnownPixels:
            given, stated = self.settings.normalisation, self.stated_normalisation(trainer, pl_module)
            if given is None and self.are_bytes:
                given = Normalisation((0.0,), (1.0,), "images that are bytes", pixel_range=(0.0, 255.0))
            if given is not None:
                return find_pixels(images, model=pl_module, given=given)
            hooks = self._effect_of_hooks(trainer, pl_module)
            return find_pixels(
                images,
                model=pl_module,
                pixel_range=self.settings.pixel_range,  # type: ignore[arg-type]  # two floats, as checked
                stated=stated,
                hints=self._written_constants(trainer, pl_module, hooks),
                hooks=hooks,
                collated=None if self._batches is None else self.images,
            )

        return self._find("pixels", find)

    def shown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, images: Tensor) -> tuple[Tensor, Display]:
        """The images as figures show them: see `shown_pixels`. What the user says, and does not fit them, is told."""

        def show() -> tuple[Tensor, Display]:
            known = self.known_pixels(trainer, pl_module, images)
            if known.why_not and self.settings.normalisation is not None:
                self.say(trainer, f"figures show stretched images, and undo no normalisation: {known.why_not}")
            if self.settings.channels is None and images.shape[1] > _COLOURS_AND_ONE_MORE:
                self.say(
                    trainer,
                    f"the images have {images.shape[1]} channels, and figures show the first three as red, green and "
                    "blue; say which ones are, with ProbeImages(channels=(3, 2, 1)), or one to be shown in grey",
                )
            return shown_pixels(images, known, self.settings.channels)  # type: ignore[arg-type]  # numbers, as checked

        return self._find("shown", show)

    def _effect_of_hooks(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> HookEffect | None:
        """What the user's transfer hooks do to the images; None where there are no hooks, or images skip them."""
        name = hooks_of_batches(trainer, pl_module, _TRANSFER_HOOKS)
        if name is None or (self._batches is None and not self.is_stream):
            return None
        if self._batches is None:
            return HookEffect(name, why_unknown=f"the images were gathered behind it as {self.source} went by")

        def send(batches: list[Any]) -> Tensor:
            return self._through_hooks(trainer, pl_module, batches, in_precision_of_run=False)[0].images

        def images_in(batch: Any) -> Tensor:
            return part_of(batch, self.settings, as_collated=True).images

        return measure_hooks(name, self._batches, images_in, send)

    def _written_constants(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, hooks: HookEffect | None
    ) -> list[Normalisation]:
        datamodule = getattr(trainer, "datamodule", None)
        found = list(of_datamodule(datamodule))
        if hooks is not None and not hooks.is_identity:  # else what the module normalises, it does behind the images
            found += of_module(pl_module, type(pl_module).__name__)
        with isolated(trainer, pl_module):  # the user's loaders may be asked for
            return [*found, *of_processors([pl_module, datamodule, *named_datasets(trainer)])]

    def _find(self, what: str, find: Callable[[], T]) -> T:
        if what not in self._found:
            self._found[what] = find()
        return self._found[what]  # type: ignore[no-any-return]

    # Resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain Python and tensors: settings, indices and hash; for a stream the images as well.

        Images of a stream larger than ``STATE_LIMIT_BYTES`` (64 MiB) in all are left out; a resumed run then
        gathers anew and says so.
        """
        if self.images is None:
            return dict(self._resumed or {})
        size = sum(values.nbytes for values in (self.images, self.masks) if values is not None)
        batches = self._stream.plain() if self._keeps_batches and self.is_stream else None
        if batches is not None:
            size += batches["bytes"]
        complete = not self._keeps_batches or batches is not None
        keep_images = self.is_stream and size <= STATE_LIMIT_BYTES and complete
        return {
            "num_images": self.settings.num_images,
            "seed": self.settings.seed,
            "dataloader_idx": self.dataloader_idx,
            "source": self.source,
            "dataset_length": self._dataset_length,
            "indices": None if self.indices is None else list(self.indices),
            "hash": self.hash,
            "images": self.images if keep_images else None,
            "targets": self.targets if keep_images else None,
            "masks": self.masks if keep_images else None,
            "batches": batches if keep_images else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the set of an earlier run.

        A stream's images come from the state. Those of a map-style loader are read again, by the same
        indices, in ``read``; if they have another hash than before, the data set has changed: one warning
        says so, and the run goes on with the images of today, as the state holds no others. Other settings
        than those of the state win over it, with a warning.
        """
        if not state:
            return
        self._resumed = dict(state)
        masks = state.get("masks")  # a checkpoint may be older than they are
        fits = self._same_settings(state) and (masks is None) == (self.settings.mask is None)
        if state["images"] is not None and fits and self.settings.given is None:
            self.source, self.is_stream = state.get("source", "validation"), True
            self._set(Part(state["images"], state["targets"], masks))
            self._stream = GatheredBatches.restored(state.get("batches"))

    def _same_settings(self, state: dict[str, Any]) -> bool:
        return all(state[name] == getattr(self.settings, name) for name in ("num_images", "seed", "dataloader_idx"))

    def _indices_of_state(self, length: int) -> list[int] | None:
        state = self._resumed
        if state is None or not state["indices"] or state.get("source", "validation") != self.source:
            return None
        if self._same_settings(state) and state["dataset_length"] == length:
            return list(state["indices"])
        return None

    def _compare_with_state(self, trainer: pl.Trainer) -> None:
        if self._resumed is not None and self._resumed["hash"] != self.hash:
            self.say(
                trainer,
                "the probe images are not those of the run that is resumed (the data set, its transforms or "
                "the settings num_images, seed, dataloader_idx, mask, images have changed): figures and numbers before "
                "and after the resume are not comparable",
            )
        self._resumed = None

    def _set(self, part: Part) -> None:
        self.images, self.targets, self.masks = part
        self.hash = hash_of(part)

    # Saying -------------------------------------------------------------------------------------------------

    def _say_if_masks_are_useless(self, trainer: pl.Trainer) -> None:
        if self.masks is not None and not bool((self.masks.flatten(1).amax(1) != self.masks.flatten(1).amin(1)).any()):
            self.say(
                trainer,
                f"mask: those of all {len(self)} probe images are empty or full, and do not say where the object is; "
                "give other masks, or a larger num_images",
            )

    def _say_if_view(self, trainer: pl.Trainer, batch: Any, path: Path | None) -> None:
        """Images that lie further inside than at the top of a batch, where nobody has said so, are one of its views."""
        if self.settings.image_key is None and path is not None and len(path) > 1:
            self.say(
                trainer,
                f"the images are {path_in_words(path, batch)}, the first of several views; image_key="
                f"{[*path[:-1], 1]} is the second",
            )

    def say(self, trainer: pl.Trainer, message: str) -> None:
        """Once a set, on rank zero. As a warning, since Python shows nothing below that unless asked to."""
        if message not in self._said and trainer.is_global_zero:
            logger.warning(message)
        self._said.add(message)
