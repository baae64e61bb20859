"""Memory: what a callback keeps in checkpoints, and under which conditions its numbers compare."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl

from lightning_attngrad.callbacks.switch import Switch
from lightning_attngrad.measure.story import Story
from lightning_attngrad.probe import Evaluation
from lightning_attngrad.probe.conditions import differences

_log = logging.getLogger("lightning_attngrad")

#: Of what a callback keeps in a checkpoint; raised when a reader of the old layout would misread the new.
FORMAT = 2


class Memory(Switch):
    """A callback whose history goes on in a resumed run where it was measured under the conditions of now.

    Attributes:
        story: how the run began, and how many evaluations there were.
    """

    def __init__(self, name: str, on_error: Literal["log", "raise"]) -> None:
        super().__init__(name, on_error)
        self.story = Story()
        self._conditions: dict[str, Any] | None = None  # of the history

    def settings(self) -> dict[str, Any]:
        """What the numbers depend on beside images and model, in plain values: numbers of others do not compare."""
        return {}

    def further_conditions(self, evaluation: Evaluation) -> dict[str, Any]:  # noqa: ARG002  (for subclasses)
        """What else they depend on that only an evaluation tells, in plain values."""
        return {}

    def history(self) -> dict[str, Any]:
        """What is kept in a checkpoint so that a resumed run goes on: plain values and tensors."""
        return {}

    def recall(self, history: Mapping[str, Any]) -> None:
        """Take up what :meth:`history` has kept."""

    def forget(self) -> None:
        """Drop the history: it is of another run, of other images or of other settings."""
        self.scalars = {}
        self.story = Story()
        self._conditions = None

    def images_state(self) -> dict[str, Any]:
        """What is kept of the images."""
        return {}

    def restore_images(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`images_state` has kept."""

    def conditions(self, trainer: pl.Trainer) -> dict[str, Any]:
        """All that numbers depend on beside the weights, as far as it is known before an evaluation; plain values."""
        return {"precision": str(trainer.precision), **self.settings()}

    def known_conditions(self) -> dict[str, Any]:
        """Those under which the history was measured; empty where there is none yet."""
        return dict(self._conditions or {})

    def begin_anew_where_conditions_differ(self, now: Mapping[str, Any]) -> None:
        """Compare the conditions of the history with those of now: a resumed run may have other ones.

        Args:
            now: those that are known; of the others nothing is said.
        """
        if self._conditions is None:
            return
        then = {name: value for name, value in self._conditions.items() if name in now}
        if found := differences(then, now):
            self._say_what_differs("it measures otherwise than before", found)
            self.forget()

    def _say_what_differs(self, what: str, found: list[str]) -> None:
        _log.warning(
            "%s %r: %s, so a new history begins and nothing is compared with the old one. What differs: %s",
            type(self).__name__,
            self.name,
            what,
            "; ".join(found),
        )

    # Not through ``state_dict``: Lightning refuses two callbacks with a state of one name before any hook is called,
    # with a message about its ``state_key``.

    @property
    def state_key(self) -> str:
        """Two monitors in one run keep two states."""
        return self._generate_state_key(name=self.name)

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Put what a resumed run needs into the checkpoint."""
        if "callbacks" in checkpoint:
            checkpoint["callbacks"][self.state_key] = self.saved_state()

    def on_load_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Take it up again."""
        if (state := (checkpoint.get("callbacks") or {}).get(self.state_key)) is not None:
            self.restore_state(state)

    def saved_state(self) -> dict[str, Any]:
        """Plain values and tensors only: checkpoints are read with ``weights_only=True``."""
        return {
            "format": FORMAT,
            "images": self.images_state(),
            "scalars": dict(self.scalars),
            "story": self.story.plain(),
            "settings": self.settings(),
            "conditions": self._conditions,
            "history": self.history(),
        }

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Same images, the last values until the next evaluation, and the history if it was measured alike.

        Raises:
            ValueError: if the state was written by a later version in another layout: the next checkpoint would hold
                less than this one does.
        """
        found_format = state.get("format", 1)
        if found_format > FORMAT:
            raise ValueError(
                f"{type(self).__name__}: the checkpoint holds its state in format {found_format}, which a later "
                f"version wrote, and this version reads format {FORMAT}. Upgrade lightning-attngrad, or resume without "
                "this callback"
            )
        if found_format < FORMAT:
            _log.warning(
                "%s %r: the checkpoint holds its state in format %d of an earlier version, and this version reads "
                "format %d: a new history begins",
                type(self).__name__,
                self.name,
                found_format,
                FORMAT,
            )
            return
        self.restore_images(state["images"])
        self.story = Story.of(state["story"])
        now = self.settings()
        # What only an evaluation tells is compared at the next one; without conditions, none has been made.
        then = state["conditions"] or {**now, **state["settings"]}
        if found := differences({name: then.get(name) for name in now}, now):
            self._say_what_differs("its settings are not those of the run that is resumed", found)
            self.forget()
            return
        self.scalars = dict(state["scalars"])
        self._conditions = state["conditions"]
        self.recall(state["history"])
