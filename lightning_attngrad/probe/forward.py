"""The forward pass of a run's model, as the run makes it, for any images of any of the probe's samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.func import functional_call

from lightning_attngrad.explain import ForwardOfRows
from lightning_attngrad.probe.samples import Samples
from lightning_attngrad.probe.ways import PLAIN_WAY, Way


class UnknownSamplesError(ValueError):
    """A model is given more than images, and it is not said which samples these images are of."""


class ProbeForward(ForwardOfRows):
    """The forward pass in the precision of the run.

    Autocast is off in hooks: a bare ``model(images)`` under ``bf16-mixed`` would explain another, float32, model.

    Called with images (R, C, H, W) it returns whatever ``model`` returns. Take gradients of that after it has returned,
    outside the precision context, and convert logits to float32 first. Where the model is given more of a sample than
    its image, ``of_rows`` says which samples the images are of.

    Args:
        trainer: the Trainer, whose precision plugin converts the images and holds the forward context.
        model: the module to run: ``pl_module`` or a part of it, never ``trainer.strategy.model``, whose wrapper would
            wait for gradients that a probe does not deliver.
        weights: parameters and buffers to run it with instead of its own, by the names of its ``state_dict()``, on its
            device; those that are missing stay its own. The model itself is not touched.
        way: how it is run.
        samples: those of the probe, where the way needs them.
        rows: (R,) which of them the images are of.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        model: nn.Module,
        weights: Mapping[str, Tensor] | None = None,
        *,
        way: Way = PLAIN_WAY,
        samples: Samples | None = None,
        rows: Tensor | None = None,
    ) -> None:
        self._trainer = trainer
        self._model = model
        self._weights = weights
        self._way = way
        self._samples = samples
        self._rows = rows
        self._run = _Called(model, way)
        self._swapped = None if weights is None else {f"model.{name}": value for name, value in weights.items()}

    def of_rows(self, rows: Tensor) -> ProbeForward:
        """The pass of some of its rows; of the probe's samples, where none are named yet."""
        if self._rows is not None:
            rows = self._rows[rows.to(self._rows.device)]
        return ProbeForward(self._trainer, self._model, self._weights, way=self._way, samples=self._samples, rows=rows)

    def __call__(self, images: Tensor) -> Any:
        """The model's output.

        Raises:
            UnknownSamplesError: if the model is given more than images, and whose these are is not known.
        """
        if images.is_inference():
            images = images.clone()
        precision = self._trainer.precision_plugin
        images = precision.convert_input(images)
        batch = self._batch(images) if self._way.needs_batch else None
        with precision.forward_context():
            if self._swapped is None:
                return self._run(images, batch)
            return functional_call(self._run, self._swapped, (images, batch))

    def _batch(self, images: Tensor) -> Any:
        if self._samples is None or self._rows is None:
            raise UnknownSamplesError(
                f"forward: the model is run as {self._way.words}, and which samples these {len(images)} images are of "
                "is not said; say evaluation.forward_of(indices)(images) instead of evaluation.forward(images)"
            )
        if len(self._rows) != len(images):
            raise UnknownSamplesError(
                f"forward: got {len(images)} images for {len(self._rows)} samples, and the model is run as "
                f"{self._way.words}; expected one image for each of the samples, in their order"
            )
        return self._samples.rows(self._rows, images)


class _Called(nn.Module):
    """A model and the way in which it is run."""

    def __init__(self, model: nn.Module, way: Way) -> None:
        super().__init__()
        self.model = model
        self._way = way

    def forward(self, images: Tensor, batch: Any) -> Any:
        return self._way.call(self.model, images, batch)
