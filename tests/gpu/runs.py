"""Whole fits on a device, with and without monitors: the same run bit for bit, and every monitor has its numbers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

import lightning_attngrad as attngrad
from tests.gpu.maps import accelerator_of
from tests.integration.harness import TinyModule, bytes_of, differences, fit, tiny_vit

REWRITING: dict[str, Any] = {"norm": "linf", "steps": 3, "target": "random"}


def monitors(**options: Any) -> list[Any]:
    """All that there are, small; what they cannot do they raise."""
    probe = attngrad.ProbeImages(num_images=4, mean=0.5, std=0.08)
    common = {"probe": probe, "on_error": "raise", **options}
    return [
        attngrad.AttentionMapMonitor(**common),
        attngrad.AttentionDriftMonitor(**common),
        attngrad.RewriteRobustnessMonitor(**REWRITING, long_every=None, every_n_epochs=1, **common),
        attngrad.FaithfulnessMonitor(steps=2, every_n_epochs=1, **common),
        attngrad.CheckpointAudit(**REWRITING, **common),
    ]


def left_by(
    device: torch.device, callbacks: list[Any], folder: Path, *, backbone: nn.Module | None = None, **options: Any
) -> dict[str, Any]:
    """Train for two epochs; all that the run leaves behind, the streams of the device included."""
    module = TinyModule(tiny_vit() if backbone is None else backbone)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(3)
    settings: dict[str, Any] = {
        "accelerator": accelerator_of(device),
        "deterministic": True,
        "enable_checkpointing": True,
        "logger": TensorBoardLogger(folder),
        **options,
    }
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    with _nothing_global_stays_changed():
        left = fit(module, [*callbacks, saving], **settings)
    if device.type == "cuda":
        left["random streams of the device"] = [bytes_of(state) for state in torch.cuda.get_rng_state_all()]
    return left


def seeded_vit(**options: Any) -> nn.Module:
    """The same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_vit(**options)


def untouched(precision: str, device: torch.device, *, compile_with: str | None = None, **options: Any) -> str:
    """All monitors together leave no trace in a deterministic run, and all of them have measured something."""

    def backbone() -> nn.Module:
        model: Any = seeded_vit(attn_drop_rate=0.1, proj_drop_rate=0.1)
        return model if compile_with is None else torch.compile(model, backend=compile_with)

    with tempfile.TemporaryDirectory() as folder:
        settings = {"precision": precision, **options}
        without = left_by(device, [], Path(folder) / "one", backbone=backbone(), **settings)
        again = left_by(device, [], Path(folder) / "two", backbone=backbone(), **settings)
        assert not (same := differences(without, again)), f"the run itself is not reproducible: {sorted(same)} differ"
        watching = monitors()
        left = left_by(device, watching, Path(folder) / "three", backbone=backbone(), **settings)
        files = list((Path(folder) / "three").rglob("*.audit.json"))
    changed = differences(without, left)
    assert not changed, f"the monitors changed {', '.join(sorted(changed))}"
    for monitor in watching:
        assert monitor.scalars, f"{type(monitor).__name__} has no numbers"
        assert {type(value) for value in monitor.scalars.values()} == {float}, f"{type(monitor).__name__}: no floats"
    assert files, "no audit was written beside a checkpoint"
    return f"{len(watching)} monitors, {sum(len(monitor.scalars) for monitor in watching)} numbers, nothing changed"


def compiled_run(device: torch.device) -> str:
    """A fit of a compiled backbone."""
    torch._dynamo.reset()
    try:
        return untouched("32-true", device, compile_with="eager" if device.type == "cpu" else "inductor")
    finally:
        torch._dynamo.reset()


def distributed(device: torch.device) -> str:
    """One process that talks to its backend all the same: NCCL refuses tensors of the CPU, which gloo takes."""
    stopping = EarlyStopping("attngrad/maps/entropy", patience=5)
    seen: list[str] = []

    class Backend(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(torch.distributed.get_backend())

    watching = monitors()
    with tempfile.TemporaryDirectory() as folder:
        try:
            settings: dict[str, Any] = {"strategy": "ddp", "devices": 1}
            without = left_by(device, [Backend()], Path(folder) / "one", backbone=seeded_vit(), **settings)
            callbacks = [Backend(), *watching, stopping]
            left = left_by(device, callbacks, Path(folder) / "two", backbone=seeded_vit(), **settings)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
    expected = "gloo" if device.type == "cpu" else "nccl"
    assert set(seen) == {expected}, f"ran on {seen}, expected {expected}"
    assert not (changed := differences(without, left)), f"the monitors changed {', '.join(sorted(changed))}"
    assert all(monitor.scalars for monitor in watching)
    assert stopping.best_score.isfinite(), "EarlyStopping has not seen attngrad/maps/entropy"
    return f"{expected}, nothing changed"


@contextlib.contextmanager
def _nothing_global_stays_changed() -> Iterator[None]:
    """Lightning leaves determinism switched on."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
