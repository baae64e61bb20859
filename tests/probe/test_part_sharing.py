"""Rows shared among processes: the same parts for any number of them, and fewer at once where memory runs out."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_attngrad.probe import PartSharing, PartTooLargeError, Processes
from tests.probe.test_processes import Threads, threads  # noqa: F401  (a fixture)


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def rows_of(rows: Tensor) -> list[int]:
    return rows.tolist()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_do_not_depend_on_the_number_of_processes(count: int, threads: Callable[[int], Threads]) -> None:  # noqa: F811
    everyone = threads(count).run(lambda processes: PartSharing(4).each(processes, 10, rows_of))
    assert everyone == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]] * count


def test_heavy_rows_go_in_smaller_parts() -> None:
    assert PartSharing(4).each(Processes(), 5, rows_of, at_most=2) == [[0, 1], [2, 3], [4]]
    assert PartSharing(1).each(Processes(), 2, rows_of, at_most=2) == [[0], [1]]


@pytest.mark.parametrize(
    "error",
    [
        out_of_memory(),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried 9"),
    ],
)
def test_memory_that_runs_out_halves_the_part_and_the_size_is_remembered(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sizes: list[int] = []

    def work(rows: Tensor) -> list[int]:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise error
        return rows.tolist()

    sharing = PartSharing(8)
    with caplog.at_level(logging.WARNING, logger="lightning_attngrad"):
        assert [row for part in sharing.each(Processes(), 7, work) for row in part] == list(range(7))
    assert sizes == [7, 4, 3, 2, 2, 2, 1]  # seven, then parts of four of which all are tried, then two
    assert [record.getMessage()[:52] for record in caplog.records] == [
        "out of memory with 7 images at once: going on with 4",
        "out of memory with 4 images at once: going on with 2",
    ]
    assert sharing.at_once == 2
    sizes.clear()
    sharing.each(Processes(), 4, work)
    assert sizes == [2, 2]


def test_where_not_even_one_row_fits_the_look_fails() -> None:
    def work(rows: Tensor) -> None:
        raise out_of_memory()

    with pytest.raises(PartTooLargeError, match="CUDA out of memory"):
        PartSharing(4).each(Processes(), 4, work)


def test_other_errors_are_not_tried_again() -> None:
    tried: list[Tensor] = []

    def work(rows: Tensor) -> None:
        tried.append(rows)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        PartSharing(4).each(Processes(), 4, work)
    assert len(tried) == 1


def test_all_processes_go_on_with_fewer_rows_where_one_runs_out(threads: Callable[[int], Threads]) -> None:  # noqa: F811
    sharings = [PartSharing(4), PartSharing(4)]

    def of_process(processes: Processes) -> Any:
        def work(rows: Tensor) -> list[int]:
            if processes.rank == 1 and len(rows) > 2:
                raise out_of_memory()
            return rows.tolist()

        return sharings[processes.rank].each(processes, 8, work)

    assert threads(2).run(of_process) == [[[0, 1], [2, 3], [4, 5], [6, 7]]] * 2
    assert [sharing.at_once for sharing in sharings] == [2, 2]


def test_an_error_beside_memory_that_ran_out_is_the_one_that_is_told(threads: Callable[[int], Threads]) -> None:  # noqa: F811
    def of_process(processes: Processes) -> Any:
        def work(rows: Tensor) -> None:
            raise out_of_memory() if processes.rank else ZeroDivisionError("here")

        return PartSharing(4).each(processes, 8, work)

    first, second = threads(2).run(of_process)
    assert isinstance(first, ZeroDivisionError)
    assert isinstance(second, torch.OutOfMemoryError)


def test_memory_of_the_attempt_that_failed_is_let_go() -> None:
    """An exception holds on to the frames that it passed, and they to their tensors."""
    large: list[weakref.ref[Tensor]] = []

    def work(rows: Tensor) -> int:
        assert all(reference() is None for reference in large)
        tensor = torch.zeros(len(rows))
        if len(rows) > 1:
            large.append(weakref.ref(tensor))
            raise out_of_memory()
        return len(tensor)

    assert PartSharing(4).each(Processes(), 4, work) == [1, 1, 1, 1]
    assert len(large) == 3
