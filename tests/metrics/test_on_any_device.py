"""What a GPU would refuse, found without one: kernels that are not deterministic, tensors on another device, autocast.

`NOT_DETERMINISTIC` is torch's own list (``torch.use_deterministic_algorithms``) of what raises on CUDA, with what is
deterministic only where it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_attngrad.metrics import functional
from lightning_attngrad.metrics.functional import pairs
from lightning_attngrad.metrics.functional.precision import device_of_float64
from tests.metrics.two_processes import CASES, _entries

RAISE = (
    "median.dim",
    "nanmedian.dim",
    "kthvalue",
    "mode",
    "histc",
    "bincount",
    "put",
    "put_",
    "grid_sampler_2d_backward",
    "grid_sampler_3d_backward",
    "adaptive_max_pool2d_backward",
    "adaptive_max_pool3d_backward",
    "_adaptive_avg_pool2d_backward",
    "_adaptive_avg_pool3d_backward",
    "avg_pool3d_backward",
    "max_pool3d_with_indices_backward",
    "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward",
    "max_unpool2d",
    "max_unpool3d",
    "upsample_linear1d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward",
    "reflection_pad1d_backward",
    "reflection_pad2d_backward",
    "reflection_pad3d_backward",
    "replication_pad1d_backward",
    "replication_pad2d_backward",
    "replication_pad3d_backward",
    "nll_loss2d_forward",
    "_ctc_loss_backward",
    "_embedding_bag",
)
ONLY_WHERE_ASKED = ("scatter_add", "scatter_add_", "scatter_reduce", "index_add", "index_add_", "_index_put_impl_")


class OnlyDeterministic(TorchDispatchMode):
    """Raises where an operation has no deterministic kernel on CUDA.

    Args:
        differentiates: whether gradients are taken: that of picking one value of each image adds up, at one place.
    """

    def __init__(self, *, differentiates: bool = False) -> None:
        super().__init__()
        self.refused = {*RAISE, *(() if differentiates else ONLY_WHERE_ASKED)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        if {name, f"{name}.{overload}"} & self.refused:
            raise AssertionError(f"{name}.{overload} has no deterministic kernel on CUDA")
        # A running sum raises for anything but whole numbers; in place of a sum, an index may be met twice.
        if name.startswith("cumsum") and (kwargs.get("dtype") or args[0].dtype).is_floating_point:
            raise AssertionError("a running sum of floats has no deterministic kernel on CUDA")
        if name.startswith("index_put") and (kwargs.get("accumulate") or (len(args) > 3 and args[3])):
            raise AssertionError("index_put that adds up is deterministic only where that was asked for")
        return func(*args, **kwargs)


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=3, img_size=32).eval()


def dark_or_bright() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3)).eval()


INPUTS = _entries()
MAPS, NOW = INPUTS["heatmap"], INPUTS["now"]
DISTANCE, SOURCE = INPUTS["distance"], INPUTS["source"]
SHARES = functional.replaced_shares(9, 4)
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
#: One call of each function, on the CPU.
CALLS: dict[str, Callable[[], Any]] = {
    "area_under_curve": lambda: functional.area_under_curve(INPUTS["morf"], SHARES),
    "area_under_success": lambda: functional.area_under_success(DISTANCE, 0.01, 0.1),
    "border_mass": lambda: functional.border_mass(MAPS),
    "centroid_shift": lambda: functional.centroid_shift(MAPS, NOW),
    "class_sensitivity": lambda: functional.class_sensitivity(MAPS, NOW),
    "corner_mass": lambda: functional.corner_mass(MAPS),
    "distance_quantiles": lambda: functional.distance_quantiles(DISTANCE),
    "drift_ratio": lambda: functional.drift_ratio({"cosine": DISTANCE}, {"cosine": DISTANCE}),
    "energy_in_mask": lambda: functional.energy_in_mask(MAPS, INPUTS["mask"]),
    "faithfulness_curves": lambda: [
        vars(
            functional.faithfulness_curves(
                MODELS["linear"], INPUTS["original"], MAPS, SOURCE, steps=3, replacement=replacement
            )
        )
        for replacement in ("mean", "blur")
    ],
    "group_drops": lambda: vars(
        functional.group_drops(MODELS["linear"], INPUTS["original"], MAPS, SOURCE, groups=3, replacement="blur")
    ),
    "head_statistics": lambda: vars(functional.head_statistics(MODELS["vit"], IMAGES)),
    "image_quality": lambda: vars(functional.image_quality(INPUTS["original"], INPUTS["rewritten"])),
    "jensen_shannon": lambda: functional.jensen_shannon(MAPS, NOW),
    "map_centroid": lambda: functional.map_centroid(MAPS),
    "map_cosine": lambda: functional.map_cosine(MAPS, NOW),
    "map_density": lambda: functional.map_density(MAPS),
    "map_drift": lambda: functional.map_drift(MAPS, NOW),
    "map_entropy": lambda: functional.map_entropy(MAPS),
    "map_spearman": lambda: functional.map_spearman(MAPS, NOW),
    "spearman_drift": lambda: functional.spearman_drift(MAPS, NOW),
    "map_ssim": lambda: functional.map_ssim(MAPS, NOW),
    "map_statistics": lambda: functional.map_statistics(MAPS),
    "mask_average_precision": lambda: functional.mask_average_precision(MAPS, INPUTS["mask"]),
    "mask_on_grid": lambda: functional.mask_on_grid(INPUTS["mask"], (4, 5)),
    "median_matrix": lambda: functional.median_matrix(DISTANCE, SOURCE, INPUTS["target"], 3),
    "paired_log_ratio": lambda: vars(functional.paired_log_ratio(DISTANCE, INPUTS["reference"], resamples=50)),
    "pointing_game": lambda: functional.pointing_game(MAPS, INPUTS["mask"]),
    "redrawn_state": lambda: functional.redrawn_state(MODELS["vit"]),
    "replaced_shares": lambda: functional.replaced_shares(9, 4, torch.device("cpu")),
    "robust_accuracy": lambda: functional.robust_accuracy(DISTANCE, INPUTS["correct"], [0.01, 0.1]),
    "saco": lambda: functional.saco(INPUTS["salience"], INPUTS["drop"]),
    "sanity_check": lambda: functional.sanity_check(MODELS["vit"], IMAGES),
    "sanity_correlation": lambda: functional.sanity_correlation(MAPS, NOW),
    "share_surviving": lambda: functional.share_surviving(INPUTS["survived"], INPUTS["success"]),
    "success_at": lambda: functional.success_at(DISTANCE, [0.01, 0.1]),
    "times_uniform_share": lambda: functional.times_uniform_share(MAPS),
    "top_decile_mass": lambda: functional.top_decile_mass(MAPS),
    "top_share_iou": lambda: functional.top_share_iou(MAPS, NOW),
    "two_object_share": lambda: functional.two_object_share(MAPS, INPUTS["mask"], INPUTS["other_mask"]),
}
MODELS = {"linear": dark_or_bright(), "vit": vit()}


def tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def assert_same(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_every_function_is_called_here() -> None:
    functions = {
        name
        for name in functional.__all__
        if callable(found := getattr(functional, name)) and not isinstance(found, type)
    }
    assert functions == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_functions_use_only_deterministic_kernels(name: str) -> None:
    expected = CALLS[name]()
    with OnlyDeterministic(differentiates=name == "sanity_check"):
        found = CALLS[name]()
    assert_same(tensors(found), tensors(expected))


@pytest.mark.parametrize("name", CASES)
def test_classes_use_only_deterministic_kernels(name: str) -> None:
    case = CASES[name]
    with OnlyDeterministic():
        metric = case.make()
        metric.update(**case.entries)
        metric.compute()


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.ones(3, 3).median(dim=1),
        lambda: torch.ones(3, 3).nanmedian(dim=1),
        lambda: torch.ones(3).kthvalue(1),
        lambda: torch.ones(3).cumsum(0),
        lambda: torch.ones(3, dtype=torch.long).cumsum(0, dtype=torch.float32),
        lambda: torch.ones(3).histc(2),
        lambda: torch.ones(3, dtype=torch.long).bincount(),
        lambda: torch.zeros(3).scatter_add_(0, torch.zeros(2, dtype=torch.long), torch.ones(2)),
        lambda: torch.zeros(3).index_add_(0, torch.zeros(2, dtype=torch.long), torch.ones(2)),
        lambda: torch.zeros(3).index_put_((torch.zeros(2, dtype=torch.long),), torch.ones(2), accumulate=True),
    ],
)
def test_the_check_finds_what_it_looks_for(call: Callable[[], object]) -> None:
    with OnlyDeterministic(), pytest.raises(AssertionError, match="deterministic"):
        call()


@contextmanager
def nothing_where_it_was_not_asked_for() -> Iterator[None]:
    """Whatever is made without a device lands on another one than the input, and cannot be computed with."""
    with torch.device("meta"):
        yield


@pytest.mark.parametrize("name", CALLS)
def test_functions_stay_on_the_device_of_their_input(name: str) -> None:
    expected = CALLS[name]()
    with nothing_where_it_was_not_asked_for():
        found = CALLS[name]()
    assert {tensor.device.type for tensor in tensors(found)} <= {"cpu"}
    assert_same(tensors(found), tensors(expected))


@pytest.mark.parametrize("name", CASES)
def test_classes_stay_on_the_device_of_their_states(name: str) -> None:
    case = CASES[name]
    metric, alone = case.make(), case.make()
    alone.update(**case.entries)
    with nothing_where_it_was_not_asked_for():
        metric.update(**case.entries)
        found = metric.compute()
        metric.reset()
        empty = metric.compute()
    assert_same(found, alone.compute())
    assert {tensor.device.type for tensor in tensors([found, empty])} == {"cpu"}


def test_quantiles_are_taken_on_the_device() -> None:
    with nothing_where_it_was_not_asked_for():
        assert pairs.quantiles(DISTANCE.sort().values, [0.0, 0.5, 1.0]).device.type == "cpu"


#: The model computes as it is told to; what is measured of its output does not.
OF_A_MODEL = {"faithfulness_curves", "group_drops", "head_statistics", "sanity_check"}


@pytest.mark.parametrize("name", sorted(set(CALLS) - OF_A_MODEL))
def test_autocast_around_a_function_changes_nothing(name: str) -> None:
    expected = CALLS[name]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(CALLS[name](), expected)


@pytest.mark.parametrize("name", CASES)
def test_autocast_around_a_class_changes_nothing(name: str) -> None:
    case = CASES[name]
    metric, alone = case.make(), case.make()
    alone.update(**case.entries)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(**case.entries)
        assert_same(metric.compute(), alone.compute())


def test_blurring_does_not_follow_autocast() -> None:
    from lightning_attngrad.metrics.functional.faithfulness import replaced_everywhere

    expected = replaced_everywhere(IMAGES, "blur", (4, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(replaced_everywhere(IMAGES, "blur", (4, 4)), expected)


class OnlyFloat32(TorchDispatchMode):
    """Raises where a tensor of float64 is made, which an Apple GPU does not have."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(tensor.dtype == torch.float64 for tensor in tensors(made)):
            raise AssertionError(f"{func} made a tensor of float64")
        return made


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"map_ssim", "map_drift"}))
def test_no_function_needs_float64(name: str) -> None:
    with OnlyFloat32():
        CALLS[name]()


@pytest.mark.parametrize("name", sorted(set(CASES) - {"drift"}))
def test_no_class_needs_float64(name: str) -> None:
    case = CASES[name]
    with OnlyFloat32():
        metric = case.make()
        metric.update(**case.entries)
        metric.compute()


def test_float64_of_an_apple_gpu_is_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of_float64(torch.device("mps")) == torch.device("cpu")
    assert device_of_float64(torch.device("cuda", 1)) == torch.device("cuda", 1)
    # The one function that needs it goes through this choice, and comes back.
    asked = []

    def choice(device: torch.device) -> torch.device:
        asked.append(device)
        return torch.device("cpu")

    monkeypatch.setattr("lightning_attngrad.metrics.functional.similarity.device_of_float64", choice)
    expected = functional.map_ssim(MAPS, NOW)
    assert asked == [MAPS.device]
    assert (expected.dtype, expected.device) == (MAPS.dtype, MAPS.device)
