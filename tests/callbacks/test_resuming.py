"""Resuming: the same history goes on, or it is said what differs and a new one begins; all monitors alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

import lightning_attngrad as attngrad
from lightning_attngrad.callbacks.memory import FORMAT
from tests.callbacks.small_runs import fit
from tests.probe_options import with_probe

GIVEN: dict[str, Any] = {"num_images": 3, "mean": 0.0, "std": 1.0, "on_error": "raise", "every_n_epochs": 1}
KINDS: dict[str, Callable[..., attngrad.Monitor]] = {
    "maps": attngrad.AttentionMapMonitor,
    "drift": attngrad.AttentionDriftMonitor,
    "rewrite": lambda **options: attngrad.RewriteRobustnessMonitor(**{"steps": 2, "long_every": None, **options}),
    "faithfulness": lambda **options: attngrad.FaithfulnessMonitor(**{"steps": 2, **options}),
}
ASK = ("maps", "drift", "faithfulness")


def monitor(kind: str, **options: Any) -> attngrad.Monitor:
    return KINDS[kind](**with_probe({**GIVEN, **options}))


def resumed(tmp_path: Path, before: attngrad.Monitor, after: attngrad.Monitor, **options: Any) -> list[str]:
    """Two epochs, then a third with another monitor; what was said in the third."""
    save = ModelCheckpoint(tmp_path, filename="saved")
    fit(before, save, max_epochs=2, enable_checkpointing=True)
    return fit(after, ckpt_path=tmp_path / "saved.ckpt", max_epochs=3, **options).messages


def mean_of_output(output: Tensor) -> Tensor:
    return output.mean(dim=1)


def another(output: Tensor) -> Tensor:
    return output.amax(dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_settings_go_on_without_a_word(tmp_path: Path, kind: str) -> None:
    before, after = monitor(kind), monitor(kind)
    assert resumed(tmp_path, before, after) == []
    assert (before.story.evaluations, after.story.evaluations) == (3, 4)
    assert after.story.since == "start"


@pytest.mark.parametrize(
    ("kind", "then", "now", "said"),
    [
        *((kind, {}, {"method": "rollout"}, "method: 'guided_relevance' then, 'rollout' now") for kind in ASK),
        *((kind, {}, {"objective": "margin"}, "objective") for kind in ASK),
        *((kind, {}, {"objective": attngrad.Contrast(1)}, "objective") for kind in ASK),
        *(
            (kind, {}, {"method_options": {"combine": "product"}}, "combine: 'gated_sum' then, 'product' now")
            for kind in ASK
        ),
        *(
            (
                kind,
                {"method": "gradient_guided"},
                {"method": "gradient_guided", "method_options": {"correction": "signed"}},
                "correction: 'positive' then, 'signed' now",
            )
            for kind in ASK
        ),
        *((kind, {"objective": mean_of_output}, {"objective": another}, "objective") for kind in ("maps", "drift")),
        *((kind, {}, {"model": "net"}, "part of the model: None then, 'net' now") for kind in KINDS),
        *((kind, {}, {"num_images": 4}, "images: ") for kind in KINDS),
        *((kind, {}, {"seed": 5}, "images: ") for kind in KINDS),
        ("drift", {}, {"reference": "previous"}, "reference: 'start' then, 'previous' now"),
        ("rewrite", {}, {"norm": "l2"}, "norm: 'linf' then, 'l2' now"),
        ("rewrite", {}, {"steps": 3}, "steps: 2 then, 3 now"),
        ("rewrite", {}, {"std": 0.5}, "std: [1.0] then, [0.5] now"),
        ("faithfulness", {}, {"replacement": "blur"}, "replacement: 'mean' then, 'blur' now"),
    ],
)
def test_other_settings_begin_a_new_history_and_say_what_differs(
    tmp_path: Path, kind: str, then: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    after = monitor(kind, **now)
    messages = resumed(tmp_path, monitor(kind, **then), after)
    (told,) = [message for message in messages if "a new history begins" in message]
    assert said in told
    assert after.story.since in ("step 6", "epoch 3")
    assert after.story.evaluations <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_another_precision_begins_a_new_history(tmp_path: Path, kind: str) -> None:
    after = monitor(kind)
    messages = resumed(tmp_path, monitor(kind), after, precision="bf16-mixed")
    (told,) = [message for message in messages if "a new history begins" in message]
    assert "precision: '32-true' then, 'bf16-mixed' now" in told


@pytest.mark.parametrize("kind", ["maps", "drift"])
def test_a_function_as_objective_goes_on_where_it_is_the_same(tmp_path: Path, kind: str) -> None:
    after = monitor(kind, objective=mean_of_output)
    assert resumed(tmp_path, monitor(kind, objective=mean_of_output), after) == []
    assert after.story.evaluations == 4


@pytest.mark.parametrize("kind", ["maps", "drift"])
def test_a_function_of_the_same_name_with_other_code_is_another(tmp_path: Path, kind: str) -> None:
    def make(scale: float) -> Callable[[Tensor], Tensor]:
        if scale > 1:

            def objective(output: Tensor) -> Tensor:
                return output.square().sum(dim=1)
        else:

            def objective(output: Tensor) -> Tensor:
                return output.sum(dim=1)

        return objective

    messages = resumed(tmp_path, monitor(kind, objective=make(1)), monitor(kind, objective=make(2)))
    assert len([message for message in messages if "a new history begins" in message]) == 1


# The layout of the state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_a_later_version_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    save = ModelCheckpoint(tmp_path, filename="saved")
    before = monitor(kind)
    fit(before, save, max_epochs=1, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert checkpoint["callbacks"][before.state_key]["format"] == FORMAT
    checkpoint["callbacks"][before.state_key]["format"] = FORMAT + 1
    torch.save(checkpoint, tmp_path / "later.ckpt")
    with pytest.raises(ValueError, match=rf"in format {FORMAT + 1}, which a later version wrote.*[Uu]pgrade"):
        fit(monitor(kind), ckpt_path=tmp_path / "later.ckpt", max_epochs=2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_an_earlier_version_begins_a_new_history(tmp_path: Path, kind: str) -> None:
    save = ModelCheckpoint(tmp_path, filename="saved")
    before = monitor(kind)
    fit(before, save, max_epochs=1, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    checkpoint["callbacks"][before.state_key] = {"probe_set": {}, "scalars": {"entropy": 0.5}}
    torch.save(checkpoint, tmp_path / "earlier.ckpt")
    after = monitor(kind)
    run = fit(after, ckpt_path=tmp_path / "earlier.ckpt", max_epochs=2)
    assert any("of an earlier version" in message for message in run.messages)
    assert after.story.evaluations == 2
