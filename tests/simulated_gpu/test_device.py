"""The simulated device is as strict as it says: each fault that it is there for is made once, on purpose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.simulated_gpu.device import DEVICE, MixedDevicesError, SimulatedGpu, SimulatedTensor, on_host


def _numbers(gpu: SimulatedGpu, *shape: int) -> Tensor:
    return gpu.upload(torch.rand(*shape, generator=torch.Generator().manual_seed(0)))


def test_it_computes_what_the_cpu_computes() -> None:
    host = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    with SimulatedGpu() as gpu:
        tensor = gpu.upload(host)
        doubled = tensor * 2 + torch.arange(4, device=tensor.device)
        assert isinstance(doubled, SimulatedTensor)
        assert doubled.device == DEVICE
        assert torch.equal(on_host(doubled), host * 2 + torch.arange(4))
        assert torch.equal(doubled.cpu(), host * 2 + torch.arange(4))
        assert torch.equal(on_host(torch.tensor([1.0, 2.0], device=tensor.device)), torch.tensor([1.0, 2.0]))
        assert torch.equal(on_host(torch.as_tensor([1, 2], device=tensor.device)), torch.tensor([1, 2]))
        assert torch.equal(on_host(tensor.new_tensor([1, 2])), torch.tensor([1.0, 2.0]))
        assert tensor.tolist() == host.tolist()


def test_gradients_come_back_on_the_device() -> None:
    with SimulatedGpu() as gpu:
        layer = gpu.move(nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.LayerNorm(3)))
        tokens = _numbers(gpu, 2, 4).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(tokens).square().sum(), tokens)
        assert isinstance(gradient, SimulatedTensor)
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(
    "fault",
    [
        lambda tensor: tensor + torch.arange(4),
        lambda tensor: tensor * torch.zeros(4),
        lambda tensor: tensor @ torch.rand(4, 2),
        lambda tensor: tensor[torch.tensor([0, 2])],
        lambda tensor: tensor[torch.tensor([True, False, True])],
        lambda tensor: torch.cat([tensor, torch.zeros(1, 4)]),
        lambda tensor: torch.where(torch.ones(4, dtype=torch.bool), tensor, 0.0),
        lambda tensor: tensor.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    ],
)
def test_two_devices_in_one_operation_raise(fault) -> None:
    with SimulatedGpu() as gpu, pytest.raises(MixedDevicesError, match="expected all tensors to be on the same device"):
        fault(_numbers(gpu, 3, 4))


def test_a_number_may_come_from_the_host() -> None:
    with SimulatedGpu() as gpu:
        assert isinstance(_numbers(gpu, 3) * torch.tensor(2.0), SimulatedTensor)


@pytest.mark.parametrize(
    "fault",
    [
        lambda tensor: tensor.median(dim=1),
        lambda tensor: tensor.kthvalue(2, dim=1),
        lambda tensor: tensor.cumsum(dim=1),
        torch.histc,
        lambda tensor: torch.autograd.grad(
            nn.functional.adaptive_avg_pool2d(tensor.requires_grad_()[None], 2).sum(), tensor
        ),
    ],
)
def test_kernels_that_are_not_deterministic_raise(fault) -> None:
    with SimulatedGpu() as gpu, pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        fault(_numbers(gpu, 3, 4))
    with SimulatedGpu(deterministic=False) as gpu:
        fault(_numbers(gpu, 3, 4))


def test_sums_of_integers_have_no_order() -> None:
    with SimulatedGpu() as gpu:
        counts = gpu.upload(torch.tensor([1, 2, 3]))
        assert counts.cumsum(0).tolist() == [1, 3, 6]


@pytest.mark.parametrize(
    "fault",
    [
        lambda tensor: tensor.double(),
        lambda tensor: torch.zeros(2, dtype=torch.float64, device=tensor.device),
        lambda tensor: tensor.sum(dtype=torch.float64),
    ],
)
def test_a_device_without_float64_says_so(fault) -> None:
    with SimulatedGpu(float64=False) as gpu, pytest.raises(TypeError, match="float64"):
        fault(_numbers(gpu, 3, 4))


def test_kernels_and_waits_are_counted_and_views_are_free() -> None:
    with SimulatedGpu() as gpu:
        tensor = _numbers(gpu, 3, 4)
        gpu.forget()
        tensor.mT.unsqueeze(0)[:, 1:].detach().expand(5, 3, 3)
        assert gpu.number_of_launches == gpu.number_of_waits == 0
        total = (tensor * 2).exp_().sum()
        assert dict(gpu.launches) == {"aten::mul.Tensor": 1, "aten::exp_": 1, "aten::sum": 1}
        assert gpu.number_of_waits == 0
        assert float(total) > 0
        assert bool((tensor > 0).all())
        total.cpu()
        tensor.tolist()
        tensor[tensor > 0.5]
        assert gpu.number_of_waits == 5
        gpu.forget()
        torch.tensor([1.0], device=tensor.device)
        torch.ones(3).to(tensor.device)
        assert gpu.uploads == 2


def test_what_is_written_in_place_stays_the_same_tensor() -> None:
    with SimulatedGpu() as gpu:
        tensor = torch.zeros(2, 3, device=DEVICE)
        first = tensor[0]
        first += 1
        tensor[1] += torch.full((3,), 2.0, device=DEVICE)
        out = torch.softmax(tensor, dim=-1, out=tensor)
        assert out is tensor
        assert tensor.tolist() == [[1 / 3] * 3] * 2 or torch.allclose(on_host(tensor), torch.full((2, 3), 1 / 3))
        assert gpu.number_of_waits == 1
