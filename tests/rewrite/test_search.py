"""What a search keeps: the cheapest success, else the closest attempt, and the signs of ill health."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_attngrad.rewrite import Normalisation
from lightning_attngrad.rewrite.margins import TargetMargin
from lightning_attngrad.rewrite.search import Search, schedule


def search_of(rows: int = 1, *, gradient: bool = True) -> Search:
    """One pixel an image; its margin for class 1 is ten times the pixel less five."""

    def forward(images: Tensor) -> Tensor:
        lead = 10 * images.flatten(1) - 5
        return torch.cat([-lead / 2, lead / 2], dim=1) if gradient else torch.cat([-lead / 2, lead / 2], 1).detach()

    target = torch.ones(rows, dtype=torch.int64)
    return Search(TargetMargin(forward, Normalisation((0.0,), (1.0,), ""), target), torch.zeros(rows, 1, 1, 1))


def pixel(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None, None]


def test_the_schedule_is_half_a_cosine() -> None:
    assert [schedule(step, 4) for step in range(5)] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


def test_without_a_success_the_closest_attempt_is_kept() -> None:
    search = search_of()
    for value in (0.1, 0.4, 0.2):
        search.climb(pixel(value), torch.tensor([value]))
    assert not search.found
    assert search.cost.tolist() == [float("inf")]
    assert search.best.item() == pytest.approx(0.4)
    assert search.closest.item() == pytest.approx(-1)
    assert search.logits.flatten().tolist() == pytest.approx([0.5, -0.5])


def test_the_cheapest_success_is_kept_whatever_its_margin() -> None:
    search = search_of()
    search.climb(pixel(0.2), torch.tensor([0.2]))
    outcomes = []
    for value, cost in ((0.9, 0.9), (0.6, 0.6), (1.0, 0.7), (0.45, 0.1), (0.8, 0.6)):
        margin, rewritten = search.attempt(pixel(value), torch.tensor([cost]))
        assert margin.item() == pytest.approx(10 * value - 5)
        outcomes.append(bool(rewritten))
    assert outcomes == [True, True, True, False, True]
    assert search.found.all()
    assert search.cost.item() == pytest.approx(0.6)
    assert search.best.item() == pytest.approx(0.6)
    assert search.closest.item() == pytest.approx(1)
    assert search.logits.flatten().tolist() == pytest.approx([-0.5, 0.5])


def test_a_success_takes_the_place_of_a_failure_even_at_the_same_margin() -> None:
    search = search_of()
    search.climb(pixel(0.5), torch.tensor([0.0]))  # a tie: no success, and the closest
    search.climb(pixel(0.501), torch.tensor([5.0]))
    assert search.cost.item() == 5
    assert search.best.item() == pytest.approx(0.501)


def test_rows_do_not_see_each_other() -> None:
    search = search_of(3)
    search.climb(pixel(0.0, 0.9, 0.3), torch.tensor([0.0, 0.9, 0.3]))
    _, _, rewritten = search.climb(pixel(0.8, 0.95, 0.1), torch.tensor([0.8, 0.95, 0.1]))
    assert rewritten.tolist() == [True, True, False]
    assert search.found.tolist() == [True, True, False]
    assert search.best.flatten().tolist() == pytest.approx([0.8, 0.9, 0.3])
    assert search.cost.tolist() == pytest.approx([0.8, 0.9, float("inf")])


def test_logits_before_are_those_of_the_first_attempt() -> None:
    search = search_of()
    search.climb(pixel(0.0), torch.tensor([0.0]))
    search.climb(pixel(0.9), torch.tensor([0.9]))
    search.attempt(pixel(0.7), torch.tensor([0.7]))
    assert search.logits_before.flatten().tolist() == pytest.approx([2.5, -2.5])
    assert search.logits.flatten().tolist() == pytest.approx([-1, 1])


def test_the_trace_holds_the_iterates_and_nothing_else() -> None:
    search = search_of()
    for value in (0.1, 0.3):
        search.climb(pixel(value), torch.tensor([value]))
    search.attempt(pixel(0.7), torch.tensor([0.7]), traced=True)
    search.attempt(pixel(0.9), torch.tensor([0.9]))
    assert torch.stack(search.trace).flatten().tolist() == pytest.approx([-4, -2, 2])


def run(values: list[float], *, gradient: bool = True) -> Search:
    """A search of as many steps as values, less one; the cost is the value."""
    search = search_of(gradient=gradient)
    for value in values[:-1]:
        search.climb(pixel(value), torch.tensor([value]))
    search.attempt(pixel(values[-1]), torch.tensor([values[-1]]), traced=True)
    return search


YES = torch.tensor([True])


@pytest.mark.parametrize(
    ("values", "unconverged"),
    [
        ([0.9, 0.8, 0.7, 0.61, 0.6, 0.6, 0.6, 0.6, 0.6], False),  # found long ago
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.55], True),  # a third shorter at the very end
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.55, 0.9], True),
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.55, 0.9, 0.9], False),  # before the last quarter
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.88, 0.87], False),  # a few per cent
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9], True),  # found at the last moment
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], False),  # never found: another flag says so
        ([0.9, 0.55], True),
        ([0.9, 0.9], False),
    ],
)
def test_a_search_that_still_gets_better_at_its_end_has_not_converged(values: list[float], unconverged: bool) -> None:
    search = run(values)
    health = search.health(beats_one_step=YES, huge_radius=search.found)
    assert health.unconverged.tolist() == [unconverged]


@pytest.mark.parametrize(("costs", "unconverged"), [((3, 2), False), ((8, 6), True), ((20, 18), False)])
def test_one_less_of_a_few_is_no_sign_of_haste(costs: tuple[int, int], unconverged: bool) -> None:
    """A third is, of lengths; of pixels, it is the least that can be."""
    search = search_of()
    for step in range(8):
        search.climb(pixel(0.9), torch.tensor([float(costs[step > 5])]))
    assert search.health(beats_one_step=YES, huge_radius=YES, unit=1.0).unconverged.tolist() == [unconverged]


def test_what_is_found_after_the_last_step_has_not_converged() -> None:
    search = run([0.1] * 9)
    search.attempt(pixel(0.9), torch.tensor([0.9]))
    assert search.health(beats_one_step=YES, huge_radius=search.found).unconverged.tolist() == [True]


def test_steps_without_a_gradient_are_counted() -> None:
    assert run([0.1] * 5, gradient=False).health(beats_one_step=YES, huge_radius=YES).zero_gradient.tolist() == [1]
    assert run([0.1] * 5).health(beats_one_step=YES, huge_radius=YES).zero_gradient.tolist() == [0]


def test_the_other_flags_are_handed_on() -> None:
    health = run([0.9] * 5).health(beats_one_step=~YES, huge_radius=YES)
    assert (health.beats_one_step.tolist(), health.huge_radius.tolist()) == ([False], [True])
