from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.state import held_still, passes_begin_as_it_is, untouched, untouched_objects
from lightning_attngrad.state.keepers import KeptTensor
from tests.probe.runs import bytes_of, fail


class Writer(nn.Module):
    """Writes wherever a forward can write."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("in_place", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("filled_later", None)
        self.register_buffer("through_data", torch.zeros(3))
        self.register_buffer("resized", torch.zeros(3))
        self.register_buffer("count", torch.tensor(0))
        self.plain = torch.zeros(3)
        self.calls = 0
        self.history: list[float] = []
        self.table: dict[str, Any] = {"a": 1}

    def forward(self, images: Tensor) -> Tensor:
        self.in_place += 1
        self.replaced = self.replaced + 1
        self.filled_later = torch.ones(3)
        self.through_data.data.copy_(torch.ones(3))
        self.resized.resize_(5)
        self.count += 1
        self.plain += 1
        self.calls += 1
        self.history.append(1.0)
        self.table["b"] = 2
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.ones(1))
        self.last = images * self.weight
        return self.last.sum()


def written(module: Writer) -> Any:
    return (
        {name: (id(value), bytes_of(value), tuple(value.shape)) for name, value in module.named_buffers()},
        (id(module.plain), bytes_of(module.plain)),
        (module.calls, list(module.history), dict(module.table), sorted(vars(module))),
        module.filled_later,
    )


@pytest.mark.parametrize("fails", [False, True])
def test_whatever_a_forward_writes_is_undone(fails: bool) -> None:
    module = Writer()
    before = written(module)
    try:
        with untouched(module):
            module(torch.ones(3))
            assert module.calls == 1
            if fails:
                fail()
    except ZeroDivisionError:
        pass
    assert written(module) == before


def test_batch_normalisation_put_into_train_mode_by_the_forward_is_undone() -> None:
    class TrainsItself(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(2)

        def forward(self, images: Tensor) -> Tensor:
            self.norm.train()
            return self.norm(images)

    module = TrainsItself().eval()
    before = {name: bytes_of(value) for name, value in module.state_dict().items()}
    with untouched(module):
        module(torch.rand(4, 2, 3, 3))
        assert int(module.norm.num_batches_tracked) == 1
    assert {name: bytes_of(value) for name, value in module.state_dict().items()} == before
    assert not module.norm.training


def test_values_that_equality_cannot_tell_apart_are_restored_bit_by_bit() -> None:
    tensor = torch.tensor([0.0, float("nan"), 1.0])
    before = bytes_of(tensor)
    kept = KeptTensor(tensor)
    tensor.mul_(-1)  # 0 becomes −0, which equals 0
    kept.restore()
    assert bytes_of(tensor) == before


def test_an_unchanged_buffer_keeps_its_version_so_that_a_pending_backward_still_runs() -> None:
    norm = nn.BatchNorm2d(2).eval()
    loss = norm(torch.rand(3, 2, 2, 2)).sum()  # has saved the running statistics
    versions = [buffer._version for buffer in norm.buffers()]
    with untouched(norm):
        norm(torch.rand(3, 2, 2, 2))
    assert [buffer._version for buffer in norm.buffers()] == versions
    torch.autograd.grad(loss, norm.weight)


def test_buffers_that_are_given_to_a_model_stay_for_every_pass_and_are_undone_in_the_end() -> None:
    root = nn.Sequential(module := Writer())
    with untouched(root):
        for given in (5.0, 7.0):
            module.in_place.fill_(given)
            passes_begin_as_it_is(module)
            for _ in range(2):
                with held_still(module):
                    assert module.in_place.tolist() == [given] * 3
                    module(torch.zeros(3))
                    assert module.in_place.tolist() == [given + 1] * 3
            assert module.in_place.tolist() == [given] * 3
    assert module.in_place.tolist() == [0.0] * 3
    passes_begin_as_it_is(root)  # nothing to do


def test_gradients_come_back_as_the_same_objects_and_backward_is_reported() -> None:
    module = nn.Linear(3, 1)
    module(torch.ones(1, 3)).sum().backward()
    gradients = [(id(p.grad), bytes_of(p.grad)) for p in module.parameters()]

    def careless() -> None:
        with untouched(module):
            assert all(p.grad is None for p in module.parameters())
            module(torch.ones(1, 3)).sum().backward()

    with pytest.raises(RuntimeError, match=r"torch\.autograd\.grad"):
        careless()
    assert [(id(p.grad), bytes_of(p.grad)) for p in module.parameters()] == gradients


def test_an_error_in_the_body_is_not_hidden_by_the_report_of_gradients() -> None:
    module = nn.Linear(3, 1)

    def careless() -> None:
        with untouched(module):
            module(torch.ones(1, 3)).sum().backward()
            fail()

    with pytest.raises(ZeroDivisionError):
        careless()
    assert all(p.grad is None for p in module.parameters())


def test_requires_grad_is_restored() -> None:
    module = nn.Linear(3, 1)
    module.bias.requires_grad_(False)
    with untouched(module):
        module.weight.requires_grad_(False)
        module.bias.requires_grad_(True)
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


class Cached(nn.Module):
    """Fills caches of three kinds in its first forward, and multiplies with them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("table", None)
        self.plain: Tensor | None = None
        self.pair: tuple[Tensor, ...] = ()
        self.listed: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        if self.plain is None:
            self.table, self.plain = torch.ones(2), torch.ones(2)
            self.pair, self.listed = (torch.ones(2),), [torch.ones(2)]
        return images * self.weight * self.table * self.plain * self.pair[0] * self.listed[0]


def test_caches_filled_in_inference_mode_do_not_stop_the_gradient() -> None:
    module = Cached()
    with torch.inference_mode():
        module(torch.ones(2))
    before = (module.table, module.plain, module.pair, module.listed[0])
    assert all(tensor.is_inference() for tensor in (*before[:2], *before[2], before[3]))
    with untouched(module):
        assert module.table is not before[0]
        (gradient,) = torch.autograd.grad(module(torch.ones(2)).sum(), module.weight)
    assert gradient.tolist() == [1.0, 1.0]
    after = (module.table, module.plain, module.pair, module.listed[0])
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_buffers_made_in_inference_mode_can_be_written_inside_and_are_untouched_afterwards() -> None:
    class Counter(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            self.count += 1
            return images

    module = Counter()
    with torch.inference_mode():
        module.register_buffer("count", torch.zeros(1))
    with torch.inference_mode(), torch.inference_mode(False), untouched(module):
        module(torch.ones(1))
        assert float(module.count) == 1
    assert float(module.count) == 0
    assert module.count.is_inference()


def test_parameters_that_cannot_be_differentiated_are_named() -> None:
    with torch.inference_mode():
        module = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"'0\.weight' of Sequential was created in inference mode"), untouched(module):
        pass
    with pytest.raises(ValueError, match=r"'weight' of LazyLinear has no shape yet"), untouched(nn.LazyLinear(2)):
        pass


def test_containers_are_restored_in_place() -> None:
    class Holder:
        def __init__(self) -> None:
            self.listed, self.named, self.several = [1, 2], {"a": 1}, {1}

    holder = Holder()
    listed, named, several = holder.listed, holder.named, holder.several
    with untouched_objects(holder, 3):
        listed.append(3)
        named["a"] = 2
        several.clear()
        holder.listed = []
    assert (holder.listed, holder.named, holder.several) == ([1, 2], {"a": 1}, {1})
    assert holder.listed is listed
    assert holder.named is named
    assert holder.several is several


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_scripted_module_which_keeps_its_flag_elsewhere_gets_it_back() -> None:
    module = nn.Sequential(torch.jit.script(nn.Dropout(0.5)))
    assert "training" not in vars(module[0])
    with untouched(module):
        assert not module[0].training
    assert module[0].training
