"""Small real runs for the tests of the callbacks: a tiny ViT, a few squares to tell apart, and what was said."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import lightning_attngrad as attngrad
from lightning_attngrad.probe import Evaluation, Findings
from tests.probe_options import with_probe

CLASSES = ("top left", "top right", "bottom")
LAYERS = ("net.blocks.0.attn", "net.blocks.1.attn")
#: What the monitor took: another number in every run.
COSTS = {"seconds", "overhead"}
SCALARS = {
    *COSTS,
    "entropy",
    "border_mass",
    "corner_mass",
    "top_decile_mass",
    "completeness_error",
    *(f"{kind}/{layer}" for kind in ("head_entropy", "head_distance") for layer in LAYERS),
}
#: Where a run without a directory of its own leaves its files, so that none comes to lie in the checkout.
_ELSEWHERE = tempfile.TemporaryDirectory()
FIGURES = {"overlay", "layers", "classes", "film"}


def tiny_vit(**options: Any) -> VisionTransformer:
    """Two blocks of width 32 on a 4 × 4 grid."""
    defaults = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(**{**defaults, **options})


def small_convnet() -> nn.Module:
    """No attention in it."""
    return nn.Sequential(nn.Conv2d(3, 3, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Squares(Dataset[tuple[Tensor, int]]):
    """A bright square whose place is the class; counts how often items are read."""

    def __init__(self, length: int = 12, *, size: tuple[int, int, int] = (3, 32, 32), seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        channels, height, width = size
        self.images = 0.3 * torch.rand(length, channels, height, width, generator=generator)
        self.places = [index % 3 for index in range(length)]
        for image, place in zip(self.images, self.places, strict=True):
            top, left = ((0, 0), (0, width // 2), (height // 2, width // 4))[place]
            image[:, top : top + height // 2, left : left + width // 2] += 0.6
        self.reads = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return self.images[index], self.places[index]


class Stream(IterableDataset[tuple[Tensor, int]]):
    """The same as a stream."""

    def __init__(self, length: int = 12) -> None:
        self.squares = Squares(length)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return (self.squares[index] for index in range(len(self.squares)))


class Classifier(pl.LightningModule):
    """A user's module: writes down the loss of every training step."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = tiny_vit() if net is None else net
        self.losses: list[float] = []

    def forward(self, images: Tensor) -> Any:
        return self.net(images)

    def loss(self, batch: Any) -> Tensor:
        images, targets = batch
        return nn.functional.cross_entropy(self(images), targets)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.losses.append(float(loss))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class WatchedMonitor(attngrad.AttentionMapMonitor):
    """The monitor as it is, which logs all of its numbers, and keeps what it was given and what it found.

    With the weights of that moment where asked to. It draws nothing unless asked to: drawing costs more than everything
    else.
    """

    def __init__(self, *, draws: bool = False, keep_weights: bool = False, **options: Any) -> None:
        super().__init__(**with_probe({"num_images": 3, "scalars": "all", **options}))
        self.draws, self.keep_weights = draws, keep_weights
        self.evaluations: list[tuple[Evaluation, Findings]] = []
        self.weights: list[dict[str, Tensor]] = []

    @property
    def labels(self) -> list[str]:
        return [evaluation.label for evaluation, _ in self.evaluations]

    @property
    def frames(self) -> list[str]:
        """Labels of the film strip."""
        return [frame.label for frame in self.film]

    def evaluate(self, evaluation: Evaluation) -> Findings:
        findings = super().evaluate(evaluation)
        self.evaluations.append((evaluation, findings))
        if self.keep_weights:
            self.weights.append({name: value.clone() for name, value in evaluation.model.state_dict().items()})
        return findings if self.draws else Findings(findings.scalars, dict)


@dataclass
class Run:
    """A run that is over, and every message of this package in it."""

    trainer: pl.Trainer
    module: Any
    messages: list[str] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return list(self.module.losses)

    @property
    def complaints(self) -> list[str]:
        """Messages without the notes on how images were chosen."""
        return [message for message in self.messages if "Monitor" in message]


def loader(dataset: Any, batch_size: int | None = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=batch_size, **options)


def make_trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
        "default_root_dir": _ELSEWHERE.name,
    }
    return pl.Trainer(**{**quiet, "callbacks": list(callbacks), **options})


def fit(
    *callbacks: pl.Callback,
    module: Any = Classifier,
    train: Any = None,
    val: Any = "squares",
    datamodule: Any = None,
    ckpt_path: Any = None,
    trainer: pl.Trainer | None = None,
    **options: Any,
) -> Run:
    """Three batches an epoch, from fixed seeds.

    ``module`` is a LightningModule, or what makes one after the seed; ``val=None`` passes no validation loader.
    """
    torch.manual_seed(7)
    module = module if isinstance(module, nn.Module) else module()
    trainer = make_trainer(*callbacks, **options) if trainer is None else trainer
    loaders: dict[str, Any] = {"datamodule": datamodule}
    if datamodule is None:
        torch_order = torch.Generator().manual_seed(5)
        loaders["train_dataloaders"] = (
            loader(Squares(), shuffle=True, generator=torch_order) if train is None else train
        )
        if val is not None:
            loaders["val_dataloaders"] = loader(Squares(9, seed=1)) if isinstance(val, str) else val
    torch.manual_seed(3)
    with listening() as messages:
        trainer.fit(module, ckpt_path=ckpt_path, **{key: value for key, value in loaders.items() if value is not None})
    return Run(trainer, module, messages)


@contextmanager
def listening() -> Iterator[list[str]]:
    """Every warning and log line of this package; Lightning's own advice is left out."""
    messages: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, ear = logging.getLogger("lightning_attngrad"), Ear(logging.INFO)
    logger.addHandler(ear)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield messages
    finally:
        logger.removeHandler(ear)
    ours = ("attngrad", "Monitor", "Audit")
    messages += [str(w.message) for w in caught if any(word in str(w.message) for word in ours)]


# TensorBoard, read back -----------------------------------------------------------------------------------------


def tensorboard(directory: Path, **options: Any) -> TensorBoardLogger:
    return TensorBoardLogger(directory, name="", version="", **options)


def monitored_name(tag: str) -> str:
    """The name by which a number is monitored, or a figure is a file elsewhere, from what TensorBoard calls it."""
    prefix, ours, rest = tag.partition("attngrad_")
    group, _, name = rest.partition("/")
    if not ours:
        return tag
    if group == "time":
        name, _, group = name.partition("/")
    return f"{prefix}attngrad/{group.removeprefix('secondary_')}/{name}"


class ByMonitoredName:
    """Event files, read by the names that everything but TensorBoard uses; what it uses is ``raw.Tags()``."""

    def __init__(self, directory: str) -> None:
        self.raw = EventAccumulator(directory, size_guidance={"images": 0, "scalars": 0})
        self.raw.Reload()

    def Tags(self) -> dict[str, Any]:
        return {
            kind: [monitored_name(tag) for tag in tags] if isinstance(tags, list) else tags
            for kind, tags in self.raw.Tags().items()
        }

    def _tag(self, kind: str, name: str) -> str:
        """The only one: no number is there twice, among the main ones and among the others."""
        (tag,) = [tag for tag in self.raw.Tags()[kind] if monitored_name(tag) == name]
        return str(tag)

    def Scalars(self, name: str) -> list[Any]:
        return list(self.raw.Scalars(self._tag("scalars", name)))

    def Images(self, name: str) -> list[Any]:
        return list(self.raw.Images(self._tag("images", name)))

    def Tensors(self, tag: str) -> list[Any]:
        return list(self.raw.Tensors(tag))


def events(directory: str | Path) -> ByMonitoredName:
    return ByMonitoredName(str(directory))


def scalar_points(accumulator: ByMonitoredName, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def image_steps(accumulator: ByMonitoredName, tag: str) -> list[int]:
    return [event.step for event in accumulator.Images(tag)]


def captured_figures(monkeypatch: Any) -> list[tuple[int, dict[str, Figure]]]:
    """Let figures be built but neither rasterised nor written: (step, figures) of each evaluation."""
    drawn: list[tuple[int, dict[str, Figure]]] = []
    monkeypatch.setattr(
        "lightning_attngrad.callbacks.monitor.log_figures",
        lambda trainer, figures, step: drawn.append((step, dict(figures))),
    )
    return drawn


def words(figure: Figure) -> list[str]:
    """Every text of a figure."""
    return [text.get_text() for text in figure.texts]


def names_of(figures: Sequence[str]) -> set[str]:
    return {name.rsplit("/", 1)[-1] for name in figures}
