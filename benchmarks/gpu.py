"""What maps, rewriting and a whole evaluation cost on a GPU, in training steps of the same model: Markdown tables.

    PYTHONPATH=. python -m benchmarks.gpu                      # 197, 785 and 3,137 tokens, float32 and bfloat16
    PYTHONPATH=. python -m benchmarks.gpu --tokens 785 --precisions bf16-mixed
    PYTHONPATH=. python -m benchmarks.gpu --device cpu --quick # shows only that this program runs

Needs what an image of PyTorch has: torch, lightning, timm, torchmetrics, matplotlib, tensorboard. Time is on the clock,
between two synchronisations; all that is compared runs in turn, after a round that does not count, and a ratio is the
median over rounds of the ratio within a round. Memory is the peak of what is allocated above weights and images.
Kernels are counted by torch's profiler, copies and fills included. A training step is a forward pass, a backward pass
and a step of AdamW, on as many images as the map has.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import lightning
import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

import benchmarks.bare_image  # noqa: F401  (stands in for what an image of PyTorch lacks)
import lightning_attngrad as attngrad
from benchmarks.memory import memory_of
from benchmarks.timing import Seconds, ratio

Call = Callable[[], object]

CLASSES = 10
STEP = "training step"
MEAN = STD = 0.5  # of the images, which are noise


@dataclass(frozen=True)
class Case:
    """A model and a batch.

    Attributes:
        model: timm name of a ViT.
        image_size: height and width in pixels.
        batch: images of a training step, of a map and of a rewriting.
        images: that the monitors evaluate; None leaves each its default.
        steps: gradients of a rewriting.
    """

    model: str
    image_size: int
    batch: int = 8
    images: int | None = None
    steps: int = 16


CASES = {
    "197": Case("vit_base_patch16_224", 224),
    "785": Case("vit_base_patch16_224", 448),
    "3137": Case("vit_small_patch16_224", 896),
}
QUICK = {"17": Case("test_vit", 64, batch=2, images=2, steps=2)}  # timm's own for tests
PRECISIONS = ("32-true", "bf16-mixed")


class Classifier(pl.LightningModule):
    """A ViT that trains as most do."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = timm.create_model(case.model, img_size=case.image_size, num_classes=CLASSES)
        nn.init.normal_(self.net.get_classifier().weight, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:  # noqa: ARG002
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


class Work:
    """What is measured of a case, on a device, in a precision."""

    def __init__(self, case: Case, device: torch.device, precision: str) -> None:
        self.case, self.device, self.precision = case, device, precision
        self.model = Classifier(case).to(device)
        generator = torch.Generator().manual_seed(1)
        pixels = torch.rand(case.batch, 3, case.image_size, case.image_size, generator=generator)
        self.images = ((pixels - MEAN) / STD).to(device)
        self.targets = (torch.arange(case.batch) % CLASSES).to(device)
        self.optimizer = self.model.configure_optimizers()

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return self.model(images)  # type: ignore[no-any-return]

    def step(self) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.forward(self.images), self.targets).backward()
        self.optimizer.step()

    def explain(self, method: str) -> object:
        return attngrad.explain(self.model, self.images, self.targets, method=method, forward=self.forward)

    def rewrite(self) -> object:
        steps = self.case.steps
        return attngrad.rewrite(
            self.model, self.images, "runner_up", steps=steps, mean=MEAN, std=STD, forward=self.forward
        )

    def calls(self) -> dict[str, Call]:
        """By name, the training step first."""
        return {
            STEP: self.step,
            "map, gradient_guided": lambda: self.explain("gradient_guided"),
            "map, guided_relevance": lambda: self.explain("guided_relevance"),
            f"rewriting, {self.case.steps} steps": self.rewrite,
        }


def seconds_of(call: Call, device: torch.device) -> float:
    """Time on the clock until the device has done all of it."""
    _synchronise(device)
    began = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - began


def interleaved(calls: Mapping[str, Call], device: torch.device, rounds: int) -> Seconds:
    """Seconds of each call, once a round, in turn; a first round does not count."""
    seconds: Seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name in calls if number % 2 else reversed(calls):
            spent = seconds_of(calls[name], device)
            if number:
                seconds[name].append(spent)
    return seconds


def peak_of(call: Call, device: torch.device) -> int:
    """Bytes at the peak of a call, above what was allocated before it."""
    if device.type == "cpu":
        return memory_of(call).peak
    _synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    _synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


def launches_of(call: Call, device: torch.device) -> int:
    """Kernels, copies and fills that a call starts on a GPU; on the CPU, operators."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        call()
        _synchronise(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return sum(event.device_type == kind and (on_gpu or event.name.startswith("aten::")) for event in profiled.events())


def evaluation_seconds(case: Case, device: torch.device, precision: str) -> dict[str, float]:
    """Seconds of the second evaluation of each default monitor in a fit, drawing and writing included, by name.

    The first evaluation, before training, is where kernels are chosen and files opened: it is not counted.
    """
    few: dict[str, Any] = {} if case.images is None else {"num_images": case.images}
    probe = attngrad.ProbeImages(mean=MEAN, std=STD, **few)
    often: dict[str, Any] = {"probe": probe, "every_n_epochs": 1, "on_error": "raise"}
    monitors = [
        attngrad.AttentionMapMonitor(**often),
        attngrad.AttentionDriftMonitor(**often),
        attngrad.RewriteRobustnessMonitor(**often, steps=case.steps),
        attngrad.FaithfulnessMonitor(**often),
    ]
    generator = torch.Generator().manual_seed(2)
    count = 4 * case.batch
    pixels = torch.rand(count, 3, case.image_size, case.image_size, generator=generator)
    images = TensorDataset((pixels - MEAN) / STD, torch.arange(count) % CLASSES)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        trainer = pl.Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_epochs=1,
            limit_train_batches=2,
            num_sanity_val_steps=0,
            callbacks=list(monitors),
            logger=TensorBoardLogger(folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(case), DataLoader(images, case.batch), DataLoader(images, case.batch))
    logged = trainer.callback_metrics
    return {name: float(logged[name]) for name in logged if name.startswith("attngrad/") and name.endswith("/seconds")}


def table(case: Case, device: torch.device, precision: str, rounds: int) -> str:
    """Everything about one case, in training steps."""
    work = Work(case, device, precision)
    calls = work.calls()
    seconds = interleaved(calls, device, rounds)
    peaks = {name: peak_of(call, device) for name, call in calls.items()}
    launches = {name: launches_of(call, device) for name, call in calls.items()}
    step = median(seconds[STEP])
    unit = "kernels" if device.type == "cuda" else "operators"
    lines = [
        f"### {tokens_of(case):,} tokens, {case.model.split('_patch')[0]}, batch {case.batch}, {precision}",
        "",
        f"A training step: {1000 * step:.1f} ms, {peaks[STEP] / 2**20:,.0f} MiB, {launches[STEP]:,} {unit}.",
        "",
        f"| | time in training steps | peak memory in training steps | {unit} |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {name} | {ratio(seconds, name, STEP):.2f} | {peaks[name] / max(1, peaks[STEP]):.2f} | {launches[name]:,} |"
        for name in calls
        if name != STEP
    ]
    del work, calls
    parts = evaluation_seconds(case, device, precision)
    lines += [f"| evaluation, {name.split('/')[1]} | {spent / step:.1f} | | |" for name, spent in parts.items()]
    lines.append(f"| **evaluation, all default monitors** | {sum(parts.values()) / step:.1f} | | |")
    return "\n".join(lines)


def tokens_of(case: Case) -> int:
    """Patches of 16 pixels, and the class token."""
    return (case.image_size // 16) ** 2 + 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables.

    Returns:
        0; 2 where there is no GPU and none was measured.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tokens", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=7, help="that count (default: 7)")
    parser.add_argument("--quick", action="store_true", help="one tiny model instead, to see that this runs")
    asked = parser.parse_args(arguments)
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("nothing was measured: torch finds no GPU on this machine", file=sys.stderr)
        return 2
    device = torch.device(asked.device)
    print(_heading(device), flush=True)
    for case in QUICK.values() if asked.quick else [CASES[tokens] for tokens in asked.tokens]:
        for precision in asked.precisions:
            try:
                text = table(case, device, precision, asked.rounds)
            except torch.OutOfMemoryError:
                text = f"### {tokens_of(case):,} tokens, {precision}\n\nDid not fit into the memory of this card."
            print(f"\n{text}", flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return 0


def _heading(device: torch.device) -> str:
    what = "CPU, of which nothing here is a claim"
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        what = f"{torch.cuda.get_device_name(device)}, {memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    versions = f"torch {torch.__version__}, lightning {lightning.__version__}, timm {timm.__version__}"
    matmul = f"float32 products: {torch.get_float32_matmul_precision()}"
    return f"## {what}\n\n{versions}; {matmul}; {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
