"""AttentionMapMonitor: figures and numbers of where a model looks while it is being fine-tuned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from lightning_attngrad.metrics.functional import (
    HeadStatistics,
    energy_in_mask,
    head_statistics,
    map_statistics,
    mask_average_precision,
    mask_on_grid,
    pointing_game,
    times_uniform_share,
)
from lightning_attngrad.metrics.functional.localisation import COVERED
from lightning_attngrad.reporting.figures import (
    Caption,
    ColourScale,
    class_panels,
    film_strip,
    layer_strip,
    map_grid,
)
from lightning_attngrad.reporting.layout import Charts

#: Images in the figures that show several maps of each.
_STRIPS = 4


class AttentionMapMonitor(ProbeMonitor):
    """Shows where a Vision Transformer looks, before, during and after fine-tuning.

    Every so often it explains a frozen, class-balanced set of validation images and logs, to every logger,

    - ``attngrad/maps/overlay``: image, map, predicted and true class, one row an image;
    - ``attngrad/maps/layers``: what each layer adds to the map (for methods that have such parts);
    - ``attngrad/maps/classes``: the most probable classes side by side on one scale;
    - ``attngrad/maps/film``: one image through training, the starting weights first;
    - scalars ``attngrad/maps/entropy``, ``border_mass``, ``corner_mass``, ``top_decile_mass`` (means over the
      images; one whose map is zero everywhere counts in none),
      ``head_entropy/<layer>`` and ``head_distance/<layer>`` (means over heads and images), and ``seconds``.

    The map of an image is that of its true class, or, where the data has none, of the class predicted at the first
    look: a class that never changes, so that the numbers of different epochs compare. Colours show each patch's share
    of its map in multiples of an equal share, on one scale for all epochs.

    With ``mask=``, which says where the object is, also ``mass_in_mask``, ``mass_outside_mask``, ``pointing`` (whether
    the largest patch lies on the object) and ``mask_average_precision``, and the overlay draws its outline. An image
    whose mask is empty or full counts in none of them; where all are, none of them is logged.

    Args:
        num_images: how many validation images are looked at.
        every_n_epochs: look in every n-th epoch's validation; 1 where neither this nor ``every_n_steps`` is given.
        every_n_steps: look after every n-th optimizer step instead.
        max_overhead: share of the fit's time that this monitor may take, such as 0.05: it passes over looks that are
            due rather than take more, and never looks less closely. None is no limit.
        method: any that :func:`lightning_attngrad.explain` knows.
        objective: ``logit``, ``margin``, or a function from the model's output to one number an image: for regression,
            and for backbones without a classifier, such as ``lambda embedding: embedding.norm(dim=1)``.
        correction: for ``method="gradient_guided"``.
        top_k: how many of the most probable classes stand side by side.
        classes: further classes that stand beside them.
        class_names: names of the classes; else they are looked for on the datamodule, the data set and the model.
        image_key: where the images are in a batch, as in ``pixel_values`` or ``inputs.image``; else it is found out.
        target_key: where the classes are in a batch.
        batch_adapter: function, or its import path, from a batch to ``(images, targets or None)``.
        mask: where the masks of the images are in a batch, in the same way: a tensor (B, H, W) or (B, 1, H, W) of the
            images' size, bool or in [0, 1], 1 on the object; or a function from the batch to them, or its import path,
            which has a colon: ``package.module:function``.
        model: path of the part of the LightningModule that maps images to logits; None is the module itself.
        mean: per channel, with which the images were normalised; else it is looked for. Only for showing them.
        std: likewise.
        dataloader_idx: which validation loader the images come from.
        name: of this monitor, in ``attngrad/<name>/…``.
        seed: of the choice of images.
        on_error: ``log`` reports an error inside a look once and lets this monitor rest; ``raise`` raises it.

    Raises:
        ValueError: for an argument that does not fit, at construction; for a wrong ``model`` path before training.

    Example:
        >>> import lightning_attngrad as attngrad
        >>> monitor = attngrad.AttentionMapMonitor(every_n_epochs=5, num_images=12)
        >>> # trainer = L.Trainer(callbacks=[monitor])
    """

    main_scalars: Mapping[str, str] = MappingProxyType(
        {
            "entropy": "0 = one patch, 1 = spread evenly",
            "border_mass": "share of the map on the border of the image",
            "corner_mass": "share of the map in the corners",
            "top_decile_mass": "share of the map on a tenth of the patches",
            "mass_in_mask": "share of the map on the object",
        }
    )
    rows_at_once = 4  # half of the default images: two processes take half of the time

    def __init__(
        self,
        *,
        num_images: int = 8,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        max_overhead: float | None = None,
        method: str = DEFAULT_METHOD,
        objective: Literal["logit", "margin"] | Callable[[Any], Tensor] = "logit",
        correction: CorrectionName = "positive",
        top_k: int = 3,
        classes: Sequence[int] = (),
        class_names: Sequence[str] | Mapping[int, str] | None = None,
        image_key: str | int | None = None,
        target_key: str | int | None = None,
        batch_adapter: Callable[[Any], tuple[Tensor, Tensor | None]] | str | None = None,
        mask: str | int | Callable[[Any], Tensor] | None = None,
        model: str | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        dataloader_idx: int = 0,
        name: str = "maps",
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
            mask=mask,
            model=model,
            mean=mean,
            std=std,
            dataloader_idx=dataloader_idx,
            seed=seed,
            on_error=on_error,
        )
        self.maps = FrozenMaps(method, objective, correction)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k: got {top_k!r}; expected a positive int")
        if not isinstance(classes, Sequence) or any(
            isinstance(index, bool) or not isinstance(index, int) or index < 0 for index in classes
        ):
            raise ValueError(f"classes: got {classes!r}; expected a list of class numbers from 0")
        self.top_k = top_k
        self.classes = tuple(classes)
        self._scale = ColourScale("signed" if self.maps.signed else "share")
        self._film: list[tuple[str, Tensor, tuple[str, float | None, str | None, float | None]]] = []

    def charts(self) -> Charts:
        """How spread out the maps are and where they lie, and the heads of each layer."""
        return {
            # Without mask= the last three are not logged, and a chart of their own would be empty.
            "how spread out, and where": (
                *("entropy", "border_mass", "corner_mass", "top_decile_mass"),
                *("mass_in_mask", "pointing", "mask_average_precision"),
            ),
            "entropy of the heads, by layer": ("head_entropy/",),
            "distance of the heads, by layer": ("head_distance/",),
        }

    def forget(self) -> None:
        """Drop the history of another run."""
        super().forget()
        self._film = []
        self.maps.forget()

    def look(self, probe: Probe, *, remember: bool) -> Findings:
        """Explain the images, and the most probable classes of the first few."""
        explanation = self._explain(probe)
        captions = [self._caption(probe, explanation, index) for index in range(len(explanation.heatmap))]
        scalars = map_statistics(explanation.heatmap) | _head_scalars(probe)
        if probe.masks is not None:
            scalars |= _mask_scalars(explanation.heatmap, probe.masks)

        shares = times_uniform_share(explanation.heatmap)
        film = [*self._film, (probe.label, shares[0].clone(), _plain(captions[0]))]
        # A model of one output, and an objective that knows no class, have nothing to put beside each other.
        has_classes = explanation.target is not None and explanation.logits.shape[1] > 1
        beside = self._explain_classes(probe, explanation.logits[:_STRIPS]) if has_classes else None

        def draw() -> dict[str, Figure]:
            method = self.maps.method.replace("_", " ")
            figures = {
                "overlay": map_grid(
                    probe.pixels,
                    shares,
                    captions,
                    title=f"Where it looks · {probe.label} · {method}",
                    scale=self._scale,
                    masks=probe.masks,
                ),
                "film": film_strip(
                    probe.pixels[0],
                    torch.stack([frame for _, frame, _ in film]),
                    [label for label, _, _ in film],
                    [Caption(*caption) for _, _, caption in film],
                    title=f"One image through training · {method}",
                    scale=self._scale,
                ),
            }
            if beside is not None:
                classes, probabilities, maps = beside
                figures["classes"] = class_panels(
                    probe.pixels[:_STRIPS],
                    times_uniform_share(maps),
                    [[probe.class_name(int(index)) for index in row] for row in classes],
                    probabilities,
                    title=f"What it reads as each class · {probe.label}",
                    scale=self._scale,
                )
            if explanation.layers is not None:
                figures["layers"] = layer_strip(
                    probe.pixels[:_STRIPS],
                    times_uniform_share(explanation.layers),
                    explanation.layer_names,
                    title=f"What each layer adds · {probe.label}",
                    scale=self._scale,
                )
            return figures

        if remember:
            self._film = film
        return Findings(scalars, draw)

    def _explain(self, probe: Probe) -> Maps:
        """The maps of the frozen classes."""
        return self.maps.explain(probe, layers_of=_STRIPS)

    def _explain_classes(self, probe: Probe, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The most probable classes and those asked for, (n, K), their probabilities, and their maps (n, K, h, w)."""
        number = logits.shape[1]
        if any(index >= number for index in self.classes):
            raise ValueError(f"classes: got {self.classes}; the model's classes are 0 to {number - 1}")
        top = logits.topk(min(self.top_k, number), dim=1).indices
        classes = torch.cat([top, torch.tensor(self.classes, dtype=torch.long).expand(len(top), -1)], dim=1)
        return classes, logits.softmax(dim=1).gather(1, classes), self.maps.of_classes(probe, classes)

    def _caption(self, probe: Probe, explanation: Maps, index: int) -> Caption:
        logits = explanation.logits[index]
        if explanation.target is None or len(logits) == 1:  # no class is predicted
            return Caption(predicted=f"output {float(explanation.value[index]):.3g}", probability=None)
        probabilities = logits.softmax(dim=0)
        predicted = int(probabilities.argmax())
        true = None if probe.targets is None or probe.targets[index] < 0 else int(probe.targets[index])
        return Caption(
            predicted=probe.class_name(predicted),
            probability=float(probabilities[predicted]),
            true=None if true is None else probe.class_name(true),
            true_probability=float(probabilities[true]) if true is not None and true < len(probabilities) else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """The film strip so far, and the frozen classes, beside what every monitor keeps."""
        film = [{"label": label, "map": frame, "caption": list(caption)} for label, frame, caption in self._film]
        return {**super().state_dict(), "film": film, "target": self.maps.target}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The film strip goes on where it was."""
        super().load_state_dict(state_dict)
        self._film = [(frame["label"], frame["map"], tuple(frame["caption"])) for frame in state_dict["film"]]
        self.maps.target = state_dict["target"]


def _mask_scalars(heatmap: Tensor, masks: Tensor) -> dict[str, float]:
    """Means over the images that have an object, and a map.

    A number for which no image has an object (for the last two it has to fill half of a patch) is left out, at this
    look and at all others, rather than a NaN that a later look might mend.
    """
    coverage = mask_on_grid(masks, (heatmap.shape[1], heatmap.shape[2])).flatten(1)
    values: dict[str, Tensor] = {}
    if bool(((coverage.amax(dim=1) > 0) & (coverage.amin(dim=1) < 1)).any()):
        inside = energy_in_mask(heatmap, masks)
        values |= {"mass_in_mask": inside, "mass_outside_mask": 1 - inside}
    if bool(((coverage.amax(dim=1) >= COVERED) & (coverage.amin(dim=1) < COVERED)).any()):
        values["pointing"] = pointing_game(heatmap, masks)
        values["mask_average_precision"] = mask_average_precision(heatmap, masks)
    return {name: float(value.nanmean()) for name, value in values.items()}


def _head_scalars(probe: Probe) -> dict[str, float]:
    """Entropy and distance of each layer, means over heads and images."""

    def work(rows: Tensor) -> HeadStatistics:
        return head_statistics(probe.model, probe.images[rows.to(probe.images.device)], forward=probe.forward)

    parts = probe.each(len(probe.images), work)
    return {
        f"head_{kind}/{layer}": value
        for kind in ("entropy", "distance")
        for layer, value in zip(
            parts[0].layer_names,
            torch.cat([getattr(part, kind).cpu() for part in parts]).mean(dim=(0, 2)).tolist(),
            strict=True,
        )
    }


def _plain(caption: Caption) -> tuple[str, float | None, str | None, float | None]:
    """A caption as plain values, which a checkpoint can hold."""
    return caption.predicted, caption.probability, caption.true, caption.true_probability
