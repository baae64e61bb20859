from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_attngrad.attention.windows import each, even_windows, windows


@pytest.mark.parametrize(("before", "after"), [(7, 4), (56, 7), (14, 14), (5, 3), (28, 1)])
def test_even_windows_are_those_of_adaptive_pools(before: int, after: int) -> None:
    first, last = even_windows(before, after)
    numbers = torch.arange(before, dtype=torch.float32).view(1, 1, -1)
    assert F.adaptive_max_pool1d(numbers, after).flatten().tolist() == last
    assert (-F.adaptive_max_pool1d(-numbers, after)).flatten().tolist() == first


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(4, 4, 1), (2, 2, 1), (1, 2, 1), (2, 4, 2), (16, 16, 1)])
def test_windows_that_do_not_overlap_are_read_whole(kernel: int, stride: int, dilation: int) -> None:
    numbers = torch.arange(32, dtype=torch.float32).view(1, 1, -1)
    read = F.unfold(numbers.unsqueeze(2), (1, kernel), dilation=(1, dilation), stride=(1, stride))[0]  # (kernel, after)
    first, last = windows(32, read.shape[1], kernel, stride, 0, dilation)
    assert read.amin(0).tolist() == first
    assert read.amax(0).tolist() == last


@pytest.mark.parametrize(("kernel", "padding", "dilation"), [(3, 1, 1), (7, 3, 1), (3, 2, 2), (1, 0, 1)])
def test_without_a_stride_every_output_stays_where_its_middle_is(kernel: int, padding: int, dilation: int) -> None:
    assert windows(9, 9, kernel, 1, padding, dilation) == (list(range(9)), list(range(9)))


def test_a_border_that_is_cut_off_moves_the_outputs() -> None:
    assert windows(9, 7, kernel=3, stride=1, padding=0, dilation=1)[0] == list(range(1, 8))


def test_outputs_of_overlapping_windows_lie_evenly_over_what_they_see() -> None:
    assert windows(224, 27, kernel=16, stride=8, padding=0, dilation=1) == even_windows(224, 27)  # PiT
    assert windows(56, 28, kernel=3, stride=2, padding=1, dilation=1) == even_windows(56, 28)


def test_one_number_for_all_dimensions() -> None:
    assert each(3, 2) == each([3], 2) == [3, 3]
    assert each((1, 2), 2) == [1, 2]


def test_an_even_window_has_two_middles() -> None:
    assert windows(9, 8, kernel=2, stride=1, padding=0, dilation=1)[0] == list(range(8))
    assert windows(9, 8, kernel=2, stride=1, padding=0, dilation=1, late=True)[0] == list(range(1, 9))
    assert windows(9, 9, kernel=3, stride=1, padding=1, dilation=1, late=True)[0] == list(range(9))
