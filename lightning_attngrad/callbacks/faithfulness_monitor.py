"""FaithfulnessMonitor: whether the predictions rest on the patches that the maps point at, while a model is trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_attngrad.callbacks.frozen_maps import FrozenMaps, Maps
from lightning_attngrad.callbacks.look import Findings, Probe
from lightning_attngrad.callbacks.probe_monitor import ProbeMonitor
from lightning_attngrad.explain import DEFAULT_METHOD
from lightning_attngrad.explain.corrections import CorrectionName
from lightning_attngrad.metrics.functional import Faithfulness, class_sensitivity, faithfulness_curves
from lightning_attngrad.metrics.functional.faithfulness import REPLACEMENTS
from lightning_attngrad.reporting.layout import Charts
from lightning_attngrad.reporting.perturbation import PerturbationCurves, perturbation_curves

_log = logging.getLogger("lightning_attngrad")

#: Epochs between two looks, where nothing is said: a look takes 2 · steps forwards an image.
_EVERY_N_EPOCHS = 5
#: Changed images at once, for each image of a part: they need no gradient, and so less memory than its map.
_CHANGED_AT_ONCE = 4
_NAMES = {"mean": "the mean colour", "blur": "a blurred image"}

_Look = tuple[str, Faithfulness]


class FaithfulnessMonitor(ProbeMonitor):
    """Measures whether a prediction rests on the patches that its map calls relevant.

    Every so often it explains a frozen, class-balanced set of validation images, replaces their patches in the order of
    the maps, watches the probability of the class, and logs, to every logger,

    - ``attngrad/faithfulness/deletion``: area under it with the most relevant patches replaced first; low is good;
    - ``insertion``: area under it with the least relevant replaced first, which is that of putting the most relevant
      back first; high is good;
    - ``srg``: insertion − deletion, the symmetric relevance gain; about 0 for a map that says nothing, below 0 for one
      that misleads;
    - ``class_sensitivity``: 1 − rank correlation between the maps of the predicted class and of the runner-up; near 0
      the maps hardly depend on the class, however well they find the object. Models of one output have none;
    - ``seconds`` and ``overhead``;
    - a figure ``curves``: both curves of this look, against those of the first one.

    All are means over the images; one whose map is zero everywhere, as with a fresh head of zeros, counts in none. The
    class of an image is its true one, or, where the data has none, the one predicted at the first look.

    ``deletion`` and ``insertion`` also rise with the confidence of the model: compare ``srg`` across epochs. Numbers of
    other images, methods, steps or replacements do not compare.

    Args:
        num_images: how many validation images are looked at.
        every_n_epochs: look in every n-th epoch's validation; 5 where neither this nor ``every_n_steps`` is given.
        every_n_steps: look after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: it passes over looks that are
            due rather than take more, and never looks less closely. None is no limit.
        method: of the maps, any that :func:`lightning_attngrad.explain` knows.
        correction: for ``method="gradient_guided"``.
        steps: points of a curve; a look takes ``2 · steps`` forwards an image, beside the maps.
        replacement: of patches, ``mean`` (the image's mean colour) or ``blur``: see
            :func:`~lightning_attngrad.metrics.functional.faithfulness_curves`.
        image_key: where the images are in a batch, as in ``pixel_values`` or ``inputs.image``; else it is found out.
        target_key: where the classes are in a batch.
        batch_adapter: function, or its import path, from a batch to ``(images, targets or None)``.
        model: path of the part of the LightningModule that maps images to logits; None is the module itself.
        dataloader_idx: which validation loader the images come from.
        name: of this monitor, in ``attngrad/<name>/…``.
        seed: of the choice of images.
        on_error: ``log`` reports an error inside a look once and lets this monitor rest; ``raise`` raises it.

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

    def __init__(
        self,
        *,
        num_images: int = 16,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        method: str = DEFAULT_METHOD,
        correction: CorrectionName = "positive",
        steps: int = 8,
        replacement: Literal["mean", "blur"] = "mean",
        image_key: str | int | None = None,
        target_key: str | int | None = None,
        batch_adapter: Callable[[Any], tuple[Tensor, Tensor | None]] | str | None = None,
        model: str | None = None,
        dataloader_idx: int = 0,
        name: str = "faithfulness",
        seed: int = 0,
        on_error: Literal["log", "raise"] = "log",
    ) -> None:
        super().__init__(
            name=name,
            num_images=num_images,
            every_n_epochs=_EVERY_N_EPOCHS if every_n_epochs is None and every_n_steps is None else every_n_epochs,
            every_n_steps=every_n_steps,
            max_overhead=max_overhead,
            class_names=None,
            image_key=image_key,
            target_key=target_key,
            batch_adapter=batch_adapter,
            model=model,
            mean=None,
            std=None,
            dataloader_idx=dataloader_idx,
            seed=seed,
            on_error=on_error,
        )
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"steps: got {steps!r}; expected an int of 2 or more, between none and all patches")
        if replacement not in REPLACEMENTS:
            raise ValueError(f"replacement: got {replacement!r}; expected one of {', '.join(REPLACEMENTS)}")
        self.maps = FrozenMaps(method, "logit", correction)
        self.steps = steps
        self.replacement: Literal["mean", "blur"] = replacement
        self._first: _Look | None = None

    def charts(self) -> Charts:
        """Both areas and their difference, and whether the maps depend on the class."""
        return {
            "faithfulness of the maps": ("srg", "deletion", "insertion"),
            "class sensitivity": ("class_sensitivity",),
        }

    def forget(self) -> None:
        """Drop the history of another run."""
        super().forget()
        self.maps.forget()
        self._first = None

    def knows_enough(self) -> bool:
        """Not without a gain. The runner-up may have no map for good, and so no class sensitivity."""
        return math.isfinite(self.scalars.get("srg", math.nan))

    def look(self, probe: Probe, *, remember: bool) -> Findings:
        """Explain the images, replace their patches, and compare with the first look."""
        maps = self.maps.explain(probe, layers_of=0)
        now = self._curves(probe, maps)
        scalars = {
            name: float(values.nanmean())
            for name, values in (("srg", now.srg), ("deletion", now.deletion), ("insertion", now.insertion))
        }
        if maps.logits.shape[1] > 1:
            scalars["class_sensitivity"] = float(self._class_sensitivity(probe, maps.logits).nanmean())
        first = self._first

        def draw() -> dict[str, Figure]:
            looks = {} if first is None else {first[0]: _drawn(first[1])}
            looks[f"{probe.label} (now)"] = _drawn(now)
            method = self.maps.method.replace("_", " ")
            title = f"Does the prediction rest where the map points? · {probe.label} · {method}"
            return {"curves": perturbation_curves(looks, replaced_by=_NAMES[self.replacement], title=title)}

        if remember and first is None and not now.srg.isnan().all():
            self._first = (probe.label, now)
        return Findings(scalars, draw)

    def _curves(self, probe: Probe, maps: Maps) -> Faithfulness:
        """Of the frozen classes; a collective operation."""
        assert maps.target is not None
        target = maps.target
        # A map of zeros has no order, and the first patches are not the most relevant ones.
        blank = (maps.heatmap == 0).flatten(1).all(dim=1)
        ordered = maps.heatmap.masked_fill(blank[:, None, None], torch.nan)

        def work(rows: Tensor) -> Faithfulness:
            found = faithfulness_curves(
                probe.model,
                probe.images[rows.to(probe.images.device)],
                ordered[rows],
                target[rows],
                steps=self.steps,
                replacement=self.replacement,
                # In proportion to the rows: so every part, also a smaller one, takes as many passes as any other, on
                # which the processes of a sharded model have to agree.
                batch=_CHANGED_AT_ONCE * len(rows),
                forward=probe.forward,
            )
            return Faithfulness(found.shares.cpu(), found.morf.cpu(), found.lerf.cpu())

        parts = probe.each(len(probe.images), work)
        morf, lerf = (torch.cat([getattr(part, name) for part in parts]) for name in ("morf", "lerf"))
        return Faithfulness(parts[0].shares, morf, lerf)

    def _class_sensitivity(self, probe: Probe, logits: Tensor) -> Tensor:
        """(N,) of the classes that are most probable now; a collective operation."""
        heatmaps = self.maps.of_classes(probe, logits.topk(2, dim=1).indices)  # (N, 2, h, w)
        return class_sensitivity(heatmaps[:, 0], heatmaps[:, 1])

    @property
    def _settings(self) -> str:
        """What else the numbers depend on, beside the images: with other settings they do not compare."""
        return f"{self.maps.question}, {self.steps} steps, {self.replacement}, model {self._model_path}"

    def state_dict(self) -> dict[str, Any]:
        """The frozen classes and the first look, beside what every monitor keeps."""
        first = None
        if self._first is not None:
            label, curves = self._first
            first = {"label": label, "shares": curves.shares, "morf": curves.morf, "lerf": curves.lerf}
        return {**super().state_dict(), "settings": self._settings, "target": self.maps.target, "first": first}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the same classes and the same first look, unless something else is asked of the images now."""
        super().load_state_dict(state_dict)
        if state_dict["settings"] != self._settings:
            _log.warning(
                "%s: the settings are not those of the run that is resumed (%s then, %s now): what was measured before "
                "is not compared with what follows",
                type(self).__name__,
                state_dict["settings"],
                self._settings,
            )
            self.forget()
            return
        self.maps.target = state_dict["target"]
        first = state_dict["first"]
        if first is not None:
            self._first = (first["label"], Faithfulness(first["shares"], first["morf"], first["lerf"]))


def _drawn(curves: Faithfulness) -> PerturbationCurves:
    return PerturbationCurves(curves.shares, curves.morf, curves.lerf)
