"""What an audit is asked for, and the error that bad input ends in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_attngrad.audit.thresholds import Threshold


class AuditError(ValueError):
    """Bad input to the audit: the message is one line for the person who typed the command."""


@dataclass(frozen=True)
class AuditOptions:
    """Everything that `lightning-attngrad audit` can be asked for.

    Attributes:
        checkpoints: Files that Lightning saved.
        model: A LightningModule, or a function that makes one: `package.module.Name` or `path/to/file.py:Name`.
        data: Likewise a LightningDataModule, or a function that makes one or a validation loader. None leaves the
            loader to the LightningModule.
        config: Of a LightningCLI run; its `model` and `data` sections are used.
        model_args: `NAME=VALUE` for the module; they win over what was saved and over the config.
        data_args: Likewise for the data.
        allow_unsafe: Read checkpoints that hold more than weights and plain values, which can run code.
        new_images: Choose images and classes anew, and not those that the run was audited on.
        fail_if: Conditions under which a checkpoint fails.
        name: Of the run's CheckpointAudit, where it had several.
        num_images: As in CheckpointAudit, and so are the next nine; None is as in the run.
        norm: The norm.
        steps: Gradients an image.
        target: A class, or a rule.
        seed: Of the choice of images and random targets.
        model_path: The argument `model` of CheckpointAudit.
        image_key: Where the images are in a batch.
        target_key: Where the classes are in a batch.
        batch_adapter: Import path of a function.
        mean: Per channel.
        std: Per channel.
        accelerator: As in `lightning.Trainer`, and so are the next four.
        devices: How many, or which.
        strategy: By name.
        precision: None is that of the run.
        num_nodes: How many machines.
        output: Where tables and figures go.
    """

    checkpoints: Sequence[Path]
    model: str | None = None
    data: str | None = None
    config: Path | None = None
    model_args: Sequence[str] = ()
    data_args: Sequence[str] = ()
    allow_unsafe: bool = False
    new_images: bool = False
    fail_if: Sequence[str] = ()
    name: str | None = None
    num_images: int | None = None
    norm: str | None = None
    steps: int | None = None
    target: str | int | None = None
    seed: int | None = None
    model_path: str | None = None
    image_key: str | int | None = None
    target_key: str | int | None = None
    batch_adapter: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    accelerator: str = "auto"
    devices: str = "auto"
    strategy: str = "auto"
    precision: str | None = None
    num_nodes: int = 1
    output: Path = Path("attngrad_audit")

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
