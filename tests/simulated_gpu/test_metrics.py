"""Every functional metric on a GPU, as far as that can be known without one: same numbers, no second device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_attngrad.metrics import functional
from tests.simulated_gpu.device import SimulatedGpu, on_host
from tests.zoo import CLASSES, ZOO

VIT = ZOO["vit"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


MAPS, OTHER_MAPS = drawn(3, 6, 8), drawn(3, 6, 8, seed=1)
MASKS = drawn(3, 24, 32, seed=2) > 0.6
DISTANCES = torch.tensor([0.1, 0.02, 0.3, torch.inf, 0.05])
REFERENCE = torch.tensor([0.2, 0.01, 0.3, 0.1, 0.04])
FLAGS = torch.tensor([True, False, True, True, False])
CLASSES_OF = torch.tensor([0, 1, 2, 1, 0])
PIXELS, REWRITTEN = drawn(2, 3, 16, 16), (drawn(2, 3, 16, 16) + 0.05).clamp_max(1)
CURVES = drawn(2, 5)
DRIFT = {"cosine": drawn(4), "spearman": drawn(4, seed=1)}
NOISE = {"cosine": drawn(4, seed=2), "spearman": drawn(4, seed=3)}
TARGET = torch.tensor([2, 5])

Arguments = tuple[Any, ...]
#: Arguments of each function; ``None`` stands for a model and its images, which are moved to the device.
CALLS: dict[str, Arguments] = {
    "area_under_curve": (CURVES, torch.linspace(0, 1, 5)),
    "area_under_success": (DISTANCES, 0.01, 1.0),
    "border_mass": (MAPS,),
    "centroid_shift": (MAPS, OTHER_MAPS),
    "class_sensitivity": (MAPS, OTHER_MAPS),
    "corner_mass": (MAPS,),
    "distance_quantiles": (DISTANCES,),
    "drift_ratio": (DRIFT, NOISE),
    "energy_in_mask": (MAPS, MASKS),
    "image_quality": (PIXELS, REWRITTEN),
    "jensen_shannon": (MAPS, OTHER_MAPS),
    "map_centroid": (MAPS,),
    "map_cosine": (MAPS, OTHER_MAPS),
    "map_density": (MAPS,),
    "map_drift": (MAPS, OTHER_MAPS),
    "spearman_drift": (MAPS, OTHER_MAPS),
    "map_entropy": (MAPS,),
    "map_spearman": (MAPS, OTHER_MAPS),
    "map_ssim": (MAPS, OTHER_MAPS),
    "map_statistics": (MAPS,),
    "mask_average_precision": (MAPS, MASKS),
    "mask_on_grid": (MASKS, (6, 8)),
    "median_matrix": (DISTANCES, CLASSES_OF, CLASSES_OF.flip(0), 3),
    "paired_log_ratio": (DISTANCES, REFERENCE),
    "pointing_game": (MAPS, MASKS),
    "robust_accuracy": (DISTANCES, FLAGS, [0.05, 0.2]),
    "saco": (CURVES, drawn(2, 5, seed=1)),
    "sanity_correlation": (MAPS, OTHER_MAPS),
    "share_surviving": (FLAGS, FLAGS.flip(0)),
    "success_at": (DISTANCES, [0.05, 0.2]),
    "times_uniform_share": (MAPS,),
    "top_decile_mass": (MAPS,),
    "top_share_iou": (MAPS, OTHER_MAPS),
    "two_object_share": (MAPS, MASKS, ~MASKS),
    "head_statistics": (None,),
    "sanity_check": (None, TARGET),
    "faithfulness_curves": (None, drawn(2, *VIT.grid), TARGET),
    "group_drops": (None, drawn(2, *VIT.grid), TARGET),
}
#: Not from tensors of the device to tensors or numbers: names, classes of results, shares of patches, drawn weights.
NO_METRICS = {
    "DRIFT_MEASURES",
    "Faithfulness",
    "GroupDrops",
    "HeadStatistics",
    "ImageQuality",
    "LogRatio",
    "redrawn_state",
    "replaced_shares",
}


def test_no_metric_is_left_out() -> None:
    assert set(functional.__all__) == CALLS.keys() | NO_METRICS


def numbers(result: Any) -> list[Any]:
    """What a function returned, as a list of tensors and numbers."""
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return [part for field in dataclasses.fields(result) for part in numbers(getattr(result, field.name))]
    if isinstance(result, dict):
        return [part for value in result.values() for part in numbers(value)]
    if isinstance(result, list | tuple):
        return [part for value in result for part in numbers(value)]
    return [result]


def computed(name: str, gpu: SimulatedGpu | None, **options: Any) -> list[Any]:
    def place(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: place(item) for key, item in value.items()}
        return gpu.upload(value) if gpu is not None and isinstance(value, Tensor) else value

    function: Callable[..., Any] = getattr(functional, name)
    if CALLS[name][0] is None:
        model = VIT.build() if gpu is None else gpu.move(VIT.build())
        function = partial(function, model)
    arguments = [VIT.images() if value is None else value for value in CALLS[name]]
    placed = [place(value) for value in arguments]
    if gpu is not None:
        gpu.forget()
    return numbers(function(*placed, **options))


def assert_same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Tensor):
            torch.testing.assert_close(on_host(one), other, rtol=1e-4, atol=1e-5, equal_nan=True)
        else:
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5) if isinstance(other, float) else one == other


@pytest.mark.parametrize("name", CALLS)
def test_every_metric_keeps_to_the_device(name: str) -> None:
    expected = computed(name, None)
    with SimulatedGpu() as gpu:
        found = computed(name, gpu)
    assert_same(found, expected)


@pytest.mark.parametrize("replacement", ["mean", "blur"])
def test_both_ways_to_replace_patches(replacement: str) -> None:
    expected = computed("faithfulness_curves", None, replacement=replacement)
    with SimulatedGpu() as gpu:
        assert_same(computed("faithfulness_curves", gpu, replacement=replacement), expected)
    assert int(TARGET.max()) < CLASSES
