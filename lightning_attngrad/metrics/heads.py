"""Head statistics as torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.metrics.functional import pairs
from lightning_attngrad.metrics.plotted_metric import PlottedMetric

_OF_HEADS = ("entropy", "distance", "prefix_mass")
_SHARES = ("entropy", "prefix_mass", "high_norm_share")


class AttentionHeadStatistics(PlottedMetric):
    """Means over images of what each attention head does: those of :func:`~.functional.head_statistics`.

    Numbers that are NaN or infinite (a layer without a normalisation before it has no ``high_norm_share``) are left
    out.

    Args:
        layers: L.
        heads: H.

    Returns:
        ``entropy``, ``distance`` and ``prefix_mass`` (L, H), ``high_norm_share`` (L,), as
        :class:`~.functional.HeadStatistics` describes them; NaN where no image has a number.

    Raises:
        ValueError: for sizes that are no positive ints, or tensors in ``update`` of other shapes.

    Example:
        >>> import timm
        >>> from lightning_attngrad.metrics.functional import head_statistics
        >>> found = head_statistics(timm.create_model("test_vit"), torch.rand(2, 3, 160, 160))
        >>> metric = AttentionHeadStatistics(layers=6, heads=2)
        >>> metric.update(found.entropy, found.distance, found.prefix_mass, found.high_norm_share)
        >>> metric.compute()["entropy"].shape
        torch.Size([6, 2])
    """

    def __init__(self, layers: int, heads: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        pairs.check_count("layers", layers)
        pairs.check_count("heads", heads)
        self.sizes = {**dict.fromkeys(_OF_HEADS, (layers, heads)), "high_norm_share": (layers,)}
        for name, size in self.sizes.items():
            self.add_state(f"{name}_total", torch.zeros(size, dtype=self.dtype), dist_reduce_fx="sum")
            self.add_state(f"{name}_images", torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, entropy: Tensor, distance: Tensor, prefix_mass: Tensor, high_norm_share: Tensor) -> None:
        """Add images: the fields of :class:`~.functional.HeadStatistics`, (B, L, H) each and (B, L)."""
        given = dict(zip(self.sizes, (entropy, distance, prefix_mass, high_norm_share), strict=True))
        for name, values in given.items():
            if values.shape != (len(entropy), *self.sizes[name]):
                raise ValueError(
                    f"{name}: got shape {tuple(values.shape)}; expected {(len(entropy), *self.sizes[name])}: as many "
                    "images in all four, and layers= and heads= as the model has"
                )
        for name, values in given.items():
            defined = values.isfinite()
            total, images = (getattr(self, f"{name}_{what}") for what in ("total", "images"))
            total += torch.where(defined, values, 0).to(self.dtype).sum(dim=0)
            images += defined.sum(dim=0)

    def compute(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"{name}_total") / getattr(self, f"{name}_images") for name in self.sizes}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the layers from first to last, or the means over layers and heads from step to step.

        The lines are means over heads; each head is a dot. Distances, in patches, have the axis on the right.

        Args:
            val: a result of ``compute`` or ``forward``, or a list of them; without it that of ``compute``.
            ax: a matplotlib axis to draw on.

        Returns:
            The figure (None where an axis was given) and the axis.
        """
        val = self.compute() if val is None else val
        if isinstance(val, Sequence):
            figure, ax = self._plot([{name: one[name].nanmean() for name in _SHARES} for one in val], ax)
            beside = ax.twinx()
            self._plot([one["distance"].nanmean() for one in val], beside)
            beside.get_lines()[-1].set(color="C3", label="distance")
            beside.grid(visible=False)
        else:
            figure, ax = self._empty_axis(ax, "layer", "")
            beside = ax.twinx()
            self._draw_layers(val, ax, beside)
        handles = [line for axis in (ax, beside) for line in axis.get_lines() if not line.get_label().startswith("_")]
        ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=4)
        ax.set(ylim=(-0.03, 1.03), ylabel="share (entropy: of its largest value)")
        # Patches and shares have no scale in common.
        beside.set_ylim(0, 1.05 * beside.dataLim.y1 if beside.dataLim.y1 > 0 else 1)
        beside.set_ylabel("distance (patches)", color="C3")
        beside.tick_params(axis="y", colors="C3")
        return figure, ax

    def _draw_layers(self, val: Any, ax: Any, beside: Any) -> None:
        """The layers on a line for each statistic, the mean over heads, and a dot for each head."""
        for index, name in enumerate((*_SHARES, "distance")):
            axis = beside if name == "distance" else ax
            by_layer = val[name].reshape(self.sizes["high_norm_share"][0], -1).cpu()  # (L, H or 1)
            layers = torch.arange(1, len(by_layer) + 1)
            axis.plot(layers, by_layer.nanmean(dim=1), color=f"C{index}", label=name)
            axis.plot(layers, by_layer, color=f"C{index}", linestyle="", marker="o", markersize=4, alpha=0.5)
        ax.set_xticks(range(1, len(by_layer) + 1, 1 + len(by_layer) // 13))
