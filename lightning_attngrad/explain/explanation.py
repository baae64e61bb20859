"""Explanation: what :func:`lightning_attngrad.explain` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lightning_attngrad.attention import Area
from lightning_attngrad.explain.displayed import as_pixels
from lightning_attngrad.explain.outputs import UNSAID, Task
from lightning_attngrad.explain.placing import within_area
from lightning_attngrad.explain.shown import (
    ClassNames,
    Shown,
    counted,
    is_signed,
    listed,
    name_of,
    needs,
    one_grid,
    shares,
)


@dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """Heatmaps of a batch, with all that is needed to read them.

    B images, C classes, L parts, a grid of h×w patches, and P panels where several classes or several corrections were
    asked for.

    Attributes:
        heatmap: (B, h, w), or (B, P, h, w) with panels; float32. Not rescaled: see
            :func:`lightning_attngrad.metrics.functional.map_density` for maps that can be compared.
        logits: the model's output (B, C), float32; (B, 0) where it has no such row of numbers an image.
        target: the class explained, (B,) or (B, P) int64; None where the objective has no class.
        value: what was explained, Φ of each image: for the objective ``logit`` the target's logit. (B,) or (B, P).
        token_scores: of the tokens that lie on the image, in reading order: the heatmap, unless the middles of what
            they read are not those of its cells (convolutional stems); in front the S tokens that lie nowhere on the
            image (class, distillation, register and query tokens), (B, S + h·w) or (B, P, S + h·w).
        layers: L parts that sum to the heatmap, (B, L, h, w) or (B, P, L, h, w): what each attention call added that
            the output depends on, first call first; for ``guided_relevance``, of the half of the map that is streamed
            through the layers, and last the half that belongs to none, named ``relevance``. None where the map is no
            such sum.
        layer_names: L names: the model's own for its attention calls; empty where ``layers`` is None.
        panels: names of the P panels.
        completeness_error: ``|Σ R − Φ| / |Φ|``, (B,) or (B, P), for relevance methods: how much of the output the
            token scores fail to account for.
        zero_gradient: (B,) or (B, P) bool: no gradient reached the last attention. A map made of gradients then says
            nothing; one of attention alone is read from the class token, or from all tokens alike.
        method: the method's name.
        area: top, left, bottom, right in pixels of the part of the images that the heatmap covers: all of them, unless
            the model crops.
        images: (B, C, H, W) that were explained, as the model took them: the caller's tensor, not a copy, for
            :meth:`plot`. None where there is no such batch, as of a clip.
        task: what the output means.
    """

    heatmap: Tensor
    logits: Tensor
    target: Tensor | None
    value: Tensor
    token_scores: Tensor
    layers: Tensor | None
    layer_names: tuple[str, ...]
    panels: tuple[str, ...] | None
    completeness_error: Tensor | None
    zero_gradient: Tensor
    method: str
    area: Area
    images: Tensor | None = None
    task: Task = UNSAID

    def __repr__(self) -> str:
        maps = f"{one_grid(self.heatmap)} maps" + (f" of {len(self.panels)} panels" if self.panels else "")
        parts = f", {counted(len(self.layer_names), 'part')}" if self.layer_names else ""
        blind = int(self.zero_gradient.sum())
        without = f", no gradient in {blind}" if blind else ""
        return f"Explanation({counted(len(self.heatmap), 'image')}, {self.method}, {maps}{parts}{without})"

    def plot(
        self,
        what: Literal["maps", "layers"] = "maps",
        *,
        images: Tensor | None = None,
        class_names: ClassNames | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        style: Any = None,
    ) -> Any:
        """Draw the maps on their images.

        Args:
            what: ``"maps"``, each on its image, panels side by side; or ``"layers"``, the parts that sum to each map.
            images: shown in place of those that were explained, (B, C, H, W).
            class_names: in their order, or by number.
            mean: with which the images were normalised, in units of [0, 1] pixels. Without, images in [0, 1] are shown
                as they are, and others stretched, which the figure says.
            std: likewise.
            style: a :class:`lightning_attngrad.FigureStyle`.

        Returns:
            A ``matplotlib.figure.Figure``.

        Raises:
            ValueError: for ``layers`` of a method that has none, and for an argument that does not fit.

        Example:
            >>> import timm, torch, lightning_attngrad as attngrad
            >>> model = timm.create_model("test_vit", num_classes=5)
            >>> explanation = attngrad.explain(model, torch.rand(2, 3, 160, 160))
            >>> explanation
            Explanation(2 images, guided_relevance, 10 × 10 maps, 7 parts)
            >>> figure = explanation.plot(class_names={0: "cat", 3: "dog"}, style=attngrad.FigureStyle(dark=True))
        """
        from lightning_attngrad.reporting.figures import (  # noqa: PLC0415
            Caption,
            ColourScale,
            class_panels,
            layer_strip,
            map_grid,
        )
        from lightning_attngrad.reporting.style import PLAIN  # noqa: PLC0415

        if what not in ("maps", "layers"):
            raise ValueError(f"what: got {what!r}; expected 'maps' or 'layers'")
        if what == "layers" and self.layers is None:
            raise ValueError(f"what: got 'layers', and maps of {self.method!r} are no sum of parts; expected 'maps'")
        shown = needs(self.images if images is None else images, self.heatmap)
        pixels, words = as_pixels(shown, mean, std)
        pixels = within_area(pixels, self.area)
        drawn = self.heatmap if what == "maps" else self.layers
        assert drawn is not None
        common: dict[str, Any] = {
            "scale": ColourScale("signed" if is_signed(drawn) else "share"),
            "shown_as": words,
            "style": PLAIN if style is None else style,
        }
        if what == "layers":
            layers = drawn if drawn.dim() == 4 else drawn[:, 0]  # of several panels the first
            title = f"What each part adds to the map · {self.method}"
            return layer_strip(pixels, shares(layers), self.layer_names, title=title, **common)
        if self.heatmap.dim() == 3:
            said = [Caption(**self._said_of(index, class_names)) for index in range(len(pixels))]
            return map_grid(pixels, shares(drawn), said, title=f"Where the model looks · {self.method}", **common)
        probabilities = self._probabilities()
        if self.target is None or self.target.dim() < 2 or probabilities is None:
            assert self.panels is not None
            return layer_strip(pixels, shares(drawn), self.panels, title=f"Maps side by side · {self.method}", **common)
        names = self._names(class_names)
        called = [[name_of(names, number) for number in row] for row in self.target.tolist()]
        of_target = probabilities.gather(1, self.target.cpu())
        title = f"Evidence for each class · {self.method}"
        return class_panels(pixels, shares(drawn), called, of_target, title=title, **common)

    def _probabilities(self) -> Tensor | None:
        """(B, K) of each class, on the CPU; None where the output has no classes."""
        if self.target is None or not self.task.has_classes:
            return None
        scores = self.task.of_logits(self.logits.cpu())
        return self.task.probabilities(scores) if scores.shape[1] > 1 else None

    def _names(self, class_names: ClassNames | None) -> Sequence[str] | None:
        return self.task.in_words(listed(class_names), self.task.of_logits(self.logits).shape[1])

    def _said_of(self, index: int, class_names: ClassNames | None) -> dict[str, Any]:
        """What stands beside an image: the prediction, and the class of the map where it is another."""
        probabilities = self._probabilities()
        if probabilities is None:
            number = f"{float(self.value[index]):.3g}".replace("-", "−")
            return {"predicted": number, "probability": None, "what": "what is explained"}
        assert self.target is not None
        names = self._names(class_names)
        predicted = self.task.predicted_classes(self.task.of_logits(self.logits[index].cpu()[None])[0])
        target = int(self.target[index])
        return {
            "predicted": tuple(name_of(names, number) for number in predicted) or ("none",),
            "probability": tuple(float(probabilities[index, number]) for number in predicted) or None,
            "mapped": "" if predicted == [target] else name_of(names, target),
        }
