"""Objects as modules and data sets keep them: each is written to in every way it has, and then itself again."""

from __future__ import annotations

import array
import copy
import functools
import io
import queue
import random
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from lightning_attngrad.state import belongings, held_still, untouched, untouched_objects
from tests.probe.runs import fail


class Plain:
    """A user's object."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def opened(path: Any, mode: str = "r") -> Any:
    """Kept open, as people do."""
    return Path(path).open(mode)


class Slotted:
    __slots__ = ("__hidden", "calls", "drawn", "unset")

    def __init__(self) -> None:
        self.calls, self.drawn, self.__hidden = 0, random.Random(1), [0]

    def step(self) -> Any:
        self.calls += 1
        self.__hidden.append(1)
        self.unset = self.calls
        return self.drawn.random()

    def state(self) -> Any:
        return self.calls, self.drawn.getstate(), list(self.__hidden), hasattr(self, "unset")


class SlottedBelow(Slotted):
    """Has a ``__dict__`` beside the slots."""

    def __init__(self) -> None:
        super().__init__()
        self.more = {"calls": [0]}

    def step(self) -> Any:
        self.more["calls"][0] += 1
        return super().step()

    def state(self) -> Any:
        return *super().state(), copy.deepcopy(self.more)


class Named(dict[str, Any]):
    """A dict with attributes, whose own methods must not be called."""

    def __init__(self) -> None:
        super().__init__(calls=0)
        self.noted = [0]

    def clear(self) -> None:
        raise AssertionError

    update = __iter__ = clear  # type: ignore[assignment]


Pair = namedtuple("Pair", ["cos", "sin"])


def counting_closure() -> tuple[Callable[[], Any], Callable[[], Any]]:
    calls, seen, generator = 0, [0], torch.Generator().manual_seed(3)

    def step() -> Any:
        nonlocal calls
        calls += 1
        seen.append(calls)
        return torch.rand((), generator=generator)

    return step, lambda: (calls, list(seen), generator.get_state().tolist())


class Case:
    """A thing to keep, what writes to it, and what is then no longer the same."""

    def __init__(self, make: Callable[[], Any], write: Callable[[Any], Any], state: Callable[[Any], Any]) -> None:
        self.make, self.write, self.state = make, write, state


def _of_numpy(generator: Any) -> Any:
    state = getattr(generator, "bit_generator", generator)
    return repr(state.state if hasattr(state, "state") else generator.get_state())


def _append(value: list[Any]) -> None:
    value.append(1)
    value[0] = -1


def _reorder(value: Any) -> None:
    value.move_to_end("a")
    value["c"] = 3


CASES: dict[str, Case] = {
    "torch.Generator": Case(
        lambda: torch.Generator().manual_seed(1),
        lambda it: torch.rand(3, generator=it),
        lambda it: it.get_state().tolist(),
    ),
    "numpy Generator": Case(lambda: np.random.default_rng(1), lambda it: it.random(), _of_numpy),
    "numpy Generator of Mersenne twisters": Case(
        lambda: np.random.Generator(np.random.MT19937(1)), lambda it: it.random(), _of_numpy
    ),
    "numpy RandomState": Case(lambda: np.random.RandomState(1), lambda it: it.normal(), _of_numpy),
    "numpy BitGenerator": Case(lambda: np.random.PCG64(1), lambda it: it.random_raw(), _of_numpy),
    "random.Random": Case(lambda: random.Random(1), lambda it: it.gauss(0, 1), lambda it: it.getstate()),
    "method of a generator": Case(lambda: random.Random(1).random, lambda it: it(), lambda it: it.__self__.getstate()),
    "method of an object": Case(lambda: Slotted().step, lambda it: it(), lambda it: it.__self__.state()),
    "list": Case(lambda: [0, 1], _append, list),
    "list of lists": Case(lambda: [[0], [1, [2]]], lambda it: _append(it[1][1]), copy.deepcopy),
    "dict of lists": Case(lambda: {"calls": [0]}, lambda it: _append(it["calls"]), copy.deepcopy),
    "OrderedDict": Case(lambda: OrderedDict(a=1, b=2), _reorder, lambda it: list(it.items())),
    "defaultdict": Case(lambda: defaultdict(list, a=[0]), lambda it: it["b"].append(1), copy.deepcopy),
    "Counter": Case(lambda: Counter("aab"), lambda it: it.update("abc"), lambda it: list(it.items())),
    "deque": Case(lambda: deque([1, [2]], maxlen=2), lambda it: it.append(3), lambda it: [list(it), it.maxlen]),
    "set": Case(lambda: {1, 2}, lambda it: it.add(3), set),
    "dict with attributes": Case(
        Named,
        lambda it: (it.__setitem__("calls", 1), _append(it.noted)),
        lambda it: (dict.copy(it), list(it.noted)),
    ),
    "tuple of lists": Case(lambda: (1, [0]), lambda it: _append(it[1]), copy.deepcopy),
    "bytearray": Case(lambda: bytearray(b"abc"), lambda it: it.extend(b"d"), bytes),
    "array": Case(lambda: array.array("d", [1.0]), lambda it: it.append(2.0), list),
    "plain object": Case(
        lambda: Plain(calls=0, inner=Plain(noted=[0])),
        lambda it: (setattr(it, "calls", 1), _append(it.inner.noted), setattr(it.inner, "new", 1)),
        lambda it: (it.calls, list(it.inner.noted), sorted(vars(it.inner))),
    ),
    "namespace": Case(lambda: SimpleNamespace(a=[1]), lambda it: _append(it.a), lambda it: list(it.a)),
    "slots": Case(Slotted, lambda it: it.step(), lambda it: it.state()),
    "slots and attributes": Case(SlottedBelow, lambda it: it.step(), lambda it: it.state()),
    "closure": Case(counting_closure, lambda it: it[0](), lambda it: it[1]()),
    "partial": Case(
        lambda: functools.partial(Plain, [0], noted=[0]),
        lambda it: (_append(it.args[0]), _append(it.keywords["noted"])),
        lambda it: (list(it.args[0]), list(it.keywords["noted"])),
    ),
    "default argument": Case(
        lambda: lambda calls=[0]: calls.append(1),
        lambda it: it(),
        lambda it: list(it.__defaults__[0]),
    ),
    "file that is read": Case(lambda: opened(__file__, "rb"), lambda it: it.read(10), lambda it: it.tell()),
    "data set in a data set": Case(
        lambda: Subset(ConcatDataset([Lists(), Lists()]), [0, 3]),
        lambda it: it[1],
        lambda it: [part.draw.getstate() for part in it.dataset.datasets],
    ),
}


class Lists(Dataset[float]):
    """Draws its items from a generator of its own."""

    def __init__(self) -> None:
        self.draw = random.Random(0)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> float:
        return self.draw.random()


def _in_a_slot(thing: Any) -> Slotted:
    slotted = Slotted()
    slotted.unset = (thing,)
    return slotted


def _in_a_module(thing: Any) -> nn.Module:
    module = nn.Identity()
    module.thing = thing
    return module


HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda thing: thing,
    "an attribute": lambda thing: Plain(thing=thing),
    "a list in a dict of an object": lambda thing: Plain(kept={"things": [None, thing]}),
    "a slot": _in_a_slot,
    "a module": _in_a_module,
    "a module out of sight": lambda thing: Plain(models=[nn.Sequential(_in_a_module(thing))]),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("case", CASES)
def test_whatever_is_written_to_is_itself_again(case: str, holder: str) -> None:
    thing = CASES[case].make()
    before = CASES[case].state(thing)
    held = HOLDERS[holder](thing)
    for error in (None, ZeroDivisionError):
        try:
            with untouched_objects(held):
                CASES[case].write(thing)
                assert CASES[case].state(thing) != before
                if error is not None:
                    fail()
        except ZeroDivisionError:
            pass
        assert CASES[case].state(thing) == before


@pytest.mark.parametrize("still", [untouched, held_still])
@pytest.mark.parametrize("case", CASES)
def test_a_module_is_itself_again_whatever_it_keeps(case: str, still: Callable[[nn.Module], Any]) -> None:
    thing = CASES[case].make()
    before = CASES[case].state(thing)
    model = nn.Sequential(nn.Linear(1, 1), _in_a_module([thing]))
    with still(model), still(model), untouched(model[1]):
        CASES[case].write(thing)
    assert CASES[case].state(thing) == before
    assert model[1].thing == [thing]


def test_the_position_in_a_text_is_put_back() -> None:
    text = io.StringIO("abc\ndef")

    class ReadOnly(io.TextIOWrapper):
        pass

    file = ReadOnly(io.BytesIO(b"abc\ndef"))
    file.writable = lambda: False  # type: ignore[method-assign]
    held = Plain(text=text, file=file)
    with untouched_objects(held):
        assert file.readline() == text.readline() == "abc\n"
    assert file.readline() == "abc\n"
    assert text.readline() == "def"  # it could also be written to, and that would then be overwritten


def test_a_file_that_is_written_to_keeps_what_was_written(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        with untouched_objects(Plain(file=file)):
            file.write("inside ")
        file.write("outside")
    assert (tmp_path / "log").read_text() == "inside outside"


def test_a_file_that_was_opened_inside_is_dropped_and_one_that_was_closed_inside_is_not_taken_up_again() -> None:
    reader = Plain(file=None, count=0)
    outer = Plain(reader=reader)
    with untouched_objects(outer):
        reader.file = opened(__file__)
        handle = reader.file
    handle.close()
    assert reader.file is None
    reader.file = opened(__file__)
    with untouched_objects(outer):
        reader.file.close()
        reader.file, reader.count = None, 1
    assert reader.file is None
    assert reader.count == 1


def test_images_that_are_loaded_when_they_are_needed_can_still_be_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "image.png")
    pictures = Plain(images=[Image.open(tmp_path / "image.png")])
    for _ in range(2):
        with untouched_objects(pictures):
            assert pictures.images[0].getpixel((0, 0)) == (1, 2, 3)


# Tensors and arrays --------------------------------------------------------------------------------------------


TENSORS: dict[str, Callable[[Any], Any]] = {
    "an attribute": lambda tensor: Plain(kept=tensor),
    "a list": lambda tensor: Plain(kept=[tensor]),
    "a dict in a list": lambda tensor: [{"kept": tensor}],
    "a tuple": lambda tensor: Plain(kept=(tensor, tensor)),
    "a named tuple": lambda tensor: Plain(kept=Pair(tensor, tensor)),
    "a closure": lambda tensor: lambda: tensor,
}


def _find(held: Any, kind: type) -> Any:
    """The first object of a kind below some object."""
    if isinstance(held, kind):
        return held
    if callable(held):
        return held()
    below = held.values() if isinstance(held, dict) else held if isinstance(held, list | tuple) else vars(held).values()
    return _find(next(iter(below)), kind)


@pytest.mark.parametrize("place", TENSORS)
@pytest.mark.parametrize("made", [lambda: torch.zeros(3), lambda: np.zeros(3)])
def test_tensors_and_arrays_are_written_to_as_copies(made: Callable[[], Any], place: str) -> None:
    value = made()
    held = TENSORS[place](value)
    with untouched_objects(held):
        lent = _find(held, type(value))
        assert lent is not value
        lent += 1
    assert _find(held, type(value)) is value
    assert value.tolist() == [0, 0, 0]


@pytest.mark.parametrize("place", TENSORS)
def test_no_graph_hangs_on_a_tensor_afterwards_and_one_of_inference_mode_can_be_in_one(place: str) -> None:
    with torch.inference_mode():
        value = torch.ones(3)
    model = _in_a_module(TENSORS[place](value))
    with held_still(model), torch.enable_grad():
        weight = torch.ones(3, requires_grad=True)
        (gradient,) = torch.autograd.grad((weight * _find(model.thing, Tensor)).sum(), weight)
    assert gradient.tolist() == [1, 1, 1]
    assert _find(model.thing, Tensor) is value
    plain = torch.zeros(3)
    model = _in_a_module(TENSORS[place](plain))
    with held_still(model), torch.enable_grad():
        _find(model.thing, Tensor).add_(torch.ones(3, requires_grad=True))
    assert not plain.requires_grad
    assert plain.tolist() == [0, 0, 0]


def test_a_tensor_that_two_modules_share_is_one_tensor_inside() -> None:
    first, second = nn.Identity(), nn.Identity()
    first.register_buffer("kept", torch.zeros(2))
    second.kept, second.listed = first.kept, [first.kept]
    with untouched(nn.ModuleList([first, second])):
        first.kept += 1
        assert second.kept.tolist() == second.listed[0].tolist() == [1, 1]
    assert second.kept is first.kept is second.listed[0]
    assert first.kept.tolist() == [0, 0]


def test_parameters_are_never_copied() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    held = Plain(parameter=parameter, modules=[nn.Linear(2, 2)], listed=[parameter])
    weight = held.modules[0].weight
    with untouched_objects(held):
        assert held.parameter is held.listed[0] is parameter
        assert held.modules[0].weight is weight


# What is left alone, and what it costs ----------------------------------------------------------------------------


class Records(Dataset[Any]):
    """As many records as ImageNet has, in the forms that people keep them in."""

    def __init__(self, count: int) -> None:
        self.samples = [("name", 1)] * count
        self.targets = list(range(count))
        self.by_name = dict.fromkeys(range(count), 1)
        self.seen: set[int] = set(range(count))
        self.array = np.zeros(count)
        self.tensor = torch.zeros(count, 2)
        self.cache: dict[int, Any] = {}
        self.log = deque(range(count))


def test_a_million_records_are_not_copied_and_what_is_appended_is_taken_off() -> None:
    records = Records(200_000)
    before = (records.array, records.tensor)
    kept = belongings.Belongings([records])
    copied = [keeper for keeper in kept._keepers if hasattr(getattr(keeper, "before", None), "__len__")]
    assert sum(len(keeper.before) for keeper in copied) < 100
    records.samples.append(("new", 2))
    records.by_name["new"] = 2
    records.cache[3] = "read"
    records.log.append(0)
    assert records.array is before[0]
    assert records.tensor is before[1]
    kept.restore()
    assert len(records.samples) == len(records.by_name) == len(records.log) == 200_000
    assert records.cache == {}


def test_looking_around_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(belongings, "MOST_ENTRIES", 1000)
    near = Plain(calls=0)
    wide = [[[0] for _ in range(100)] for _ in range(100)]
    held = Plain(wide=wide, near=near)
    kept = belongings.Belongings([held])
    assert len(kept._keepers) < 1200
    near.calls = 1
    kept.restore()
    assert near.calls == 0


def test_circles_and_objects_that_refer_to_everything_are_no_trouble() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)

    class Everything:
        def __init__(self) -> None:
            self.myself, self.listed = self, [self]
            self.listed.append(self.listed)
            self.lock, self.weak = threading.Lock(), weakref.ref(self)
            self.event, self.queue = threading.Event(), queue.Queue()
            self.trainer, self.kind, self.module = trainer, Everything, torch
            self.iterator, self.generator = iter([1, 2]), (number for number in (1, 2))
            self.optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
            self.calls = 0

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(f"{name}: I answer in my own way")

    everything = Everything()
    before = dict(vars(everything))
    with untouched_objects(everything):
        trainer.fit_loop.max_epochs = 7
        everything.calls = 1
        everything.event.set()
    assert vars(everything) == before
    assert trainer.fit_loop.max_epochs == 7  # what is Lightning's is left alone


def test_what_a_thread_may_write_to_meanwhile_is_left_alone() -> None:
    prefetching = Plain(thread=threading.Thread(target=list), ready=[1])
    with untouched_objects(Plain(prefetching=prefetching)):
        prefetching.ready = [2]
    assert prefetching.ready == [2]


def test_an_object_that_cannot_be_put_back_does_not_stand_in_the_way_of_the_others() -> None:
    class Stubborn(random.Random):
        def setstate(self, state: Any) -> None:
            raise OSError("no")

    held = Plain(first=Stubborn(1), calls=0, second=random.Random(1))
    state = held.second.getstate()

    def body() -> None:
        with untouched_objects(held):
            held.calls = 1
            held.second.random()

    with pytest.raises(OSError, match="no"):
        body()
    assert held.calls == 0
    assert held.second.getstate() == state


def test_an_error_while_looking_around_puts_back_what_was_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(2)
    held = Plain(tensor=tensor, generator=random.Random(1))
    monkeypatch.setattr(belongings, "PrivateStream", lambda _: fail())
    with pytest.raises(ZeroDivisionError), untouched_objects(held):
        pass
    assert held.tensor is tensor


def _images() -> Iterator[Tensor]:
    yield torch.zeros(1)


def test_iterators_are_left_alone() -> None:
    held = Plain(images=_images())
    with untouched_objects(held):
        next(held.images)
    assert next(held.images, None) is None


def test_containers_that_are_left_out_keep_what_is_put_into_them() -> None:
    """As the hooks do that FSDP registers in its first forward pass."""
    model = nn.Linear(1, 1)
    hooks = (model._state_dict_pre_hooks, model._load_state_dict_pre_hooks)
    model._load_state_dict_pre_hooks[1] = print
    kept = belongings.Belongings(modules=[model], leave_out=hooks)
    for container in (*hooks, model._forward_hooks):
        container[2] = print
    kept.restore()
    assert [len(container) for container in (*hooks, model._forward_hooks)] == [1, 2, 0]
