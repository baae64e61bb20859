"""AttentionGuidance: adds to the loss of a run that attention lies on the object, without touching the module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_attngrad.attention import ImagePlaces, TrainingTap
from lightning_attngrad.guidance import (
    AttentionGuidanceLoss,
    PlausiblePairs,
    Weight,
    attention_guidance_loss,
    check_captured,
    check_eager,
    image_places,
    object_pairs,
    wanted,
    weight_at,
)
from lightning_attngrad.probe import (
    MaskSource,
    ProbeInputError,
    find_masks,
    isolated,
    load_mask_source,
    read_masks,
    resolve_model,
    split_batch,
)
from lightning_attngrad.probe.settings import ModelForward
from lightning_attngrad.probe.ways import way_of_function

#: Those in which it has been seen to add what it should, by name: `pytorch_lightning` has classes of its own.
_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")


class AttentionGuidance(pl.Callback):
    """Adds to the loss of each training step that the attention of the model lies on the object.

    The loss is that of :func:`~lightning_attngrad.guidance.attention_guidance_loss` with the cells that the mask
    touches as plausible keys: of the queries that lie nowhere on the image, such as the class token, and of those on
    the object; or of all of them in a model that pools its tokens. Where tokens lie is traced, see
    :func:`~lightning_attngrad.guidance.object_pairs`.

    The module is not touched. A function mode watches its attention from the start of a batch until its backward pass
    begins, and changes nothing; there the guidance is added to the loss, in the graph of the step, with its value taken
    off again: gradients are those of ``loss + weight · guidance``, while the loss that is logged stays the step's own.
    So it is scaled, accumulated, clipped and reduced as the loss is: under DDP and FSDP2, mixed precision, accumulated
    gradients, and activation checkpointing with ``use_reentrant=False``. With ``weight=0`` a run is, bit for bit, the
    run without.

    Logged at each step: ``attngrad/guidance/loss`` (before the weight), ``mass_inside`` and ``mass_outside`` (shares of
    the attention to the image, NaN where no mask of the batch holds anything), and ``weight``. On several processes
    they are those of the first.

    Unlike the monitors it is a part of the training, so an error in it ends the run: a run that silently went on
    unguided would be another one.

    Args:
        mask: where in a training batch the mask of each image's object is, as in
            :class:`~lightning_attngrad.ProbeImages`: a key such as ``"mask"``, or a function from a batch to masks, or
            its import path with a colon. Shape (B, H, W) of the images' size. The batch is that which the step gets.
            Where only some batches have masks, a function that returns None for the others, such as
            ``lambda batch: batch.get("mask")``: those train unguided, as does an image whose mask is empty. An epoch in
            which no mask held anything is said.
        weight: of the guidance in the loss; or a function from the optimizer step to it, such as
            :class:`~lightning_attngrad.guidance.LinearWarmup`.
        layers: names of the attention layers that are guided, as in ``model``: ``"blocks.3.attn"``. None is all that
            the output depends on.
        largest: weight of the term that asks for one key that gets everything; 0 leaves it to the model how the
            attention lies on the object.
        model: the part of the LightningModule that attends, as a path: ``"net"`` for ``self.net``. None is the
            LightningModule itself.
        image_key: where in a batch the images are; None tries the places that are common.
        forward: how the model is run, for tracing, where ``model(images)`` is not it: ``(model, images) -> output`` or
            ``(model, images, batch) -> output``.
        name: stands in ``attngrad/<name>/…``; another for each of several.

    Raises:
        ValueError: for an argument that does not fit, at construction; before training for manual optimization, a
            compiled model, or a strategy in which it has not been tried.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> guidance = attngrad.AttentionGuidance(mask="mask", weight=0.3)
        >>> # trainer = L.Trainer(callbacks=[guidance, attngrad.AttentionMapMonitor()])
    """

    def __init__(
        self,
        mask: MaskSource,
        weight: Weight = 1.0,
        *,
        layers: Sequence[str] | None = None,
        largest: float = 0.0,
        model: str | None = None,
        image_key: str | int | Sequence[str | int] | None = None,
        forward: ModelForward | None = None,
        name: str = "guidance",
    ) -> None:
        if mask is None:
            raise ValueError("mask: got None; expected where in a batch the masks are, such as mask='mask'")
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split("/")):
            raise ValueError(f"name: got {name!r}; expected a word such as 'guidance': it stands in attngrad/<name>/…")
        if isinstance(largest, bool) or not isinstance(largest, int | float) or not largest >= 0:
            raise ValueError(f"largest: got {largest!r}; expected a number of at least 0")
        weight_at(weight, 0)
        wanted(layers)
        self.mask: Any = load_mask_source(mask)
        self.weight = weight
        self.layers = None if layers is None else tuple(layers)
        self.largest = float(largest)
        self.model = model
        self.image_key = image_key
        self.name = name
        self.forward = forward
        self._tap: TrainingTap | None = None
        self._pairs: dict[str, PlausiblePairs] = {}
        self._found: AttentionGuidanceLoss | None = None
        self._weight_now = 0.0
        self._known: tuple[torch.Size, ImagePlaces] | None = None  # of this fit, from its first step on
        self._held: Tensor | None = None  # whether a mask of this epoch held anything, on the device

    @property
    def state_key(self) -> str:
        """Its own for each name."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse, before training starts, what cannot work."""
        if stage != "fit":
            return
        twins = [other for other in trainer.callbacks if isinstance(other, AttentionGuidance)]  # type: ignore[attr-defined]
        if sum(other.name == self.name for other in twins) > 1:
            raise ValueError(
                f"name: several AttentionGuidance are called {self.name!r} and would write over each other; give each "
                "its own, as in AttentionGuidance(…, name='early_layers')"
            )
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"AttentionGuidance: {type(pl_module).__name__} optimizes manually, and which of its losses the "
                f"guidance belongs to only its training_step can say; {_TWO_LINES}"
            )
        kinds = [base.__name__ for base in type(trainer.strategy).__mro__]
        if not any(kind in _STRATEGIES for kind in kinds) or "FSDPStrategy" in kinds or "DeepSpeedStrategy" in kinds:
            raise ValueError(
                f"AttentionGuidance: got the strategy {kinds[0]}; expected a single device, DDP, or FSDP2 "
                f"(ModelParallelStrategy), in which its gradients are known to be right; otherwise {_TWO_LINES}"
            )
        model = resolve_model(pl_module, self.model, needs_forward=self.forward is None)
        if getattr(pl_module, "_compiler_ctx", None) is not None:
            raise ValueError("AttentionGuidance: the LightningModule is compiled, so that its attention is not seen")
        check_eager(model)
        self._known = None

    # A step ------------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,  # noqa: ARG002  (the hooks of Lightning have it)
    ) -> None:
        """Begin to watch."""
        self._stop()
        self._found = None
        model = resolve_model(pl_module, self.model, needs_forward=self.forward is None)
        images, _ = split_batch(batch, image_key=self.image_key)
        masks = self._masks(batch, images, values_too=self._known is None)
        held = masks.any()
        self._held = held if self._held is None else self._held | held
        places = self._places(trainer, pl_module, model, images, batch)
        pairs = object_pairs(places, masks)
        self._pairs = pairs if self.layers is None else {layer: pairs[layer] for layer in self.layers}
        self._tap = TrainingTap(model, self._pairs.__contains__)
        self._tap.begin()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Add the guidance to the loss, which is scaled and divided already."""
        tap = self._tap
        if tap is None or self._known is None:
            raise RuntimeError(
                f"AttentionGuidance: the optimizer runs the training step of {type(pl_module).__name__} more than once "
                f"a batch (LBFGS), which it does not follow; {_TWO_LINES}"
            )
        self._stop(keep=True)
        try:
            weight = self._weight_now = weight_at(self.weight, trainer.global_step)
            with torch.set_grad_enabled(weight > 0):
                self._found = self._loss(tap, self._known[1])
                if weight > 0:
                    guidance = self._found.loss * (weight / trainer.accumulate_grad_batches)
                    scaler = getattr(trainer.precision_plugin, "scaler", None)
                    if scaler is not None:
                        guidance = scaler.scale(guidance)
                    # In place: what Lightning hands over is its own quotient, which nothing has kept for its gradient.
                    loss.add_(guidance - guidance.detach())
        finally:
            tap.release()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Log; a step that returned no loss had no backward pass."""
        self._stop()
        found, self._found = self._found, None
        self._pairs = {}
        if found is None:
            return
        values: dict[str, Tensor | float] = {
            "loss": found.loss.detach(),
            "mass_inside": found.mass_inside,
            "mass_outside": found.mass_outside,
            "weight": self._weight_now,
        }
        keyed: Any = {f"attngrad/{self.name}/{name}": value for name, value in values.items()}
        pl_module.log_dict(keyed, on_step=True, on_epoch=False, batch_size=1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Say it where nothing was there to guide by, on any of the processes."""
        held, self._held = self._held, None
        if not trainer.strategy.reduce_boolean_decision(bool(held), all=False):
            rank_zero_warn(
                f"AttentionGuidance: no mask of epoch {trainer.current_epoch} held anything, so that it was trained "
                f"unguided. Look at what mask={self.mask!r:.60} gives: 1 (or True) on the object, 0 elsewhere"
            )

    def on_exception(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        exception: BaseException,  # noqa: ARG002
    ) -> None:
        """Let go, where a step was broken off."""
        self._stop()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Let go."""
        self._stop()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a step."""
        return {**vars(self), "_tap": None, "_pairs": {}, "_found": None, "_known": None, "_held": None}

    # Inside ------------------------------------------------------------------------------------------------------

    def _masks(self, batch: Any, images: Tensor, *, values_too: bool) -> Tensor:
        """Masks (B, H, W) on the images' device, empty ones where a function has none for this batch.

        With ``values_too`` their values are looked at, which waits for the device.
        """
        source = self.mask
        if callable(source):
            found = source(batch)
            if found is None:
                return torch.zeros_like(images[:, 0], dtype=torch.bool)
            source = lambda _: found  # noqa: E731
        try:
            masks = find_masks(batch, source, images)
        except ProbeInputError as error:
            if callable(source):
                raise
            raise ProbeInputError(
                f"{error}. Where only some batches have masks, give a function that returns None for the others, such "
                "as mask=lambda batch: batch.get('mask'): those train unguided"
            ) from None
        if values_too:
            read_masks(batch, source, images)
        return masks.to(images.device)

    def _places(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, model: nn.Module, images: Tensor, batch: Any
    ) -> ImagePlaces:
        """Where tokens lie: traced in the first step, and again for images of another size or number."""
        if self._known is not None and self._known[0] == images.shape:
            return self._known[1]
        if self._known is not None and self._known[0][1:] != images.shape[1:] and _is_sharded(model):
            raise ValueError(
                f"AttentionGuidance: got images of {tuple(images.shape[1:])} after {tuple(self._known[0][1:])}; "
                "expected one size: of sharded parameters, processes that trace at different steps wait for ever"
            )
        way = None if self.forward is None else way_of_function(self.forward)
        run = None if way is None else lambda some: way.call(model, some, batch)
        with isolated(trainer, pl_module):
            places = image_places(model, images, forward=run)
        guided = set(object_pairs(places, torch.ones_like(images[:, 0])))
        missing = sorted(set(self.layers or ()) - guided)
        if missing or not guided:
            raise ValueError(
                f"layers: got {missing or self.layers}; the layers of {type(model).__name__} that read from the image, "
                f"and that its output depends on, are {sorted(guided)}"
            )
        self._known = images.shape, places
        return places

    def _loss(self, tap: TrainingTap, places: ImagePlaces) -> AttentionGuidanceLoss:
        check_captured(tap, sorted(self._pairs))
        again = sorted(set(tap.seen) - {call.name for call in places.calls})
        if any(name.split("#")[0] in self._pairs for name in again):
            raise ValueError(
                f"AttentionGuidance: {again[0]!r} attends more than once in a training step, and which of its runs the "
                f"masks belong to only the step can say; {_TWO_LINES}"
            )
        shapes = {call.name: call.shape for call in places.calls}
        for call in tap.calls:
            if call.shape != shapes[call.name]:
                raise ValueError(
                    f"AttentionGuidance: the attention of {call.name!r} is {call.shape} in the training step and "
                    f"{shapes[call.name]} for the images of its batch in evaluation mode: it is given other images, or "
                    f"drops tokens while it trains (build it with patch_drop_rate=0); or {_TWO_LINES}"
                )
        return attention_guidance_loss(tap.calls, self._pairs, largest=self.largest)

    def _stop(self, *, keep: bool = False) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            tap.end()
            if not keep:
                tap.release()


def _is_sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "to_local") for parameter in model.parameters())


_TWO_LINES = (
    "write the two lines into training_step instead: with attngrad.guidance.capture_attention(…) as calls: …, and "
    "loss = loss + weight * attention_guidance_loss(calls, …).loss"
)
