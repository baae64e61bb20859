"""What the store of a run report keeps of each evaluation: arrays, and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lightning_attngrad.explain import Question
from lightning_attngrad.measure.drift import Drift, Reference
from lightning_attngrad.measure.map_figures import caption_of
from lightning_attngrad.measure.maps import Maps
from lightning_attngrad.measure.rewrite_figures import captions_of
from lightning_attngrad.measure.rewriting import RewriteSettings, RewrittenPairs, ShownPair
from lightning_attngrad.metrics.functional import Faithfulness, times_uniform_share
from lightning_attngrad.probe import Evaluation


def kept_images(evaluation: Evaluation) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32] | None, dict[str, Any]]:
    """Pixels (N, H, W, 3 or 1) as they are shown, masks (N, H, W), and what the images truly are."""
    count, masks = len(evaluation.pixels), evaluation.masks
    described = {
        "hash": evaluation.images_hash,
        "true": [", ".join(evaluation.true_names(index)) for index in range(count)],
        "class_names": None if evaluation.class_names is None else list(evaluation.class_names),
        "shown_as": evaluation.display.words,
    }
    return _pixels(evaluation.pixels), None if masks is None else masks.numpy(), described


def kept_maps(
    evaluation: Evaluation, question: Question, maps: Maps, beside: tuple[Tensor, Tensor] | None = None
) -> dict[str, Any]:
    """Maps in times the uniform share, what was predicted, and what the maps are of.

    Args:
        evaluation: images and names.
        question: what was asked.
        maps: what was found.
        beside: classes (n, K) and their maps (n, K, h, w) of the first images.

    Returns:
        ``heatmap`` (N, h, w) float32; ``layers`` (N, L, h, w), ``panels`` (N, P, h, w) and ``class_maps`` (n, K, h, w)
        float16, with their names, where there are any; ``logits`` (N, C); ``captions``, ``method``, ``signed``,
        ``area`` (top, left, bottom, right, in pixels).
    """
    found: dict[str, Any] = {
        "heatmap": times_uniform_share(maps.heatmap).numpy(),
        "logits": maps.logits.numpy(),
        "captions": [asdict(caption_of(evaluation, question, maps, index)) for index in range(len(maps.heatmap))],
        "method": question.method_in_words,
        "signed": question.signed,
        "area": list(maps.area),
    }
    if maps.layers is not None:
        found |= {"layers": _shares(maps.layers), "layer_names": list(maps.layer_names)}
    if maps.panel_names:
        found |= {"panels": _shares(maps.panels), "panel_names": list(maps.panel_names)}
    if beside is not None:
        classes, of_classes = beside
        names = [[evaluation.class_name(int(index)) for index in row] for row in classes]
        found |= {"class_maps": _shares(of_classes), "class_map_names": names}
    return found


def kept_drift(drift: Drift, reference: Reference | None, layer_names: Sequence[str]) -> dict[str, Any]:
    """Distances of each image and layer, and their noise floors; what they are measured from."""
    return {
        **{f"distance_{name}": values.numpy() for name, values in drift.distance.items()},
        **{f"floor_{name}": values.numpy() for name, values in drift.floor.items()},
        "layer_distance": drift.layers.numpy(),
        "layer_floor": drift.layer_floor.numpy(),
        "layer_names": list(layer_names),
        "reference": None if reference is None else reference.label,
    }


def kept_rewrites(
    evaluation: Evaluation, settings: RewriteSettings, pairs: RewrittenPairs, shown: Sequence[ShownPair]
) -> dict[str, Any]:
    """All pairs in numbers, and the images of the first few.

    Returns:
        Every field of :class:`RewrittenPairs` under ``pair_<name>``; of M pairs ``original`` (M, H, W, 3 or 1) uint8 as
        shown, ``difference`` (M, H, W, 3 or 1) float16 in pixels where white is 1, ``stretch`` (M,) of these to what is
        shown, ``shown_image`` (M,) and ``shown_maps`` (M, 2, h, w) before and after; their ``captions``.
    """
    found: dict[str, Any] = {
        f"pair_{name}": value.numpy() for name, value in vars(pairs).items() if isinstance(value, Tensor)
    }
    found["norm"] = settings.norm
    if not shown:
        return found
    display, index = evaluation.display, pairs.image[[pair.pair for pair in shown]]
    before, after = (
        display.of_channels(torch.stack([getattr(pair, name) for pair in shown])) for name in ("original", "rewritten")
    )
    limits = display.limits_of(index)
    limits = torch.tensor([0.0, 1.0]).expand(len(shown), 2) if limits is None else limits
    low, stretch = limits[:, 0], limits[:, 1] - limits[:, 0]
    found |= {
        "original": _pixels((before - low[:, None, None, None]) / stretch[:, None, None, None]),
        "difference": (after - before).permute(0, 2, 3, 1).numpy().astype(np.float16),
        "stretch": stretch.numpy(),
        "shown_image": index.numpy(),
        "captions": [asdict(caption) for caption in captions_of(evaluation, settings, pairs, shown)],
    }
    maps = [pair.maps for pair in shown if pair.maps is not None]
    if len(maps) == len(shown):
        found |= {"shown_maps": torch.stack(maps).numpy(), "signed": shown[0].signed}
    return found


def kept_curves(curves: Mapping[str, Faithfulness]) -> dict[str, Any]:
    """Probability while patches are replaced, by correction."""
    return {
        f"{name}{panel.replace('/', '_')}": getattr(of_panel, name).numpy()
        for panel, of_panel in curves.items()
        for name in ("shares", "morf", "lerf")
    }


def _shares(maps: Tensor) -> npt.NDArray[np.float16]:
    return times_uniform_share(maps).clamp(-6e4, 6e4).numpy().astype(np.float16)


def _pixels(values: Tensor) -> npt.NDArray[np.uint8]:
    """(N, c, H, W) in [0, 1] to (N, H, W, c) in 0…255."""
    found: npt.NDArray[np.uint8] = (values.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    return found
