"""RewriteRobustnessMonitor: how little it takes to rewrite a class, watched while a model is being fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.measure.kept import kept_rewrites
from lightning_attngrad.measure.rewrite_figures import rewrite_figures
from lightning_attngrad.measure.rewrite_scalars import ill_health, ratio_scalars, rewrite_scalars
from lightning_attngrad.measure.rewriting import (
    FrozenTargets,
    RewriteSettings,
    comparison_hash,
    conditions_of,
    rewrite_images,
)
from lightning_attngrad.probe import Evaluation, Findings, ProbeImages
from lightning_attngrad.reporting.layout import Charts, Margin
from lightning_attngrad.reporting.style import PLAIN, FigureStyle

#: Gradients of the long search that the short one is measured against.
_LONG_STEPS = 64
#: It is made for a quarter of the image–target pairs, and for so many at least: so it costs as much as a short one.
_LEAST_LONG = 4


class RewriteRobustnessMonitor(Monitor):
    """Measures how little of an image has to change before the model takes it for another class.

    Every so often the same validation images are rewritten to the same target classes, and it logs, to every logger,

    - ``attngrad/rewrite/median_linf``, ``q25_linf``, ``q75_linf``: the smallest changes found, in pixels where white
      is 1, with failures as ∞ (``_l2``, ``_l0``, ``_l0_patches`` for the other norms);
    - ``success/4_255`` and ``robust_accuracy/4_255`` for each radius, ``area`` under the success over log radius;
    - ``psnr``, ``ssim``, ``survives_8_bit`` and ``map_shift`` of the rewritten images; of labels, each of which is
      switched from what is true, also ``also_changed``: how many others change with it;
    - ``log_ratio`` with ``log_ratio_low`` and ``log_ratio_high``: each image against itself at the reference, the
      median of the logarithms and its 95 % bootstrap interval; below 0 rewriting has become easier;
    - ``health/…``: whether the search can be believed, and ``short_over_long``: how far its 16 steps are off;
    - figures ``rewrites`` (image, difference, rewritten image, the maps of both), ``success`` (this evaluation against
      the first and the one before) and ``classes`` (from which class to which).

    Distances need no map: of a model of which none can be made, ``map_shift`` and the maps in ``rewrites`` are left
    out, and one line says why.

    A distance is an upper bound: a longer search may find a smaller one. Compare numbers of one monitor with each
    other, never with those of other images, targets or settings: the conditions are kept in the checkpoint, and the
    history begins anew, and says why, where they differ.

    Args:
        probe: the images and how they are read; None shares the default of the Trainer's other monitors. Distances are
            in pixels: where nothing tells for sure how the images were normalised, this monitor asks for
            ``ProbeImages(mean=…, std=…)`` before training starts, and is switched off.
        num_images: short for ``probe=ProbeImages(num_images=…)``.
        every_n_epochs: evaluate in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: evaluate after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: evaluations that are due are
            skipped rather than take more, and never made with less care. None is no limit.
        scalars: ``main`` logs the numbers that the summary at the end of a fit shows, ``all`` every one; see
            :class:`Monitor`.
        figures: names of those that are drawn; None draws all, an empty list none.
        norm: ``linf`` (the largest change of a pixel), ``l2``, ``l0`` (the number of pixels that change), or
            ``l0_patches`` (the share of the patches, from the top of a gradient-guided map).
        steps: gradients an image; at least 16 for numbers that order checkpoints.
        target: ``random``, fixed by the seed; ``runner_up`` or ``least_likely`` at the first evaluation; ``all`` other
            classes, which costs as many times more; or a class.
        radii: at which success is reported, in units of the norm; None takes 1, 2, 4, 8 and 16 of 255 for ``linf``,
            and 1, 4, 16, 64 and 256 pixels for ``l0``.
        top_share: let only this share of the patches change, from the top of a gradient-guided map.
        reference: what ``log_ratio`` compares with: the first evaluation after training began (``first_epoch``), the
            starting weights (``start``; a new head makes that meaningless), or the evaluation before (``previous``).
        long_every: every so many evaluations a search of 64 steps for a quarter of the image–target pairs says how far
            the short one is off; None never.
        report: as for :class:`Monitor`: write the HTML report of the run when it ends.
        name: of this monitor, in ``attngrad/<name>/…``.
        style: how its figures look, see :class:`~lightning_attngrad.FigureStyle`.
        on_error: ``log`` reports an error inside an evaluation once and switches this monitor off; ``raise`` raises it.

    Attributes:
        rewrite_hash: SHA-256 of images, classes, settings, normalisation, part of the model and precision; None before
            the first evaluation. Numbers of another do not compare.

    Raises:
        ValueError: for an argument that does not fit, at construction; for a wrong ``model`` path before training.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> monitor = attngrad.RewriteRobustnessMonitor(every_n_epochs=5, norm="l2")
        >>> # trainer = L.Trainer(callbacks=[monitor])
    """

    needs_pixels = True

    drawable = ("rewrites", "success", "classes")

    def __init__(
        self,
        *,
        probe: ProbeImages | None = None,
        num_images: int | None = None,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        scalars: Literal["main", "all"] = "main",
        figures: Sequence[str] | None = None,
        norm: Literal["linf", "l2", "l0", "l0_patches"] = "linf",
        steps: int = 16,
        target: Literal["random", "runner_up", "least_likely", "all"] | int = "random",
        radii: Sequence[float] | None = None,
        top_share: float | None = None,
        reference: Literal["first_epoch", "start", "previous"] = "first_epoch",
        long_every: int | None = 10,
        report: bool = False,
        name: str = "rewrite",
        style: FigureStyle = PLAIN,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        super().__init__(
            name=name,
            probe=probe,
            num_images=num_images,
            every_n_epochs=every_n_epochs,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            scalars=scalars,
            figures=figures,
            report=report,
            style=style,
            on_error=on_error,
        )
        self.rewriting = RewriteSettings(norm, steps, target, () if radii is None else radii, top_share)
        if reference not in ("first_epoch", "start", "previous"):
            raise ValueError(f"reference: got {reference!r}; expected 'first_epoch', 'start' or 'previous'")
        if long_every is not None and (
            isinstance(long_every, bool) or not isinstance(long_every, int) or long_every < 1
        ):
            raise ValueError(
                f"long_every: got {long_every!r}; expected a positive number of evaluations, or None for never"
            )
        self.reference = reference
        self.long_every = long_every
        middle = self.rewriting.radius_name(self.rewriting.radii[len(self.rewriting.radii) // 2])
        self.main_scalars = {
            f"median_{norm}": "smallest change found; less is easier",
            "area": "under success; more is easier",
            f"robust_accuracy/{middle}": "share right, and not rewritten within",
            "log_ratio": "against the reference; below 0 is easier",
            "map_shift": "of the map when rewritten; 0 = none",
            "health/never_rewritten": "share; above 0.05 the search is ill",
        }
        self._frozen: FrozenTargets | None = None
        self._first: tuple[str, list[float]] | None = None  # label and distances
        self._before: tuple[str, list[float]] | None = None
        self._compared: list[float] | None = None  # distances at the reference
        self._evaluations = 0  # since the start
        self.rewrite_hash: str | None = None

    def evaluate(self, evaluation: Evaluation) -> Findings:
        """Rewrite the images, and compare with earlier evaluations."""
        frozen = self._targets(evaluation)
        self.rewrite_hash = comparison_hash(evaluation, self.rewriting, frozen)
        pairs, shown = rewrite_images(evaluation, self.rewriting, frozen)
        distances = pairs.distance.tolist()

        counts = evaluation.in_history and not evaluation.label.startswith("start")
        compared = self._compared
        if compared is None and evaluation.in_history and (counts or self.reference == "start"):
            compared = distances
        long_is_due = self.long_every is not None and self._evaluations % self.long_every == 0
        scalars = rewrite_scalars(pairs, self.rewriting)
        scalars |= ratio_scalars(pairs.distance, None if compared is None else torch.tensor(compared))
        if counts and long_is_due and self.rewriting.steps < _LONG_STEPS:
            most = max(_LEAST_LONG, len(distances) // 4)
            searched = replace(self.rewriting, steps=_LONG_STEPS)
            long, _ = rewrite_images(evaluation, searched, frozen, shown=0, most=most)
            scalars["short_over_long"] = _median_ratio(pairs.distance[:most], long.distance)

        earlier = [curve for curve in (self._first, self._before) if curve is not None]
        curves = {**dict(earlier), f"{evaluation.label} (now)": distances}

        def draw() -> dict[str, Figure]:
            return rewrite_figures(evaluation, self.rewriting, pairs, shown, curves, ill_health(scalars), self.style)

        if evaluation.in_history:
            self._evaluations += counts
            self._compared = distances if self.reference == "previous" else compared
            self._first = self._first or (evaluation.label, distances)
            self._before = (evaluation.label, distances)
        return Findings(scalars, draw, lambda: kept_rewrites(evaluation, self.rewriting, pairs, shown))

    def _targets(self, evaluation: Evaluation) -> FrozenTargets:
        """Those of the history, else those that another callback of the same settings has chosen, else new ones."""
        if self._frozen is None:
            self._frozen = FrozenTargets.of_this_run(evaluation, self.rewriting.target)
        return self._frozen

    def knows_enough(self) -> bool:
        """A failure is a number too: ∞."""
        return bool(self.scalars)

    # What is kept -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What is asked of each image."""
        return self.rewriting.plain()

    def further_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """How the images were normalised, and what the model's output means."""
        evaluation.task.need_classes("an image is rewritten from one to another")
        return {**conditions_of(evaluation), "task": evaluation.task.plain()}

    def history(self) -> dict[str, Any]:
        """The frozen classes, the reference and the curves."""
        return {
            "frozen": None if self._frozen is None else self._frozen.plain(),
            "first": None if self._first is None else list(self._first),
            "before": None if self._before is None else list(self._before),
            "reference": self.reference,
            "compared": self._compared,
            "evaluations": self._evaluations,
        }

    def recall(self, history: Mapping[str, Any]) -> None:
        """Go on with the same classes, and with the same reference where one of that kind is still known."""
        self._frozen = None if history["frozen"] is None else FrozenTargets(**history["frozen"])
        self._first, self._before = (
            None if curve is None else (curve[0], list(curve[1])) for curve in (history["first"], history["before"])
        )
        self._compared = history["compared"]
        if history["reference"] != self.reference:
            known = {"start": self._first, "previous": self._before, "first_epoch": None}[self.reference]
            is_that = known is not None and (self.reference == "previous" or known[0].startswith("start"))
            self._compared = list(known[1]) if known is not None and is_that else None
        self._evaluations = history["evaluations"]

    def forget(self) -> None:
        """Drop the history of another run, of other images or of other settings."""
        super().forget()
        self._frozen = self._first = self._before = self._compared = self.rewrite_hash = None
        self._evaluations = 0

    def charts(self) -> Charts:
        """Distances and their ratio with bands, success at the radii, and what tells of the search."""
        norm = self.rewriting.norm
        return {
            "smallest change found: median and quartiles": Margin(f"median_{norm}", f"q25_{norm}", f"q75_{norm}"),
            "log ratio to the reference, 95 % interval": Margin("log_ratio", "log_ratio_low", "log_ratio_high"),
            "success within each radius": ("success/",),
            "robust accuracy at each radius": ("robust_accuracy/",),
            "area under success": ("area",),
            "what the rewritten images are like": ("ssim", "survives_8_bit", "map_shift"),
            "health of the search": ("health/", "short_over_long"),
        }


def _median_ratio(short: Tensor, long: Tensor) -> float:
    """Median of short / long over the pairs that both rewrote; NaN if there are none."""
    both = (short < math.inf) & (long < math.inf) & (long > 0)
    return float((short[both] / long[both]).median()) if both.any() else math.nan
