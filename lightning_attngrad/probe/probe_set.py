"""A few validation images, frozen: the same ones in every epoch, on every rank and after a resume."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_attngrad.probe.isolation import isolated
from lightning_attngrad.probe.loaders import evaluation_loaders, is_map_style
from lightning_attngrad.probe.masks import MaskSource, load_mask_source, read_masks
from lightning_attngrad.probe.parts import Part, joined
from lightning_attngrad.probe.reading import read_batches
from lightning_attngrad.probe.resolve import (
    BatchAdapter,
    Key,
    ProbeInputError,
    load_batch_adapter,
    split_batch,
)
from lightning_attngrad.probe.selection import balanced_choice, candidate_indices, known_targets
from lightning_attngrad.probe.transfer import transfer_batch
from lightning_attngrad.state import check_seed

logger = logging.getLogger("lightning_attngrad")

#: Images of a stream beyond this size are not kept in a checkpoint.
STATE_LIMIT_BYTES = 64 * 2**20
_CANDIDATES_PER_IMAGE = 8


class ProbeSet:
    """N validation images, their targets and, where asked for, their masks, chosen once.

    From a map-style loader they are read at once (``read``), before the first training step, and chosen with
    the same number from each class where the targets are known. From a stream (an iterable data set, a loader
    of another kind) they are gathered as validation goes by (``collect``), and ``freeze`` gives those of rank
    0 to all ranks.

    The loader is never iterated and its sampler never asked, so the run's order of data does not change, and
    each rank of a distributed run reads the same images. Data sets that draw from generators of their own,
    held anywhere else than in an attribute of themselves or of their transforms, are the one thing that
    reading can disturb.

    Args:
        num_images: N; fewer if the data hold fewer.
        seed: of the choice, and of random transforms while reading.
        image_key: see ``split_batch``.
        target_key: see ``split_batch``.
        batch_adapter: see ``split_batch``.
        mask: where the masks are, or what makes them from a batch as the validation step gets it: see
            ``load_mask_source``.
        dataloader_idx: which one of several validation loaders.

    Raises:
        ValueError: if a number is out of range, or ``batch_adapter`` or ``mask`` cannot be imported.

    Attributes:
        images: (N, C, H, W), on the CPU. From a map-style loader: as collated, before any transfer hook,
            perhaps uint8. From a stream: as the validation step saw them.
        targets: (N,) int64 on the CPU, or None.
        masks: (N, H, W) float32 in [0, 1], on the CPU, 1 on the object; they have been through the transfer
            hooks, as the images that the model takes. None where ``mask`` is.
        indices: positions in the data set, None for a stream.
        hash: SHA-256 of images and targets, and of masks if there are any.
    """

    def __init__(
        self,
        num_images: int = 16,
        seed: int = 0,
        *,
        image_key: Key | None = None,
        target_key: Key | None = None,
        batch_adapter: BatchAdapter | str | None = None,
        mask: MaskSource | None = None,
        dataloader_idx: int = 0,
    ) -> None:
        for name, value, least in (("num_images", num_images, 1), ("dataloader_idx", dataloader_idx, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: got {value!r}; expected an int of at least {least}")
        check_seed(seed)
        self.num_images = num_images
        self.seed = seed
        self.dataloader_idx = dataloader_idx
        self._image_key = image_key
        self._target_key = target_key
        self._batch_adapter = load_batch_adapter(batch_adapter)
        self._mask = load_mask_source(mask)
        self.images: Tensor | None = None
        self.targets: Tensor | None = None
        self.masks: Tensor | None = None
        self.indices: list[int] | None = None
        self.hash: str | None = None
        self._batches: list[Any] | None = None  # as collated; None for a stream
        self._gathered: list[Part] = []
        self._dataset_length: int | None = None
        self._resumed: dict[str, Any] | None = None
        self._said: set[str] = set()

    @property
    def is_frozen(self) -> bool:
        """Whether the images are there and will not change."""
        return self.hash is not None

    @property
    def is_full(self) -> bool:
        """Whether a stream has given all N images to this rank, so that ``freeze`` may be called."""
        return self.is_frozen or sum(len(part.images) for part in self._gathered) >= self.num_images

    def __len__(self) -> int:
        return 0 if self.images is None else len(self.images)

    def read(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Freeze the images of a map-style loader now, from any hook; later calls do nothing.

        Returns:
            True if the set is frozen; False if the loader is a stream, whose batches go to ``collect``.

        Raises:
            ProbeInputError: if there is no validation loader, no such ``dataloader_idx``, or no images in the
                data.
        """
        if self.is_frozen:
            return True
        with isolated(trainer, pl_module, seed=self.seed):
            loader = self._select_loader(trainer)
            if not is_map_style(loader):
                self._say(
                    trainer,
                    f"the validation loader ({type(loader).__name__}) cannot be read ahead: the "
                    f"{self.num_images} probe images are gathered as validation goes by",
                )
                return False
            length = len(loader.dataset)
            if length == 0:
                raise ProbeInputError("validation data: the data set is empty; give it at least one image")
            if length < self.num_images:
                self._say(
                    trainer,
                    f"{self.num_images} probe images were asked for, the data set holds {length}: using those",
                )
            indices = self._indices_of_state(length) or self._choose(loader, length)
        with isolated(trainer, pl_module, seed=self.seed):  # anew: the choice may have drawn random numbers
            batches = read_batches(loader, indices)
            # Inside, as outside of it a validation hook would make inference tensors of them.
            read = joined([self._split(batch, require_float=False) for batch in batches], self.num_images)
        if self._mask is not None:  # where the hooks have put them: they may crop images and masks alike
            read = read._replace(masks=self._transferred(trainer, pl_module, batches, with_masks=True).masks)
        self._batches, self._dataset_length, self.indices = batches, length, indices
        self._set(*read)
        self._compare_with_state(trainer)
        self._say_if_masks_are_useless(trainer)
        return True

    def collect(self, batch: Any, dataloader_idx: int = 0) -> None:
        """Take images from a batch of a stream, as a validation hook receives it, until there are N.

        Raises:
            ProbeInputError: if the batch holds no images.
        """
        if self.is_full or dataloader_idx != self.dataloader_idx:
            return
        missing = self.num_images - sum(len(part.images) for part in self._gathered)
        with torch.no_grad():
            part = self._split(batch, require_float=True, with_masks=True)
            # Cloned, since the memory of a batch may be reused; freeze() makes normal tensors of inference ones.
            kept = [None if rows is None else rows[:missing].detach().clone().cpu() for rows in part]
            self._gathered.append(Part(*kept))  # type: ignore[arg-type]  # there are images

    def start_over(self) -> None:
        """Drop what has been gathered: the stream begins again, and its first images would be taken twice."""
        self._gathered = []

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
        if isinstance(received, str):
            raise ProbeInputError(received)
        if len(received[0]) < self.num_images:
            self._say(
                trainer,
                f"{self.num_images} probe images were asked for, {len(received[0])} went by: using those",
            )
        self._set(*received)
        self._compare_with_state(trainer)
        self._say_if_masks_are_useless(trainer)

    def _all_gathered(self) -> Part | str:
        """What went by, or why there is nothing to use."""
        if not self._gathered:
            return (
                "validation data: no batch went by from which probe images could be gathered; check "
                f"limit_val_batches and dataloader_idx={self.dataloader_idx}"
            )
        try:
            return joined(self._gathered, self.num_images)
        except ProbeInputError as error:
            return str(error)

    def to_device(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[Tensor, Tensor | None]:
        """The images as a validation step would get them: through the transfer hooks, on the model's device.

        Random augmentation in ``on_after_batch_transfer`` starts from the seed, so each call gives the same
        images.

        Returns:
            Images (N, C, H, W) and targets (N,) or None, as normal (not inference) tensors.

        Raises:
            ProbeInputError: if the set is not frozen yet, or the hooks leave no floating images.
        """
        if self.images is None:
            raise ProbeInputError("probe set: there are no images yet; call read(), or collect() and freeze()")
        device = trainer.strategy.root_device
        if self._batches is None:  # a stream's images have been through the hooks already
            with torch.inference_mode(False):
                return self.images.to(device), None if self.targets is None else self.targets.to(device)
        images, targets, _ = self._transferred(trainer, pl_module, self._batches)
        if targets is None and self.targets is not None:
            targets = self.targets.to(images.device)
        return images, targets

    def _transferred(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batches: list[Any], *, with_masks: bool = False
    ) -> Part:
        """The images of collated batches as a validation step would get them, the same at each call."""
        with isolated(trainer, pl_module, seed=self.seed), torch.no_grad():
            transferred = [transfer_batch(trainer, pl_module, batch, self.dataloader_idx) for batch in batches]
            parts = [self._split(batch, require_float=True, with_masks=with_masks) for batch in transferred]
            return joined(parts, self.num_images)

    def state_dict(self) -> dict[str, Any]:
        """Plain Python and tensors: settings, indices and hash; for a stream the images as well.

        Images of a stream larger than ``STATE_LIMIT_BYTES`` (64 MiB) in all are left out; a resumed run then
        gathers anew and says so.
        """
        if self.images is None:
            return dict(self._resumed or {})
        stream = self._batches is None
        size = sum(rows.element_size() * rows.nelement() for rows in (self.images, self.masks) if rows is not None)
        keep_images = stream and size <= STATE_LIMIT_BYTES
        return {
            "num_images": self.num_images,
            "seed": self.seed,
            "dataloader_idx": self.dataloader_idx,
            "dataset_length": self._dataset_length,
            "indices": None if self.indices is None else list(self.indices),
            "hash": self.hash,
            "images": self.images if keep_images else None,
            "targets": self.targets if keep_images else None,
            "masks": self.masks if keep_images else None,
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
        if state["images"] is not None and self._same_settings(state) and (masks is None) == (self._mask is None):
            self._set(state["images"], state["targets"], masks)

    def _same_settings(self, state: dict[str, Any]) -> bool:
        return all(state[name] == getattr(self, name) for name in ("num_images", "seed", "dataloader_idx"))

    def _indices_of_state(self, length: int) -> list[int] | None:
        state = self._resumed
        if state is None or not state["indices"]:
            return None
        if self._same_settings(state) and state["dataset_length"] == length:
            return list(state["indices"])
        return None

    def _compare_with_state(self, trainer: pl.Trainer) -> None:
        if self._resumed is not None and self._resumed["hash"] != self.hash:
            self._say(
                trainer,
                "the probe images are not those of the run that is resumed (the data set, its transforms or "
                "the settings num_images, seed, dataloader_idx, mask have changed): figures and numbers before "
                "and after the resume are not comparable",
            )
        self._resumed = None

    def _select_loader(self, trainer: pl.Trainer) -> Any:
        loaders = evaluation_loaders(trainer)
        if not loaders:
            raise ProbeInputError(
                "validation data: the run has no validation loader; define val_dataloader(), or pass "
                "val_dataloaders to trainer.fit"
            )
        if self.dataloader_idx >= len(loaders):
            raise ProbeInputError(
                f"dataloader_idx: got {self.dataloader_idx}; expected 0 to {len(loaders) - 1}, as there are "
                f"{len(loaders)} validation loaders"
            )
        if len(loaders) > 1:
            self._say(
                trainer,
                f"there are {len(loaders)} validation loaders; the probe images come from dataloader_idx="
                f"{self.dataloader_idx}",
            )
        return loaders[self.dataloader_idx]

    def _choose(self, loader: Any, length: int) -> list[int]:
        targets = known_targets(loader.dataset)
        if targets is not None:
            return balanced_choice(targets, self.num_images, self.seed)
        candidates = candidate_indices(length, _CANDIDATES_PER_IMAGE * self.num_images, self.seed)
        found: list[int] = []
        for index in candidates:
            (batch,) = read_batches(loader, [index])
            images, target, _ = self._split(batch, require_float=False)
            if target is None or len(images) != 1:  # no classes to balance, or items that are batches
                return candidates[: self.num_images]
            found.append(int(target))
        return [candidates[position] for position in balanced_choice(found, self.num_images, self.seed)]

    def _split(self, batch: Any, *, require_float: bool, with_masks: bool = False) -> Part:
        images, targets = split_batch(
            batch,
            image_key=self._image_key,
            target_key=self._target_key,
            batch_adapter=self._batch_adapter,
            require_float=require_float,
        )
        masks = read_masks(batch, self._mask, images) if with_masks and self._mask is not None else None
        return Part(images, targets, masks)

    def _set(self, images: Tensor, targets: Tensor | None, masks: Tensor | None = None) -> None:
        self.images, self.targets, self.masks = images, targets, masks
        self.hash = _hash(images, targets, masks)

    def _say_if_masks_are_useless(self, trainer: pl.Trainer) -> None:
        if self.masks is not None and not bool((self.masks.flatten(1).amax(1) != self.masks.flatten(1).amin(1)).any()):
            self._say(
                trainer,
                f"mask: those of all {len(self)} probe images are empty or full, and do not say where the object is; "
                "give other masks, or a larger num_images",
            )

    def _say(self, trainer: pl.Trainer, message: str) -> None:
        """Once a set, on rank zero. As a warning, since Python shows nothing below that unless asked to."""
        if message not in self._said and trainer.is_global_zero:
            logger.warning(message)
        self._said.add(message)


def _hash(images: Tensor, targets: Tensor | None, masks: Tensor | None = None) -> str:
    digest = hashlib.sha256()
    for tensor in (images, targets, *([] if masks is None else [masks])):
        if tensor is None:
            digest.update(b"none")
            continue
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
