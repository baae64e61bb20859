"""Explanation: what :func:`lightning_attngrad.explain` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_attngrad.attention import Area


@dataclass(frozen=True)
class Explanation:
    """Heatmaps of a batch, with all that is needed to read them.

    B images, C classes, L parts, a grid of h×w patches, and P panels where several classes or several corrections were
    asked for.

    Attributes:
        heatmap: (B, h, w), or (B, P, h, w) with panels; float32. Not rescaled: see
            :func:`lightning_attngrad.metrics.functional.map_density` for maps that can be compared.
        logits: the model's output (B, C), float32; (B, 0) where it has no such row of numbers an image.
        target: the class explained, (B,) or (B, P) int64; None where the objective has no class.
        value: what was explained, Φ of each image: for the objective ``logit`` the target's logit. (B,) or (B, P).
        token_scores: the heatmap in reading order, and in front the S tokens that lie nowhere on the image (class,
            distillation, register and query tokens), (B, S + h·w) or (B, P, S + h·w).
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
