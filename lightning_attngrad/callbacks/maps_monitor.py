"""MapsMonitor: what the monitors of maps have in common, the question that they ask of each image."""

from __future__ import annotations

from typing import Any

from lightning_attngrad.callbacks.monitor import Monitor
from lightning_attngrad.explain import Question
from lightning_attngrad.measure.questions import settled
from lightning_attngrad.probe import Evaluation

#: What of a question is not known before an evaluation, where no method is asked for.
_OF_THE_METHOD = ("method", "options")


class MapsMonitor(Monitor):
    """A monitor that asks one question of its images, by one method for the whole of its history.

    Where no method is asked for, which one answers is found out at an evaluation: it stands among the conditions of the
    history, so that a run which is resumed goes on with the same method, also where it is named by then, or says that
    another one answers now.

    Attributes:
        question: as it was asked; see :meth:`asked`.
    """

    question: Question

    def asked(self, evaluation: Evaluation) -> Question:
        """The question with the method that answers; a collective operation.

        Raises:
            UnsupportedModelError: if no map can be made of the model.
        """
        return settled(evaluation, self.question)

    def settings(self) -> dict[str, Any]:
        """The question, without what only an evaluation tells."""
        known = self.question.plain()
        return {name: value for name, value in known.items() if self.question.method or name not in _OF_THE_METHOD}

    def further_conditions(self, evaluation: Evaluation) -> dict[str, Any]:
        """The method that answers, and what the model's output means."""
        answers = self.asked(evaluation).plain()
        task = evaluation.task.plain() if self.question.needs_target else None
        named = {name: answers[name] for name in _OF_THE_METHOD}
        return {**super().further_conditions(evaluation), "task": task, **named}
