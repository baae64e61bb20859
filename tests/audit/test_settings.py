"""Settings: of the run, unless others are asked for; and what must not stand side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_attngrad.audit.checkpoints import SavedCheckpoint
from lightning_attngrad.audit.options import AuditError, AuditOptions
from lightning_attngrad.audit.recomputation import constructor_arguments
from lightning_attngrad.audit.settings import AuditSettings, choose_settings, refuse_other_hash
from lightning_attngrad.callbacks import CheckpointAudit
from tests.audit.test_checkpoints import a_record, a_state

OF_THE_RUN = {
    "num_images": 4,
    "seed": 3,
    "dataloader_idx": 0,
    "norm": "l2",
    "steps": 5,
    "target": "all",
    "radii": [0.5, 1.0],
    "top_share": None,
    "image_key": "image",
    "target_key": None,
    "model": "net",
    "mean": [0.5],
    "std": [0.2],
    "precision": "bf16-mixed",
}


def saved(label: str = "a", **changed: Any) -> SavedCheckpoint:
    record = a_record(settings=OF_THE_RUN, **changed)
    return SavedCheckpoint(Path(f"{label}.ckpt"), label, 1, 8, audits={"audit": a_state(record)})


def bare(label: str = "bare") -> SavedCheckpoint:
    return SavedCheckpoint(Path(f"{label}.ckpt"), label, 1, 8)


def asked(**options: Any) -> AuditOptions:
    return AuditOptions([Path("a.ckpt")], model="m.Model", **options)


def test_they_are_those_of_the_run() -> None:
    settings = choose_settings(asked(), [bare(), saved()])
    assert settings.arguments == {
        "num_images": 4,
        "seed": 3,
        "dataloader_idx": 0,
        "norm": "l2",
        "steps": 5,
        "target": "all",
        "radii": [0.5, 1.0],
        "image_key": "image",
        "model": "net",
        "mean": [0.5],
        "std": [0.2],
    }
    assert settings.precision == "bf16-mixed"
    assert settings.expected == ("all", "a")
    assert settings.state is not None
    CheckpointAudit(**constructor_arguments(settings.arguments))  # takes them all


def test_without_an_audit_in_the_run_they_are_the_defaults() -> None:
    assert choose_settings(asked(), [bare(), bare("other")]) == AuditSettings()


@pytest.mark.parametrize(
    ("option", "argument", "value"),
    [
        ("num_images", "num_images", 9),
        ("seed", "seed", 0),
        ("steps", "steps", 40),
        ("target", "target", 0),
        ("image_key", "image_key", 0),
        ("model_path", "model", "other"),
        ("mean", "mean", [0.1]),
        ("batch_adapter", "batch_adapter", "a.b"),
    ],
)
def test_options_win(option: str, argument: str, value: Any) -> None:
    both = {option: value, "std": [0.2]} if option == "mean" else {option: value}
    settings = choose_settings(asked(**both), [saved()])
    assert settings.arguments[argument] == value
    hashed = argument in ("num_images", "seed", "steps", "target", "model", "mean")
    assert (settings.expected is None) == hashed  # other numbers are what was asked for


def test_what_is_asked_for_may_be_what_the_run_had() -> None:
    options = asked(
        num_images=4, seed=3, target="all", mean=(0.5,), std=(0.2,), model_path="net", precision="bf16-mixed"
    )
    assert choose_settings(options, [saved()]).expected == ("all", "a")
    assert choose_settings(asked(precision="32-true"), [saved()]).expected is None


def test_radii_belong_to_their_norm() -> None:
    assert choose_settings(asked(norm="l2"), [saved()]).arguments["radii"] == [0.5, 1.0]
    other = choose_settings(asked(norm="linf"), [saved()])
    assert "radii" not in other.arguments
    assert other.expected is None


def test_new_images_keep_the_settings() -> None:
    settings = choose_settings(asked(new_images=True), [saved(), saved("b", hash="another")])
    assert settings.arguments["num_images"] == 4
    assert settings.state is None
    assert settings.expected is None


def test_checkpoints_of_other_images_are_refused_and_named() -> None:
    message = r"^a and c were audited on other images .*\(hash all… and another …\).*--new-images"
    with pytest.raises(AuditError, match=message):
        choose_settings(asked(), [saved(), saved("b"), saved("c", hash="another one")])
    # An evaluation that found nothing has no hash, and forbids nothing.
    assert choose_settings(asked(), [saved(), saved("b", hash=None)]).expected == ("all", "a")
    # With other settings all of them are audited anew.
    assert choose_settings(asked(steps=3), [saved(), saved("c", hash="another")]).expected is None


def test_a_state_without_a_record() -> None:
    state = a_state(None, norm="l2") | {"images": {"set": {"num_images": 5, "seed": 2, "dataloader_idx": 1}}}
    settings = choose_settings(asked(), [SavedCheckpoint(Path("a.ckpt"), "a", 1, 8, audits={"audit": state})])
    assert settings.arguments == {"num_images": 5, "seed": 2, "dataloader_idx": 1, "norm": "l2"}
    assert settings.expected is None


class TestHashes:
    def test_the_same(self) -> None:
        refuse_other_hash("x", "b", AuditSettings(expected=("x", "a")), ("x", "a"))
        refuse_other_hash("x", "b", AuditSettings(), None)

    def test_changed_data(self) -> None:
        with pytest.raises(AuditError, match=r"^b: the validation images .* that a was audited on .* random split"):
            refuse_other_hash("y", "b", AuditSettings(expected=("x", "a")), None)

    def test_images_that_did_not_stay(self) -> None:
        with pytest.raises(AuditError, match=r"^b was audited on other images or classes than a"):
            refuse_other_hash("y", "b", AuditSettings(), ("x", "a"))
