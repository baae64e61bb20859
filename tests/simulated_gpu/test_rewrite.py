"""Rewriting on a GPU, as far as that can be known without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_attngrad.rewrite import Rewrite, rewrite
from tests.simulated_gpu.device import SimulatedGpu, on_host
from tests.zoo import ZOO

VIT = ZOO["vit"]
SEARCHES: dict[str, dict[str, Any]] = {
    "linf": {"norm": "linf"},
    "l2": {"norm": "l2"},
    "linf within a radius": {"norm": "linf", "radius": 8 / 255},
    "one step": {"norm": "linf", "radius": 8 / 255, "steps": 1},
    "l2 within a radius": {"norm": "l2", "radius": 1.0},
    "top patches": {"norm": "l2", "top_share": 0.25},
    "fewest pixels": {"norm": "l0"},
    "pixels within a radius": {"norm": "l0", "radius": 20},
    "fewest patches": {"norm": "l0_patches"},
    "patches within a radius": {"norm": "l0_patches", "radius": 0.5},
}
TARGETS = [3, "random", "runner_up", "least_likely", "all"]


def run(where: str, **asked: Any) -> tuple[Rewrite, SimulatedGpu]:
    asked = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "steps": 4, **asked}
    pixels = torch.rand(2, 3, *VIT.image_size, generator=torch.Generator().manual_seed(0))
    images = (pixels - torch.tensor(asked["mean"])[:, None, None]) / torch.tensor(asked["std"])[:, None, None]
    model = VIT.build()
    with SimulatedGpu(float64=False) as gpu:
        if where == "gpu":
            model, images = gpu.move(model), gpu.upload(images)
            gpu.forget()
        return rewrite(model, images, asked.pop("target", 3), **asked), gpu


def assert_same(asked: dict[str, Any]) -> SimulatedGpu:
    expected, _ = run("cpu", **asked)
    found, gpu = run("gpu", **asked)
    for name in ("index", "target", "success"):
        assert torch.equal(on_host(getattr(found, name)), getattr(expected, name)), name
    # Several steps of signs: what differs by rounding may differ by a step of a pixel.
    assert torch.allclose(on_host(found.logits_before), expected.logits_before, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(on_host(found.margin), expected.margin, rtol=0.05, atol=0.05)
    return gpu


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_keeps_to_the_device(search: str) -> None:
    assert_same(SEARCHES[search])


@pytest.mark.parametrize("target", TARGETS)
def test_every_kind_of_target_keeps_to_the_device(target: int | str) -> None:
    assert_same({"norm": "linf", "target": target})


@pytest.mark.parametrize(
    "search", ["linf", "l2", "linf within a radius", "top patches", "fewest pixels", "fewest patches"]
)
def test_the_host_does_not_wait_at_every_step(search: str) -> None:
    waits = [run("gpu", **{**SEARCHES[search], "steps": steps})[1].number_of_waits for steps in (2, 8)]
    assert waits[0] == waits[1]


@pytest.mark.parametrize("search", ["linf", "l2"])
def test_a_step_costs_few_kernels_beside_the_model_s_own(search: str) -> None:
    def counted(steps: int) -> int:
        return run("gpu", **{**SEARCHES[search], "steps": steps})[1].number_of_launches

    per_step = (counted(8) - counted(4)) / 4
    with SimulatedGpu() as gpu:
        model, images = gpu.move(VIT.build()), gpu.upload(VIT.images())
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        gpu.forget()
        model(images.requires_grad_())[:, 1].sum().backward()
        own = gpu.number_of_launches
    assert per_step <= own + 110
