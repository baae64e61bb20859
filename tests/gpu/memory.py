"""Memory that runs out for real: a probe that is larger than what is free."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import lightning_attngrad as attngrad
from tests.gpu.runs import left_by
from tests.integration.harness import CLASSES, COSTS, differences

#: Images of the probe, and so many of them as a monitor takes at once at least.
IMAGES, AT_ONCE = 8, 4


class Scarce(VisionTransformer):
    """A model whose memory can be made scarce.

    On a GPU something else takes what is free but for a few bytes, and the allocator itself says that there is no
    more. The CPU of a smoke test has no such limit: there the forward pass says so.

    Attributes:
        allowed: images that may pass at once; None is no limit.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.allowed: int | None = None

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        if x.device.type == "cpu" and self.allowed is not None and len(x) > self.allowed:
            raise torch.OutOfMemoryError(f"DefaultCPUAllocator: can't allocate memory for {len(x)} images")
        return super().forward(x, *arguments, **options)


def scarce(device: torch.device) -> Scarce:
    """65 tokens in 2 blocks; on a GPU 1,025 in 6, where one image takes a hundred MB."""
    size = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
    if device.type == "cuda":
        size = {"patch_size": 1, "embed_dim": 256, "depth": 6, "num_heads": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Scarce(img_size=32, num_classes=CLASSES, **size)


class Pressure(pl.Callback):
    """Takes memory away before the monitors evaluate, and gives it back behind them.

    Args:
        model: the model.
        allowed: images that still fit.
        room: bytes that stay free on a GPU.
    """

    def __init__(self, model: Scarce, allowed: int, room: int) -> None:
        self.model, self.allowed, self.room = model, allowed, room
        self.ballast: list[Tensor] = []
        self.taken = 0

    def press(self, device: torch.device) -> None:
        self.model.allowed = self.allowed
        if device.type != "cuda":
            return
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        self.ballast.append(torch.empty(max(0, free - self.room), dtype=torch.uint8, device=device))
        self.taken = self.ballast[0].numel()

    def release(self) -> None:
        self.model.allowed = None
        self.ballast.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.press(pl_module.device)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking and batch_idx == 0:
            self.press(pl_module.device)


class Release(pl.Callback):
    """Stands behind the monitors."""

    def __init__(self, pressure: Pressure) -> None:
        self.pressure = pressure

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.pressure.release()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.pressure.release()


class Said(logging.Handler):
    """What the package said."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def bytes_for(images: int, device: torch.device) -> int:
    """The least that the map of so many images takes of a GPU, in blocks that are as small as can be."""
    model = scarce(device).eval().to(device)
    given = torch.zeros(images, 3, 32, 32, device=device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    target = torch.zeros(images, dtype=torch.long, device=device)
    attngrad.explain(model, given, target, memory_budget=2**20)
    return torch.cuda.max_memory_reserved(device) - before


def room_for(one: bool, device: torch.device) -> int:
    """Bytes to be left free: enough for one image and too little for four, or too little for any."""
    if device.type != "cuda":
        return 0
    least, four = bytes_for(1, device), bytes_for(AT_ONCE, device)
    room = (least + four) // 2 if one else 2**24
    low, high = (least, four) if one else (0, least)
    assert 1.2 * low < room < high / 1.2, f"an image takes {least >> 20} MiB, four take {four >> 20}: too close to tell"
    return room


def fewer_at_once(device: torch.device) -> str:
    """Where all images together do not fit, they are evaluated in parts, and nothing else changes."""
    with tempfile.TemporaryDirectory() as folder:
        watching, reference, said = _under_pressure(device, Path(folder), allowed=1, on_error="raise")
    assert said, "memory was scarce, and nothing was said"
    kept = [name for name in reference.scalars if name not in COSTS]
    worst = max(abs(watching.scalars[name] - reference.scalars[name]) for name in kept)
    assert worst <= 1e-4, f"numbers differ by {worst:.2g} where memory is scarce"
    return f"{len(said)} messages, {len(kept)} numbers within {worst:.1e}"


def too_little_for_one(device: torch.device) -> str:
    """Where not even one image fits, the monitor says so once and is switched off; training goes on, untouched."""
    with tempfile.TemporaryDirectory() as folder:
        watching, _, said = _under_pressure(device, Path(folder), allowed=0, on_error="log")
    ended = [line for line in said if type(watching).__name__ in line]
    assert len(ended) == 1, f"the end of the monitor was told {len(ended)} times: {said}"
    assert "entropy" not in watching.scalars, "a number of an evaluation that cannot have been"
    return f"{ended[0]:.80}…"


def _under_pressure(
    device: torch.device, folder: Path, *, allowed: int, on_error: Literal["log", "raise"]
) -> tuple[attngrad.AttentionMapMonitor, attngrad.AttentionMapMonitor, list[str]]:
    """A run with scarce memory, compared bit by bit with one that has plenty and with one without a monitor.

    Returns:
        The monitor of the run with scarce memory, that of the run with plenty, and what was said about memory.
    """
    room = room_for(bool(allowed), device)
    reference, watching = (attngrad.AttentionMapMonitor(num_images=IMAGES, on_error=how) for how in ("raise", on_error))
    without = left_by(device, [], folder / "one", backbone=scarce(device))
    plain = left_by(device, [reference], folder / "two", backbone=scarce(device))
    model = scarce(device)
    pressure = Pressure(model, allowed, room)
    with _listening() as said:
        callbacks = [pressure, watching, Release(pressure)]
        left = left_by(device, callbacks, folder / "three", backbone=model, quiet=False)
    for other in (plain, left):
        changed = differences(without, other)
        assert not changed, f"the run is another: {', '.join(sorted(changed))}"
    return watching, reference, [line for line in said if "memory" in line or "ALLOC" in line]


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """What is logged by the package, and all warnings."""
    said = Said()
    logger = logging.getLogger("lightning_attngrad")
    logger.addHandler(said)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said.lines
        said.lines += [str(warning.message) for warning in caught]
    finally:
        logger.removeHandler(said)
