"""Maps of the frozen images for frozen classes: the same question at every look, its work shared among processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_attngrad.callbacks.look import Probe
from lightning_attngrad.explain import CORRECTIONS, METHODS, OBJECTIVES, Explanation, explain
from lightning_attngrad.explain.corrections import CorrectionName

#: Images whose classes are explained at once: each takes a backward pass a class.
_IMAGES_OF_SEVERAL_CLASSES = 2


@dataclass(frozen=True, eq=False)
class Maps:
    """What :class:`FrozenMaps` found of N images, on the CPU.

    Attributes:
        heatmap: (N, h, w).
        logits: (N, C), with C = 0 where the model has no row of numbers an image.
        target: (N,) the class explained; None where the objective has no class.
        value: (N,) what was explained.
        zero_gradient: (N,) bool.
        layers: (S, L, h, w) of the first S images; None for methods that have no such parts.
        layer_names: L names.
    """

    heatmap: Tensor
    logits: Tensor
    target: Tensor | None
    value: Tensor
    zero_gradient: Tensor
    layers: Tensor | None
    layer_names: tuple[str, ...]


class FrozenMaps:
    """Explains the images of a probe for a class that never changes, so that the maps of different epochs compare.

    The class is the true one, or, where the data have none, the one that was predicted at the first look.

    Args:
        method: any that :func:`lightning_attngrad.explain` knows.
        objective: ``logit``, ``margin``, or a function from the model's output to one number an image.
        correction: for ``method="gradient_guided"``.

    Raises:
        ValueError: for an argument that does not fit.

    Attributes:
        target: (N,) the frozen classes; None before the first look, and for an objective without classes.
    """

    def __init__(
        self,
        method: str,
        objective: Literal["logit", "margin"] | Callable[[Any], Tensor] = "logit",
        correction: CorrectionName = "positive",
    ) -> None:
        for argument, value, known in (
            ("method", method, METHODS),
            ("objective", "logit" if callable(objective) else objective, OBJECTIVES),
            ("correction", correction, CORRECTIONS),
        ):
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{argument}: got {value!r}; expected one of {', '.join(known)}")
        takes_corrections = "correction" in METHODS[method].option_names
        if correction != "positive" and not takes_corrections:
            raise ValueError(f"correction: got {correction!r}, and method={method!r} has none to choose")
        self.method = method
        self.target: Tensor | None = None
        self._options: dict[str, Any] = {"method": method, "objective": objective}
        if takes_corrections:
            self._options["correction"] = correction

    @property
    def signed(self) -> bool:
        """Whether the maps have values below 0."""
        return self.method in ("conservative", "attn_lrp") or self._options.get("correction") in ("signed", "transfer")

    @property
    def question(self) -> str:
        """What is asked of each image, in one line: maps of other questions do not compare."""
        objective = self._options["objective"]
        named = (
            objective if isinstance(objective, str) else getattr(objective, "__qualname__", type(objective).__name__)
        )
        return f"{self.method} {named} {self._options.get('correction', '')}".strip()

    def forget(self) -> None:
        """Drop the classes of another run."""
        self.target = None

    def explain(self, probe: Probe, images: Tensor | None = None, *, layers_of: int | None = None) -> Maps:
        """The maps of the frozen classes; a collective operation.

        Args:
            probe: images and model.
            images: (N, C, H, W) other versions of the probe's images, on the device.
            layers_of: of so many images what each layer adds comes along; None is all of them.
        """
        if self.target is None and not callable(self._options["objective"]):
            self.target = self._choose(probe)
        return self._explained(probe, probe.images if images is None else images, self.target, layers_of)

    def of_classes(self, probe: Probe, classes: Tensor) -> Tensor:
        """Maps of the first n images for K classes each, (n, K) to (n, K, h, w); a collective operation."""

        def work(rows: Tensor) -> Tensor:
            images = probe.images[rows.to(probe.images.device)]
            asked = classes[rows].to(images.device)
            return explain(probe.model, images, asked, forward=probe.forward, **self._options).heatmap.cpu()

        return torch.cat(probe.each(len(classes), work, at_most=_IMAGES_OF_SEVERAL_CLASSES))

    def _choose(self, probe: Probe) -> Tensor:
        """True classes, else those predicted now."""
        first = self._explained(probe, probe.images, None, 0)
        predicted = torch.as_tensor(first.target)
        if probe.targets is None:
            return predicted
        known = (probe.targets >= 0) & (probe.targets < first.logits.shape[1])
        return torch.where(known, probe.targets, predicted)

    def _explained(self, probe: Probe, images: Tensor, target: Tensor | None, layers_of: int | None) -> Maps:
        def work(rows: Tensor) -> Maps:
            some = images[rows.to(images.device)]
            classes = None if target is None else target[rows].to(images.device)
            shown = len(rows) if layers_of is None else int((rows < layers_of).sum())
            return _maps(explain(probe.model, some, classes, forward=probe.forward, **self._options), shown)

        return _joined(probe.each(len(images), work))


def _maps(explanation: Explanation, shown: int) -> Maps:
    """What is kept of an explanation, and travels between processes."""
    layers, target = explanation.layers, explanation.target
    return Maps(
        heatmap=explanation.heatmap.cpu(),
        logits=explanation.logits.cpu(),
        target=None if target is None else target.cpu(),
        value=explanation.value.cpu(),
        zero_gradient=explanation.zero_gradient.cpu(),
        layers=None if layers is None else layers[:shown].cpu().clone(),  # a view would travel whole
        layer_names=explanation.layer_names,
    )


def _joined(parts: list[Maps]) -> Maps:
    """The parts of a set of images as one."""
    names = parts[0].layer_names
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Maps) if field.name != "layer_names"):
        rows = [getattr(part, name) for part in parts]
        values[name] = None if rows[0] is None else torch.cat(rows)
    return Maps(**values, layer_names=names)
