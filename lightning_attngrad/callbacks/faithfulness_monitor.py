"""FaithfulnessMonitor: whether the predictions rest on the patches that the maps point at, while a model is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from matplotlib.figure import Figure

from lightning_attngrad.callbacks.maps_monitor import MapsMonitor, objective_and_images
from lightning_attngrad.explain import Objective, Similarity
from lightning_attngrad.measure.faithfulness import curves_of, sensitivity_of
from lightning_attngrad.measure.kept import kept_curves
from lightning_attngrad.measure.maps import explain_images
from lightning_attngrad.measure.questions import check_question
from lightning_attngrad.metrics.functional import Faithfulness
from lightning_attngrad.metrics.functional.faithfulness import REPLACEMENTS
from lightning_attngrad.probe import Evaluation, Findings, ProbeImages
from lightning_attngrad.reporting.layout import Charts
from lightning_attngrad.reporting.perturbation import PerturbationCurves, perturbation_curves
from lightning_attngrad.reporting.style import PLAIN, FigureStyle

#: Epochs between two evaluations, where nothing is said: one takes 2 · steps forwards an image.
_EVERY_N_EPOCHS = 5
_NAMES = {"mean": "the mean colour", "blur": "a blurred image"}


class FaithfulnessMonitor(MapsMonitor):
    """Measures whether a prediction rests on the patches that its map calls relevant.

    Every so often it explains a frozen, class-balanced set of validation images, replaces their patches in the order of
    the maps, watches the probability of the class, and logs, to every logger,

    - ``attngrad/faithfulness/deletion``: area under it with the most relevant patches replaced first; low is good;
    - ``insertion``: area under it with the least relevant replaced first, which is that of putting the most relevant
      back first; high is good;
    - ``srg``: insertion − deletion, the symmetric relevance gain; about 0 for a map that says nothing, below 0 for one
      that misleads;
    - ``class_sensitivity``: 1 − rank correlation between the maps of the predicted class and of the runner-up; near 0
      the maps hardly depend on the class, however well they find the object; of labels, the two most probable ones;
    - ``seconds`` and ``overhead``;
    - a figure ``curves``: both curves of this evaluation, against those of the first one.

    All are means over the images; one whose map is zero everywhere, as with a zero-initialised classifier, counts in
    none. The class of an image is its true one, or, where the data has none, the one predicted at the first evaluation.

    ``deletion`` and ``insertion`` also rise with the confidence of the model: compare ``srg`` across epochs. Numbers of
    other images, methods, steps or replacements do not compare.

    Args:
        probe: the images and how they are read; None shares the default of the Trainer's other monitors.
        num_images: short for ``probe=ProbeImages(num_images=…)``.
        every_n_epochs: evaluate in every n-th epoch's validation; 5 where neither this nor ``every_n_steps`` is given.
        every_n_steps: evaluate after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: evaluations that are due are
            skipped rather than take more, and never made with less care. None is no limit.
        scalars: ``main`` logs the numbers that the summary at the end of a fit shows, ``all`` every one; see
            :class:`Monitor`.
        figures: names of those that are drawn; None draws all, an empty list none.
        method: of the maps, as for :class:`AttentionMapMonitor`.
        objective: likewise, of those that are about a class.
        method_options: likewise.
        memory_budget: bytes for the temporaries of a block of attention rows; None follows the device.
        steps: points of a curve; an evaluation takes ``2 · steps`` forwards an image, beside the maps.
        replacement: of patches, ``mean`` (the image's mean colour) or ``blur``: see
            :func:`~lightning_attngrad.metrics.functional.faithfulness_curves`.
        report: as for :class:`Monitor`: write the HTML report of the run when it ends.
        name: of this monitor, in ``attngrad/<name>/…``.
        style: how its figures look, see :class:`~lightning_attngrad.FigureStyle`.
        on_error: ``log`` reports an error inside an evaluation once and switches this monitor off; ``raise`` raises it.

    Raises:
        ValueError: for an argument that does not fit, at construction; for a wrong ``model`` path before training.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> monitor = attngrad.FaithfulnessMonitor(every_n_epochs=2, replacement="blur")
        >>> # trainer = L.Trainer(callbacks=[monitor])
    """

    main_scalars: Mapping[str, str] = MappingProxyType(
        {
            "srg": "insertion - deletion; 0 says nothing",
            "deletion": "area; less is better",
            "insertion": "area; more is better",
            "class_sensitivity": "0 = maps do not depend on the class",
        }
    )

    drawable = ("curves",)

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
        method: str | None = None,
        objective: Literal["logit", "margin"] | Objective | Similarity = "logit",
        method_options: dict[str, Any] | None = None,
        memory_budget: int | None = None,
        steps: int = 8,
        replacement: Literal["mean", "blur"] = "mean",
        report: bool = False,
        name: str = "faithfulness",
        style: FigureStyle = PLAIN,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        objective, probe, num_images = objective_and_images(objective, probe, num_images)
        super().__init__(
            name=name,
            probe=probe,
            num_images=num_images,
            every_n_epochs=_EVERY_N_EPOCHS if every_n_epochs is None and every_n_steps is None else every_n_epochs,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            scalars=scalars,
            figures=figures,
            report=report,
            style=style,
            on_error=on_error,
        )
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"steps: got {steps!r}; expected an int of 2 or more, between none and all patches")
        if replacement not in REPLACEMENTS:
            raise ValueError(f"replacement: got {replacement!r}; expected one of {', '.join(REPLACEMENTS)}")
        self.question = check_question(method, objective, method_options, has_masks=self.probe.mask is not None)
        if not self.question.needs_target:
            raise ValueError(
                f"objective: got {objective!r}, which is about no class, and faithfulness watches the probability of "
                "one; expected 'logit', 'margin' or Contrast(…)"
            )
        self.memory_budget = memory_budget
        self.steps = steps
        self.replacement: Literal["mean", "blur"] = replacement
        self._first: tuple[str, Faithfulness] | None = None

    def evaluate(self, evaluation: Evaluation) -> Findings:
        """Explain the images, replace their patches, and compare with the first evaluation."""
        question = self.asked(evaluation)
        evaluation.task.need_classes("faithfulness watches the probability of one")
        maps = explain_images(evaluation, question, memory_budget=self.memory_budget)
        scalars: dict[str, float] = {}
        found = {}
        for panel, of_panel in maps.by_panel():
            found[panel] = curves_of(evaluation, of_panel, self.steps, self.replacement)
            for name in ("srg", "deletion", "insertion"):
                scalars[f"{name}{panel}"] = float(getattr(found[panel], name).nanmean())
        now = found[""]
        sensitivity = sensitivity_of(evaluation, question, maps, self.memory_budget)
        if sensitivity is not None:
            scalars["class_sensitivity"] = float(sensitivity.nanmean())
        first = self._first

        def draw() -> dict[str, Figure]:
            curves = {} if first is None else {first[0]: _drawn(first[1])}
            curves[f"{evaluation.label} (now)"] = _drawn(now)
            title = f"Does the prediction rest where the map points? · {evaluation.label} · {question.method_in_words}"
            replaced_by = _NAMES[self.replacement]
            return {"curves": perturbation_curves(curves, replaced_by=replaced_by, title=title, style=self.style)}

        if evaluation.in_history and first is None and not now.srg.isnan().all():
            self._first = (evaluation.label, now)
        return Findings(scalars, draw, lambda: kept_curves(found))

    def knows_enough(self) -> bool:
        """Not without a gain. The runner-up may have no map for good, and so no class sensitivity."""
        return math.isfinite(self.scalars.get("srg", math.nan))

    # What is kept -------------------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """The question that is asked of each image, and how patches are replaced."""
        return {**super().settings(), "steps": self.steps, "replacement": self.replacement}

    def history(self) -> dict[str, Any]:
        """The first evaluation."""
        if self._first is None:
            return {"first": None}
        label, curves = self._first
        return {"first": {"label": label, "shares": curves.shares, "morf": curves.morf, "lerf": curves.lerf}}

    def recall(self, history: Mapping[str, Any]) -> None:
        """Go on with the same first evaluation."""
        if (first := history["first"]) is not None:
            self._first = (first["label"], Faithfulness(first["shares"], first["morf"], first["lerf"]))

    def forget(self) -> None:
        """Drop the history of another run."""
        super().forget()
        self._first = None

    def charts(self) -> Charts:
        """Both areas and their difference, and whether the maps depend on the class."""
        return {
            "faithfulness of the maps": ("srg", "deletion", "insertion"),
            "class sensitivity": ("class_sensitivity",),
        }


def _drawn(curves: Faithfulness) -> PerturbationCurves:
    return PerturbationCurves(curves.shares, curves.morf, curves.lerf)
