"""With which settings checkpoints are audited, and whether their numbers may stand side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_attngrad.audit.checkpoints import SavedCheckpoint
from lightning_attngrad.audit.options import AuditError, AuditOptions

#: What the hash of a record stands for, beside the images and classes themselves, and the precision.
_HASHED = (
    *("num_images", "seed", "dataloader_idx", "norm", "steps", "target", "radii", "model"),
    *("mean", "std", "pixel_range", "task"),
)
#: Which images they are: of others, those of the run's state are not.
_OF_CHOICE = ("num_images", "seed", "dataloader_idx")
_ARGUMENTS = (*_HASHED, "image_key", "target_key", "channels")


@dataclass(frozen=True)
class AuditSettings:
    """How checkpoints are audited.

    Attributes:
        arguments: of CheckpointAudit.
        state: of the run's audit, with its frozen images and classes; None chooses them at the first checkpoint.
        precision: of the run; None if that is not known.
        expected: hash that the numbers are to have, and the checkpoint that has it; None if any will do.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    precision: str | None = None
    expected: tuple[str, str] | None = None


def choose_settings(options: AuditOptions, checkpoints: Sequence[SavedCheckpoint]) -> AuditSettings:
    """Take the settings of the run's audit, from the first checkpoint that has them, unless others are asked for.

    Args:
        options: what was asked for.
        checkpoints: what they tell.

    Raises:
        AuditError: if the checkpoints were audited on different images, or with different settings, and these are
            what they are to be compared on.
    """
    recorded = [(saved, record) for saved in checkpoints if (record := saved.record(options.name)) is not None]
    states = [state for saved in checkpoints if (state := saved.state(options.name)) is not None]
    run = dict(recorded[0][1].settings) if recorded else _settings_of_state(states[0]) if states else {}
    asked = {
        "num_images": options.num_images,
        "seed": options.seed,
        "norm": options.norm,
        "steps": options.steps,
        "target": options.target,
        "task": options.task,
        "image_key": options.image_key,
        "target_key": options.target_key,
        "model": options.model_path,
        "mean": None if options.mean is None else list(options.mean),
        "std": None if options.std is None else list(options.std),
        "pixel_range": None if options.pixel_range is None else list(options.pixel_range),
    }
    arguments = {name: run[name] for name in _ARGUMENTS if run.get(name) is not None}
    arguments |= {name: value for name, value in asked.items() if value is not None}
    if not isinstance(arguments.get("task"), str | None):
        raise AuditError(
            "the run's audit was of likeness to vectors (Similarity), which the record of a checkpoint does not hold: "
            "it cannot be made again from the command line"
        )
    if arguments.get("norm") != run.get("norm"):
        arguments.pop("radii", None)  # they are in the units of the other norm
    if options.batch_adapter is not None:
        arguments["batch_adapter"] = options.batch_adapter
    new_images = options.new_images or any(run.get(name) != arguments.get(name) for name in _OF_CHOICE)
    same = (
        not new_images
        and options.precision in (None, run.get("precision"))
        and all(run.get(name) == arguments.get(name) for name in _HASHED)
    )
    hashes = [(record.hash, saved.label) for saved, record in recorded if record.hash is not None]
    if same and len({found for found, _ in hashes}) > 1:
        other = next((found, label) for found, label in hashes if found != hashes[0][0])
        raise AuditError(
            f"{hashes[0][1]} and {other[1]} were audited on other images or classes, or with other settings (hash "
            f"{hashes[0][0]:.8}… and {other[0]:.8}…): their numbers do not compare. --new-images audits all of them on "
            "images that are chosen now"
        )
    return AuditSettings(
        arguments=arguments,
        state=states[0] if states and not new_images else None,
        precision=run.get("precision"),
        expected=(str(hashes[0][0]), hashes[0][1]) if same and hashes else None,
    )


def refuse_other_hash(found: str | None, label: str, settings: AuditSettings, first: tuple[str, str] | None) -> None:
    """Refuse numbers of other images, classes or settings.

    Args:
        found: hash of the numbers.
        label: of the checkpoint that they are of.
        settings: of the audit.
        first: hash and label of the first checkpoint of this audit.

    Raises:
        AuditError: naming what differs.
    """
    if settings.expected is not None and found != settings.expected[0]:
        raise AuditError(
            f"{label}: the validation images or their classes are not those that {settings.expected[1]} was audited "
            f"on when it was saved (hash {found!s:.8}…, then {settings.expected[0]:.8}…): data, transforms or a random "
            "split have changed, or maps are by another method, and the numbers do not compare. Give the data of the "
            "run, or --new-images to compare the checkpoints with each other only"
        )
    if first is not None and found != first[0]:
        raise AuditError(
            f"{label} was audited on other images or classes than {first[1]} (hash {found!s:.8}… and {first[0]:.8}…): "
            "their numbers do not compare"
        )


def _settings_of_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run never came to make a record."""
    images = state["images"].get("set", {})
    return {
        **state["settings"],
        **{name: images[name] for name in ("num_images", "seed", "dataloader_idx") if name in images},
    }
