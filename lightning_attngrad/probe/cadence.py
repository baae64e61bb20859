"""When a probe is due."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cadence:
    """Every so many epochs, or every so many optimizer steps.

    Give at most one of the two; with neither, every epoch. Epochs and steps are counted as Lightning counts
    them for ``check_val_every_n_epoch``: with ``every_n_epochs=2`` the second, fourth, … epoch is due. The
    last epoch is always due, so that a run ends with a probe of its final weights.

    Args:
        every_n_epochs: a positive number of epochs.
        every_n_steps: a positive number of optimizer steps (``trainer.global_step``).

    Raises:
        ValueError: if both are given, or one is not a positive int.

    Example:
        >>> cadence = Cadence(every_n_epochs=2)
        >>> [epoch for epoch in range(5) if cadence.due_at_epoch(epoch, is_last=epoch == 4)]
        [1, 3, 4]
        >>> [step for step in range(250) if Cadence(every_n_steps=100).due_at_step(step)]
        [100, 200]
    """

    every_n_epochs: int | None = None
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("every_n_epochs", self.every_n_epochs), ("every_n_steps", self.every_n_steps)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}: got {value!r}; expected a positive int, or None to leave it out")
        if self.every_n_epochs is not None and self.every_n_steps is not None:
            raise ValueError(
                f"every_n_epochs, every_n_steps: got {self.every_n_epochs} and {self.every_n_steps}; "
                "expected one of the two; leave out the other"
            )
        if self.every_n_epochs is None and self.every_n_steps is None:
            object.__setattr__(self, "every_n_epochs", 1)

    def due_at_epoch(self, epoch: int, *, is_last: bool = False) -> bool:
        """Whether the end of an epoch is due.

        Args:
            epoch: ``trainer.current_epoch``, counted from 0.
            is_last: whether no epoch follows; the last one is due in either way of counting.
        """
        return is_last or (self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0)

    def due_at_step(self, step: int) -> bool:
        """Whether a step is due.

        Args:
            step: ``trainer.global_step``, the optimizer steps done. Under gradient accumulation it stays the
                same for several batches: the caller asks once a step.
        """
        return self.every_n_steps is not None and step > 0 and step % self.every_n_steps == 0
