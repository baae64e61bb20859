"""Which inputs stand for each output of a convolution or a pool, along one dimension."""

from __future__ import annotations

from typing import Any

#: First and last input index of each output, both included.
Ranges = tuple[list[int], list[int]]


def even_windows(before: int, after: int) -> Ranges:
    """``after`` parts of ``before`` indices, as adaptive pools cut them.

    Example:
        >>> even_windows(7, 4)
        ([0, 1, 3, 5], [1, 3, 5, 6])
    """
    first = [index * before // after for index in range(after)]
    last = [-(-(index + 1) * before // after) - 1 for index in range(after)]
    return first, last


def windows(
    before: int, after: int, kernel: int, stride: int, padding: int, dilation: int, *, late: bool = False
) -> Ranges:
    """What stands for each output of a layer with these settings.

    Windows that do not overlap are read whole. Overlapping ones only blur: without a stride the middle of each window
    stays where it is, with one each output has as many inputs as the stride, as near to its middle as they tile the
    input; where a stride or more would be left over at the borders, outputs lie evenly over all that is seen.

    A window of an even number of inputs has two in its middle: the later one if ``late``.

    Example:
        >>> windows(8, 2, kernel=4, stride=4, padding=0, dilation=1)
        ([0, 4], [3, 7])
        >>> windows(8, 4, kernel=3, stride=2, padding=1, dilation=1)
        ([0, 2, 4, 6], [1, 3, 5, 7])
    """
    reach = (kernel - 1) * dilation + 1
    if stride == 1:
        shift = (reach if late else reach - 1) // 2 - padding
        places = [min(max(index + shift, 0), before - 1) for index in range(after)]
        return places, places
    if kernel > stride:
        left_over = before - after * stride
        if left_over >= stride:
            return even_windows(max(after, min(before, (after - 1) * stride + reach - padding)), after)
        start = min(max((reach - stride) // 2 - padding, 0), max(left_over, 0))
        first = [min(start + index * stride, before - 1) for index in range(after)]
        return first, [min(index + stride, before) - 1 for index in first]
    first = [min(max(index * stride - padding, 0), before - 1) for index in range(after)]
    last = [min(max(index * stride - padding + reach - 1, 0), before - 1) for index in range(after)]
    return first, last


def window_middles(after: int, kernel: int, stride: int, padding: int, dilation: int) -> list[float]:
    """The input index in the middle of what each output reads: not always whole, and outside where padding is read.

    Example:
        >>> window_middles(3, kernel=7, stride=4, padding=3, dilation=1)
        [0.0, 4.0, 8.0]
        >>> window_middles(2, kernel=4, stride=4, padding=0, dilation=1)
        [1.5, 5.5]
    """
    half = (kernel - 1) * dilation / 2
    return [index * stride - padding + half for index in range(after)]


def each(value: Any, count: int) -> list[int]:
    """A setting for each of ``count`` dimensions: torch takes one number for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values
