"""RewriteRobustnessMonitor: how little it takes to rewrite a class, watched while a model is being fine-tuned."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.callbacks.image_probe import ImageProbe
from lightning_attngrad.callbacks.look import Findings, Probe
from lightning_attngrad.callbacks.probe_monitor import ProbeMonitor
from lightning_attngrad.callbacks.rewrite_figures import rewrite_figures
from lightning_attngrad.callbacks.rewriting import (
    FrozenTargets,
    RewriteSettings,
    conditions_of,
    ill_health,
    ratio_scalars,
    rewrite_probe,
    rewrite_scalars,
)
from lightning_attngrad.callbacks.timetable import Moment, moment
from lightning_attngrad.probe import ProbeSet

_log = logging.getLogger("lightning_attngrad")

#: Rows that are drawn.
_SHOWN = 6
#: Gradients of the long search that the short one is measured against.
_LONG_STEPS = 64


class RewriteRobustnessMonitor(ProbeMonitor):
    """Measures how little of an image has to change before the model takes it for another class.

    Every so often the same validation images are rewritten to the same target classes, and it logs, to every logger,

    - ``attngrad/rewrite/median_linf``, ``q25_linf``, ``q75_linf``: the smallest changes found, in pixels where white
      is 1, with failures as ∞ (``_l2``, ``_l0_patches`` for the other norms);
    - ``success/4_255`` and ``robust_accuracy/4_255`` for each radius, ``area`` under the success over log radius;
    - ``psnr``, ``ssim``, ``survives_8_bit`` and ``map_shift`` of the rewritten images;
    - ``log_ratio`` with ``log_ratio_low`` and ``log_ratio_high``: each image against itself at the reference, the
      median of the logarithms and its 95 % bootstrap interval; below 0 rewriting has become easier;
    - ``health/…``: whether the search can be believed, and ``short_over_long``: how far its 16 steps are off;
    - figures ``rewrites`` (image, difference, rewritten image, the maps of both), ``success`` (this look against the
      first and the one before) and ``classes`` (from which class to which).

    A distance is an upper bound: a longer search may find a smaller one. Compare numbers of one monitor with each
    other, never with those of other images, targets or settings: a hash in the checkpoint stands for all three, and
    the history begins anew where it differs.

    Args:
        num_images: how many validation images are rewritten.
        every_n_epochs: look in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: look after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: it passes over looks that are
            due rather than take more, and never looks less closely. None is no limit.
        norm: ``linf`` (the largest change of a pixel), ``l2``, or ``l0_patches`` (the share of the patches, from the
            top of a gradient-guided map).
        steps: gradients an image; at least 16 for numbers that order checkpoints.
        target: ``random``, fixed by the seed; ``runner_up`` or ``least_likely`` at the first look; ``all`` other
            classes, which costs as many times more; or a class.
        radii: at which success is reported, in units of the norm; None takes 1, 2, 4, 8 and 16 of 255 for ``linf``.
        top_share: let only this share of the patches change, from the top of a gradient-guided map.
        reference: what ``log_ratio`` compares with: the first look after training began (``first_epoch``), the
            starting weights (``start``; a new head makes that meaningless), or the look before (``previous``).
        long_every: every so many looks a search of 64 steps says how far the short one is off; None never.
        class_names: names of the classes; else they are looked for on the datamodule, the data set and the model.
        image_key: where the images are in a batch, as in ``pixel_values`` or ``inputs.image``; else it is found out.
        target_key: where the classes are in a batch.
        batch_adapter: function, or its import path, from a batch to ``(images, targets or None)``.
        model: path of the part of the LightningModule that maps images to logits; None is the module itself.
        mean: per channel, with which the images were normalised; else a ``Normalize`` in the transforms or a timm
            configuration tells, and where nothing does for sure this monitor asks and rests.
        std: likewise.
        dataloader_idx: which validation loader the images come from.
        name: of this monitor, in ``attngrad/<name>/…``.
        seed: of the choice of images and random targets.
        on_error: ``log`` reports an error inside a look once and lets this monitor rest; ``raise`` raises it.

    Raises:
        ValueError: for an argument that does not fit, at construction; for a wrong ``model`` path before training.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> monitor = attngrad.RewriteRobustnessMonitor(every_n_epochs=5, norm="l2")
        >>> # trainer = L.Trainer(callbacks=[monitor])
    """

    def __init__(
        self,
        *,
        num_images: int = 16,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        norm: Literal["linf", "l2", "l0_patches"] = "linf",
        steps: int = 16,
        target: Literal["random", "runner_up", "least_likely", "all"] | int = "random",
        radii: Sequence[float] | None = None,
        top_share: float | None = None,
        reference: Literal["first_epoch", "start", "previous"] = "first_epoch",
        long_every: int | None = 10,
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        image_key: str | int | None = None,
        target_key: str | int | None = None,
        batch_adapter: Callable[[Any], tuple[Tensor, Tensor | None]] | str | None = None,
        model: str | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        dataloader_idx: int = 0,
        name: str = "rewrite",
        seed: int = 0,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        super().__init__(
            name=name,
            num_images=num_images,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            class_names=class_names,
            image_key=image_key,
            target_key=target_key,
            batch_adapter=batch_adapter,
            model=model,
            mean=mean,
            std=std,
            dataloader_idx=dataloader_idx,
            seed=seed,
            on_error=on_error,
        )
        self.settings = RewriteSettings(norm, steps, target, () if radii is None else radii, top_share)
        if reference not in ("first_epoch", "start", "previous"):
            raise ValueError(f"reference: got {reference!r}; expected 'first_epoch', 'start' or 'previous'")
        if long_every is not None and (
            isinstance(long_every, bool) or not isinstance(long_every, int) or long_every < 1
        ):
            raise ValueError(f"long_every: got {long_every!r}; expected a positive number of looks, or None for never")
        self.reference = reference
        self.long_every = long_every
        self._now: Moment = (0, 0, 0)  # of the look
        self.forget()

    def forget(self) -> None:
        """Drop the history of another run, of other images or of other settings."""
        super().forget()
        self._frozen: FrozenTargets | None = None
        self._conditions = ""  # of the last look
        self._forget_looks()

    def _forget_looks(self) -> None:
        self._first: tuple[str, list[float]] | None = None  # label and distances
        self._before: tuple[str, list[float]] | None = None
        self._compared: list[float] | None = None  # distances at the reference
        self._looks = 0  # since the start
        self._short_over_long = math.nan
        self._history_hash: str | None = None  # that what is remembered was measured under
        self._measured: tuple[Moment, str | None, dict[str, float]] | None = None  # when, hash, and the numbers

    def _begin(self, pl_module: pl.LightningModule) -> None:
        super()._begin(pl_module)
        self._measured = None  # other weights may have been loaded since

    def _looked(self, trainer: pl.Trainer) -> None:
        super()._looked(trainer)
        self._now = moment(trainer)

    def look(self, probe: Probe, *, remember: bool) -> Findings:
        """Rewrite the images, and compare with earlier looks."""
        if self._frozen is None:
            self._frozen = FrozenTargets.choose(probe, self.settings.target, self._seed)
        self._conditions = conditions_of(probe)
        self._refuse_to_compare()
        frozen = self._frozen
        rows, shown = rewrite_probe(probe, self.settings, frozen, shown=_SHOWN)
        distances = rows.distance.tolist()

        counts = remember and probe.label != "start"
        compared = self._compared
        if compared is None and remember and (counts or self.reference == "start"):
            compared = distances
        long_is_due = self.long_every is not None and self._looks % self.long_every == 0
        if counts and long_is_due and self.settings.steps < _LONG_STEPS:
            long, _ = rewrite_probe(probe, replace(self.settings, steps=_LONG_STEPS), frozen)
            self._short_over_long = _median_ratio(rows.distance, long.distance)
        scalars = rewrite_scalars(rows, self.settings)
        self._measured = (self._now, self.rewrite_hash, dict(scalars))
        scalars |= ratio_scalars(rows.distance, None if compared is None else torch.tensor(compared))
        scalars["short_over_long"] = self._short_over_long

        earlier = [look for look in (self._first, self._before) if look is not None]
        curves = {**dict(earlier), f"{probe.label} (now)": distances}

        def draw() -> dict[str, Figure]:
            return rewrite_figures(probe, self.settings, rows, shown, curves, ill_health(scalars))

        if remember:
            self._history_hash = self.rewrite_hash
            self._looks += counts
            self._compared = distances if self.reference == "previous" else compared
            self._first = self._first or (probe.label, distances)
            self._before = (probe.label, distances)
        return Findings(scalars, draw)

    def _refuse_to_compare(self) -> None:
        """Begin the history anew where it was measured under another hash: a resumed run may normalise otherwise."""
        if self._history_hash not in (None, self.rewrite_hash):
            _log.warning(
                "%s: images, classes, settings, normalisation, model path or precision are not those of the looks "
                "before (hash %.8s… then, %.8s… now): nothing is compared with them, and the reference is taken anew",
                type(self).__name__,
                self._history_hash,
                self.rewrite_hash,
            )
            self._forget_looks()

    def knows_enough(self) -> bool:
        """A failure is a number too: ∞."""
        return bool(self.scalars)

    def state_dict(self) -> dict[str, Any]:
        """The frozen classes, the reference and the curves, beside what every monitor keeps."""
        frozen = self._frozen
        return {
            **super().state_dict(),
            "settings": self.settings.plain(),
            "own": None if frozen is None else frozen.own,
            "targets": None if frozen is None else frozen.targets,
            "first": None if self._first is None else list(self._first),
            "before": None if self._before is None else list(self._before),
            "reference": self.reference,
            "compared": self._compared,
            "looks": self._looks,
            "short_over_long": self._short_over_long,
            "rewrite_hash": self._history_hash,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same classes and the same reference, unless something else is asked of the images now."""
        super().load_state_dict(state_dict)
        if state_dict["settings"] != self.settings.plain():
            _log.warning(
                "%s: the settings are not those of the run that is resumed (%s then, %s now): what was measured before "
                "is not compared with what follows, and the reference is taken anew",
                type(self).__name__,
                state_dict["settings"],
                self.settings.plain(),
            )
            self.forget()
            return
        if state_dict["own"] is not None:
            self._frozen = FrozenTargets(state_dict["own"], state_dict["targets"])
        self._first, self._before = (
            None if curve is None else (curve[0], list(curve[1]))
            for curve in (state_dict["first"], state_dict["before"])
        )
        self._compared = state_dict["compared"]
        if state_dict["reference"] != self.reference:
            known = {"start": self._first, "previous": self._before, "first_epoch": None}[self.reference]
            is_that = known is not None and (self.reference == "previous" or known[0] == "start")
            self._compared = list(known[1]) if known is not None and is_that else None
        self._history_hash = state_dict["rewrite_hash"]
        self._looks = state_dict["looks"]
        self._short_over_long = state_dict["short_over_long"]

    def sees_as(self, other: ImageProbe) -> bool:
        """Whether it looks through the same part of the model, at images that were normalised alike."""
        return self._model is other._model and self._normalisation == other._normalisation

    def frozen_for(self, settings: RewriteSettings, probe_set: ProbeSet, seed: int) -> FrozenTargets | None:
        """Its classes, if they are those that the same images, settings and seed call for."""
        same = settings == self.settings and seed == self._seed and probe_set.hash == self.probe_set.hash
        return self._frozen if same else None

    def measured(self, when: Moment | None, of: str | None) -> dict[str, float] | None:
        """The numbers of the look at this moment, if there was one and its ``rewrite_hash`` was this one."""
        if self._measured is None or of is None or self._measured[:2] != (when, of):
            return None
        return dict(self._measured[2])

    @property
    def rewrite_hash(self) -> str | None:
        """SHA-256 of images, classes, settings, normalisation, model path and precision; None before the first look.

        Numbers of another do not compare.
        """
        if self._frozen is None:
            return None
        return self._frozen.hash(self.probe_set.hash, self.settings, self._conditions)


def _median_ratio(short: Tensor, long: Tensor) -> float:
    """Median of short / long over the rows that both rewrote; NaN if there are none."""
    both = (short < math.inf) & (long < math.inf) & (long > 0)
    return float((short[both] / long[both]).median()) if both.any() else math.nan
