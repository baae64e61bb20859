"""What an audit is asked for, and the error that bad input ends in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lightning_attngrad.audit.thresholds import Threshold


class AuditError(ValueError):
    """Bad input to the audit: the message is one line for the person who typed the command."""


_CODE = {"group": "model and data"}
_SETTINGS = {"group": "settings, where they are to differ from those of the run"}
_TRAINER = {"group": "trainer"}
_OUTCOME = {"group": "outcome"}


@dataclass(frozen=True)
class AuditOptions:
    """Everything that `lightning-attngrad audit` can be asked for, and how its help explains it.

    Attributes:
        checkpoints: files that Lightning saved, in the order of the table.
        model: a LightningModule, or a function that makes one: package.module.Name or path/to/file.py:Name.
        data: likewise a LightningDataModule, or a function that makes one or a validation loader (default: the
            module's own val_dataloader).
        config: config.yaml of a LightningCLI run, for its model and its data.
        model_args: an argument of the model that was not saved, or is to be another than was saved or configured; may
            be repeated.
        data_args: likewise of the data.
        allow_unsafe: read checkpoints that can run code on this machine; only for files whose maker you trust.
        new_images: choose images and classes anew, as checkpoints of different runs or data need it.
        name: which CheckpointAudit of the run, where it had several.
        num_images: how many validation images.
        norm: how a change is measured.
        steps: gradients an image.
        target: which class images are rewritten to: a number, random, runner_up, least_likely or all.
        seed: of the choice of images and random targets.
        model_path: the part of the LightningModule that classifies, as in net.
        task: what the model's output means: multiclass, binary, multilabel or regression (default: as in the run).
        image_key: where the images are in a batch, as in pixel_values.
        target_key: where the classes are in a batch.
        batch_adapter: import path of a function from a batch to (images, targets or None).
        mean: with which the images were normalised, a number a channel.
        std: likewise.
        pixel_range: black and white in the units of mean and std.
        accelerator: cpu, gpu, mps, … as in lightning.Trainer.
        devices: how many, or which.
        strategy: as in lightning.Trainer: ddp, fsdp, and others.
        precision: 32-true, bf16-mixed, and others (default: that of the run).
        num_nodes: how many machines.
        fail_if: exit with 1 if a number or metric of any checkpoint meets this, as in 'rewrite/median_linf<2/255'; a
            value that is missing or not a number meets it; may be repeated.
        output: where tables and figures go.

    Raises:
        AuditError: for what cannot be meant; the message names the argument of the command.
    """

    checkpoints: Sequence[Path] = field(metadata={"metavar": "CKPT"})
    model: str | None = field(default=None, metadata={**_CODE, "metavar": "PATH"})
    data: str | None = field(default=None, metadata={**_CODE, "metavar": "PATH"})
    config: Path | None = field(default=None, metadata=_CODE)
    model_args: Sequence[str] = field(default=(), metadata={**_CODE, "flag": "--model-arg", "metavar": "NAME=VALUE"})
    data_args: Sequence[str] = field(default=(), metadata={**_CODE, "flag": "--data-arg", "metavar": "NAME=VALUE"})
    allow_unsafe: bool = field(default=False, metadata=_CODE)
    new_images: bool = field(default=False, metadata=_SETTINGS)
    name: str | None = field(default=None, metadata=_SETTINGS)
    num_images: int | None = field(default=None, metadata=_SETTINGS)
    norm: Literal["linf", "l2", "l0", "l0_patches"] | None = field(default=None, metadata=_SETTINGS)
    steps: int | None = field(default=None, metadata=_SETTINGS)
    target: int | str | None = field(default=None, metadata={**_SETTINGS, "metavar": "CLASS"})
    seed: int | None = field(default=None, metadata=_SETTINGS)
    model_path: str | None = field(default=None, metadata={**_SETTINGS, "metavar": "PATH"})
    task: Literal["multiclass", "binary", "multilabel", "regression"] | None = field(default=None, metadata=_SETTINGS)
    image_key: int | str | None = field(default=None, metadata={**_SETTINGS, "metavar": "KEY"})
    target_key: int | str | None = field(default=None, metadata={**_SETTINGS, "metavar": "KEY"})
    batch_adapter: str | None = field(default=None, metadata={**_SETTINGS, "metavar": "PATH"})
    mean: Sequence[float] | None = field(default=None, metadata={**_SETTINGS, "metavar": "M,M,M"})
    std: Sequence[float] | None = field(default=None, metadata={**_SETTINGS, "metavar": "S,S,S"})
    pixel_range: Sequence[float] | None = field(default=None, metadata={**_SETTINGS, "metavar": "BLACK,WHITE"})
    accelerator: str = field(default="auto", metadata=_TRAINER)
    devices: str = field(default="auto", metadata={**_TRAINER, "metavar": "N"})
    strategy: str = field(default="auto", metadata=_TRAINER)
    precision: str | None = field(default=None, metadata=_TRAINER)
    num_nodes: int = field(default=1, metadata=_TRAINER)
    fail_if: Sequence[str] = field(default=(), metadata={**_OUTCOME, "metavar": "COND"})
    output: Path = field(default=Path("attngrad_audit"), metadata={**_OUTCOME, "metavar": "DIR"})

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise AuditError("checkpoints: got none; expected one or more files that Lightning saved")
        for path in self.checkpoints:
            # A link to another of them (last.ckpt) is not the same name.
            if [other.absolute() for other in self.checkpoints].count(path.absolute()) > 1:
                raise AuditError(f"checkpoints: {path} is given twice")
        if self.model is None and self.config is None:
            raise AuditError(
                "--model: which LightningModule is it? Give package.module.Class or path/to/file.py:Class, "
                "or --config with a LightningCLI config"
            )
        for flag, arguments in (("--model-arg", self.model_args), ("--data-arg", self.data_args)):
            for argument in arguments:
                if not argument.partition("=")[1] or not argument.partition("=")[0].isidentifier():
                    raise AuditError(f"{flag}: got {argument!r}; expected NAME=VALUE")
        _ = self.thresholds  # a wrong one is told before anything is computed
        if (self.mean is None) != (self.std is None):
            raise AuditError("--mean, --std: got one of them; expected both")

    @property
    def thresholds(self) -> list[Threshold]:
        """The conditions, read."""
        try:
            return [Threshold.parse(text) for text in self.fail_if]
        except ValueError as error:
            raise AuditError(f"--fail-if: {error}") from error
