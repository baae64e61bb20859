"""What callbacks ask of each image, and by which method: the same one for a whole run, and on all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import ref

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_attngrad.explain import Explanation, NonFiniteError, Question, UnsupportedModelError
from lightning_attngrad.explain.default import ask_by_default, default_method
from lightning_attngrad.probe import Evaluation


def check_question(
    method: str | None,
    objective: Any,
    method_options: Mapping[str, Any] | None,
    *,
    has_masks: bool,
) -> Question:
    """What a monitor asks of each image.

    Raises:
        ValueError: for what :func:`lightning_attngrad.explain` would refuse, and for a region without a mask.
    """
    question = Question(method, objective, dict(method_options or {}))
    if question.lacks == "masks" and not has_masks:
        kind = type(question.objective).__name__
        mask, without = ("mask", "") if kind == "Region" else ("where=mask", "where='mask'")
        raise ValueError(
            f"objective: {kind}({without}) takes its masks from the images; give probe=ProbeImages(mask=…), or "
            f"{kind}({mask})"
        )
    return question


def with_masks(evaluation: Evaluation, question: Question) -> Question:
    """The question with the masks of the images, where its objective takes those."""
    if question.lacks != "masks":
        return question
    assert evaluation.masks is not None
    return question.filled(evaluation.masks)


def settled(evaluation: Evaluation, question: Question) -> Question:
    """The question with a method: where none is asked for, the default, or what stands in for it with this model.

    Found out once a run and model, by explaining one image, and said in one line where it is not the default; a
    collective operation. All processes explain the same image, in as many passes, and take what the first has found.

    Args:
        evaluation: images and model.
        question: what is asked.

    Raises:
        UnsupportedModelError: if no map can be made of the model.
    """
    if question.method is not None:
        return question
    key = "method", question, ref(evaluation.model)
    found: tuple[str, str] | None = evaluation.in_this_run.get(key)
    if found is None:
        found = _method_for(evaluation, question)
        if found is None:  # nothing is known of the model: the maps will tell of which images it gives no numbers
            return question.by(default_method(evaluation.model))
        evaluation.in_this_run.keep(key, found)
    method, said = found
    if not method:
        raise UnsupportedModelError(said)
    if said:
        say_once(evaluation, said)
    return question.by(method)


def question_of_maps(evaluation: Evaluation) -> tuple[Question | None, str]:
    """What is asked where maps stand beside other numbers; None and why, in one line, where the model has none.

    A collective operation.
    """
    try:
        return settled(evaluation, Question()), ""
    except UnsupportedModelError as error:
        return None, f"no map can be made of the model, so numbers and figures of maps are left out. {error}"


def say_once(evaluation: Evaluation, text: str) -> None:
    """Tell something that concerns a whole run, on the first process."""
    evaluation.in_this_run.once(("said", text), lambda: rank_zero_warn(f"attngrad: {text}"))


def _method_for(evaluation: Evaluation, question: Question) -> tuple[str, str] | None:
    """The method that answers, and what is to be said of it; no method, and why, where there is no map.

    None where the model gives no finite numbers now.
    """
    classes = evaluation.classes() if question.needs_target else None
    asked = with_masks(evaluation, question)

    def work(part: Tensor) -> tuple[str, str] | None:
        image = evaluation.images[part.to(evaluation.images.device)]
        target = None if classes is None else classes[part].to(image.device)

        def ask(method: str) -> Explanation:
            by_method = asked.of_images(part).by(method)
            forward = evaluation.forward_of(part)
            return by_method.explain(evaluation.model, image, target, forward=forward, task=evaluation.task)

        try:
            explanation, said = ask_by_default(ask, evaluation.model)
        except UnsupportedModelError as error:
            return "", str(error)
        except NonFiniteError:
            return None
        return explanation.method, said

    (found,) = evaluation.each(1, work)
    return found
