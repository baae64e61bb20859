"""MapsMonitor: what the monitors of maps have in common, the question that they ask of each image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.explain import Question, Similarity
from lightning_attngrad.measure.questions import settled
from lightning_attngrad.probe import Evaluation, ProbeImages

#: What of a question is not known before an evaluation, where no method is asked for.
_OF_THE_METHOD = ("method", "options")


def objective_and_images(
    objective: Any, probe: ProbeImages | None, num_images: int | None
) -> tuple[Any, ProbeImages | None, int | None]:
    """``objective=Similarity(…)`` is short for images whose task it is, with the class itself as the objective.

    Raises:
        ValueError: if the images have another task.
    """
    if not isinstance(objective, Similarity):
        return objective, probe, num_images
    if probe is None:
        probe = ProbeImages() if num_images is None else ProbeImages(num_images=num_images)
        num_images = None
    if probe.task is not None and probe.task is not objective:
        raise ValueError(
            f"objective: got Similarity(…) beside ProbeImages(task={probe.task!r:.60}); it says itself what the output "
            "means: leave task= out, or give it there and leave objective= out"
        )
    return "logit", replace(probe, task=objective), num_images


class MapsMonitor(Monitor):
    """A monitor that asks one question of its images, by one method for the whole of its history.

    Where no method is asked for, which one answers is found out at an evaluation: it stands among the conditions of the
    history, so that a run which is resumed goes on with the same method, also where it is named by then, or says that
    another one answers now.

    An objective that compares with the start, ``"start"``, is given the embeddings of the first evaluation of that
    history, which are kept with it.

    Attributes:
        question: as it was asked; see :meth:`asked`.
    """

    question: Question
    _starting: tuple[str | None, Tensor] | None = None  # hash of the images, and their embeddings, (N, D)

    def asked(self, evaluation: Evaluation) -> Question:
        """The question with the method that answers, and with the starting embeddings; a collective operation.

        Raises:
            UnsupportedModelError: if no map can be made of the model.
            ValueError: if embeddings are needed, and the output holds none.
        """
        if self.question.lacks != "embeddings":
            return settled(evaluation, self.question)
        starting = self._starting
        if starting is None or starting[0] != evaluation.images_hash:  # the history of other images is not over yet
            starting = evaluation.images_hash, evaluation.embeddings()
            if evaluation.in_history:
                self._starting = starting
        return settled(evaluation, self.question.filled(starting[1]))

    def history(self) -> dict[str, Any]:
        """The starting embeddings, where the objective has any."""
        return {} if self._starting is None else {"starting": list(self._starting)}

    def recall(self, history: Mapping[str, Any]) -> None:
        """Go on comparing with the same start."""
        starting = history.get("starting")
        self._starting = None if starting is None else (starting[0], starting[1])

    def forget(self) -> None:
        """Drop the start of another run, or of other images."""
        super().forget()
        self._starting = None

    def settings(self) -> dict[str, Any]:
        """The question, without what only an evaluation tells."""
        known = self.question.plain()
        return {name: value for name, value in known.items() if self.question.method or name not in _OF_THE_METHOD}

    def further_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """The method that answers, and what the model's output means."""
        answers = self.asked(evaluation).plain()
        task = evaluation.task if self.question.needs_target else evaluation.task.of_rows
        named = {name: answers[name] for name in _OF_THE_METHOD}
        return {
            **super().further_conditions(evaluation),
            "task": task.plain() if self.question.asks_task else None,
            **named,
        }
