from __future__ import annotations

import pytest

from lightning_attngrad.probe import Cadence


def test_every_epoch_without_arguments() -> None:
    cadence = Cadence()
    assert cadence == Cadence(every_n_epochs=1)
    assert all(cadence.due_at_epoch(epoch) for epoch in range(4))
    assert not any(cadence.due_at_step(step) for step in range(4))


def test_every_third_epoch_as_lightning_counts_them() -> None:
    cadence = Cadence(every_n_epochs=3)
    assert [epoch for epoch in range(8) if cadence.due_at_epoch(epoch)] == [2, 5]


def test_every_so_many_steps_but_not_before_the_first() -> None:
    cadence = Cadence(every_n_steps=4)
    assert [step for step in range(10) if cadence.due_at_step(step)] == [4, 8]
    assert not any(cadence.due_at_epoch(epoch) for epoch in range(10))


@pytest.mark.parametrize("cadence", [Cadence(every_n_epochs=3), Cadence(every_n_steps=4)])
def test_the_last_epoch_is_always_due(cadence: Cadence) -> None:
    assert cadence.due_at_epoch(0, is_last=True)
    assert not cadence.due_at_epoch(0)


@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_anything_but_a_positive_int_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}: got {value!r}; expected a positive int"):
        Cadence(**{name: value})  # type: ignore[arg-type]


def test_both_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of the two"):
        Cadence(every_n_epochs=1, every_n_steps=10)
