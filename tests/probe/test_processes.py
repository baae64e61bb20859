"""Work shared among processes: as many parts on each, every part once, and errors that keep nobody waiting."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_attngrad.probe import Processes


class Threads:
    """Threads that stand for processes: collective operations wait for all of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=10)
        self.rank = threading.local()
        self.sent: dict[int, Any] = {}
        self.collectives = [0] * count
        self.received = [0] * count  # bytes, each process's own padded to the longest, as torch sends them

    def run(self, work: Callable[[Processes], Any]) -> list[Any]:
        """What each rank returns, or the error that it raised."""

        def one(rank: int) -> Any:
            self.rank.value = rank
            try:
                return work(Processes(rank, self.count))
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(one, range(self.count)))

    def all_gather_object(self, everyone: list[Any], mine: Any) -> None:
        self.collectives[self.rank.value] += 1
        self.sent[self.rank.value] = copy.deepcopy(mine)
        self.barrier.wait()
        everyone[:] = [copy.deepcopy(self.sent[rank]) for rank in range(self.count)]
        self.received[self.rank.value] += self.count * max(len(pickle.dumps(sent)) for sent in everyone)
        self.barrier.wait()

    def broadcast_object_list(self, objects: list[Any], src: int) -> None:
        self.collectives[self.rank.value] += 1
        self.sent[self.rank.value] = copy.deepcopy(objects)
        self.barrier.wait()
        objects[:] = copy.deepcopy(self.sent[src])
        self.received[self.rank.value] += len(pickle.dumps(objects))
        self.barrier.wait()

    def get_rank(self) -> int:
        return int(self.rank.value)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Threads]:
    def start(count: int) -> Threads:
        threads = Threads(count)
        for name in ("all_gather_object", "broadcast_object_list", "get_rank"):
            monkeypatch.setattr(torch.distributed, name, getattr(threads, name))
        return threads

    return start


# Shares ---------------------------------------------------------------------------------------------------------


@given(parts=st.integers(0, 200), count=st.integers(1, 17))
@settings(deadline=None)
def test_shares_are_equal_and_every_part_counts_once(parts: int, count: int) -> None:
    shares = [Processes(rank, count).share(parts) for rank in range(count)]
    assert {len(share) for share in shares} == {-(-parts // count)}
    assert sorted(part for share in shares for part, counts in share if counts) == list(range(parts))
    assert all(0 <= part < parts for share in shares for part, _ in share)


@pytest.mark.parametrize(
    ("rank", "count", "parts", "share"),
    [
        (0, 1, 3, [(0, True), (1, True), (2, True)]),
        (0, 2, 3, [(0, True), (2, True)]),
        (1, 2, 3, [(1, True), (1, False)]),
        (3, 4, 2, [(0, False)]),  # more processes than parts: the last ones have nothing of their own to repeat
        (1, 2, 0, []),
    ],
)
def test_a_share_by_hand(rank: int, count: int, parts: int, share: list[tuple[int, bool]]) -> None:
    assert Processes(rank, count).share(parts) == share


# Work -----------------------------------------------------------------------------------------------------------


def test_one_process_needs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("all_gather_object", "broadcast_object_list"):
        monkeypatch.setattr(torch.distributed, name, None)  # would not be callable
    alone, done = Processes(), []
    assert alone.gather("here") == ["here"]
    assert alone.each(3, lambda part: done.append(part) or part * part) == [0, 1, 4]
    assert done == [0, 1, 2]
    assert alone.together(lambda: 5) == 5
    alone.share_buffers(nn.BatchNorm1d(2))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("parts", [1, 3, 4, 7])
def test_each_gives_every_process_every_part_in_order(
    count: int, parts: int, threads: Callable[[int], Threads]
) -> None:
    group = threads(count)
    done: list[list[int]] = [[] for _ in range(count)]

    def work(processes: Processes) -> list[tuple[int, int]]:
        def part_of(part: int) -> tuple[int, int]:
            done[processes.rank].append(part)
            return part, processes.rank

        return processes.each(parts, part_of)

    found = group.run(work)
    assert {len(mine) for mine in done} == {-(-parts // count)}
    for everything in found:
        assert everything == [(part, part % count) for part in range(parts)]  # and none from one that only kept pace


def test_what_travels_does_not_grow_with_processes_that_have_no_part(threads: Callable[[int], Threads]) -> None:
    numbers = 10_000  # 40 kB a part

    def work(processes: Processes) -> Any:
        return processes.each(2, lambda part: torch.full((numbers,), float(part)))

    received = []
    for count in (2, 12):
        group = threads(count)
        for first, second in group.run(work):
            assert (float(first[0]), float(second[0])) == (0.0, 1.0)
        received.append(max(group.received))
    assert received[1] < 1.2 * received[0]


@pytest.mark.parametrize("count", [2, 5])
def test_of_a_view_only_what_it_shows_travels(count: int, threads: Callable[[int], Threads]) -> None:
    batch = torch.rand(1000, 100)

    def work(processes: Processes) -> Any:
        return processes.each(2, lambda part: {"rows": (batch[part], batch[:, part].expand(2, -1)[0, :3])})

    group = threads(count)
    for everything in group.run(work):
        for part, found in enumerate(everything):
            assert torch.equal(found["rows"][0], batch[part])
            assert torch.equal(found["rows"][1], batch[:3, part])
    assert max(group.received) < 10_000  # of 400,000 bytes


@pytest.mark.parametrize("bad", [0, 1])
def test_an_error_in_one_of_few_parts_is_raised_everywhere(bad: int, threads: Callable[[int], Threads]) -> None:
    group = threads(4)

    def work(processes: Processes) -> Any:
        return processes.each(2, lambda part: 1 / (0 if part == processes.rank == bad else 1))

    found = group.run(work)
    assert [type(error) for error in found] == [ZeroDivisionError if rank == bad else RuntimeError for rank in range(4)]
    assert set(group.collectives) == {1}  # nobody waits for what will not come


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_an_error_in_one_part_is_raised_everywhere_when_all_parts_are_done(
    bad: int, threads: Callable[[int], Threads]
) -> None:
    group = threads(2)
    done: list[list[int]] = [[], []]

    def work(processes: Processes) -> Any:
        def part_of(part: int) -> int:
            done[processes.rank].append(part)
            if part == bad:
                raise ZeroDivisionError(f"part {part}")
            return part

        return processes.each(4, part_of)

    found = group.run(work)
    own, other = found[bad % 2], found[1 - bad % 2]
    assert (type(own), str(own)) == (ZeroDivisionError, f"part {bad}")
    assert (type(other), str(other)) == (RuntimeError, f"another process had an error: ZeroDivisionError: part {bad}")
    assert [len(mine) for mine in done] == [2, 2]
    assert group.collectives == [1, 1]


def test_an_error_in_a_part_that_does_not_count_is_an_error(threads: Callable[[int], Threads]) -> None:
    """Its process is out of step with the others all the same."""

    def work(processes: Processes) -> Any:
        return processes.each(1, lambda part: 1 / (1 - processes.rank))

    first, second = threads(2).run(work)
    assert isinstance(second, ZeroDivisionError)
    assert isinstance(first, RuntimeError)


def test_the_first_of_several_errors_is_the_one_that_is_told(threads: Callable[[int], Threads]) -> None:
    def work(processes: Processes) -> Any:
        def fails(part: int) -> None:
            raise ValueError(f"part {part}")

        return processes.each(4, fails)

    assert [str(error) for error in threads(2).run(work)] == ["part 0", "part 1"]


def test_together_all_go_on_or_none(threads: Callable[[int], Threads]) -> None:
    def work(processes: Processes) -> Any:
        return processes.together(lambda: 1 / (1 - processes.rank))

    first, second = threads(2).run(work)
    assert isinstance(second, ZeroDivisionError)
    assert str(first) == "another process had an error: ZeroDivisionError: division by zero"
    assert threads(2).run(lambda processes: processes.together(lambda: processes.rank)) == [0, 1]


def test_what_ends_a_program_is_not_held_back(threads: Callable[[int], Threads]) -> None:
    def interrupted(part: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Processes().each(2, interrupted)
    with pytest.raises(KeyboardInterrupt):
        Processes().together(lambda: interrupted(0))


def test_buffers_are_those_of_the_first_process_and_parameters_stay(threads: Callable[[int], Threads]) -> None:
    modules = [nn.BatchNorm1d(2) for _ in range(3)]
    for rank, module in enumerate(modules):
        nn.init.constant_(module.running_mean, rank)  # type: ignore[arg-type]
        nn.init.constant_(module.weight, rank)
        module.num_batches_tracked.fill_(10 * rank)  # type: ignore[union-attr, operator]
    kept = [dict(module.named_buffers()) for module in modules]
    threads(3).run(lambda processes: processes.share_buffers(modules[processes.rank]))
    for rank, module in enumerate(modules):
        assert module.running_mean.tolist() == [0, 0]  # type: ignore[union-attr]
        assert int(module.num_batches_tracked) == 0  # type: ignore[arg-type]
        assert module.weight.tolist() == [rank, rank]
        assert all(buffer is kept[rank][name] for name, buffer in module.named_buffers())  # written in place
