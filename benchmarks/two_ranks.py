"""What a second process is worth: ``python -m benchmarks.two_ranks``.

The evaluation of each monitor in a ``trainer.validate``, by one process and by two, one thread each, started in turn;
wall seconds of the whole evaluation on the first process, figures left out: they are drawn there whatever the number.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
import warnings
from typing import Any

from benchmarks.processes import together

#: Evaluations in each start of the processes, behind one that warms up.
EVALUATIONS = 3
IMAGES = 16
ASKED = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    options = parser.parse_args()
    import lightning
    import timm
    import torch

    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, lightning "
        f"{lightning.__version__}, timm {timm.__version__}; {options.model}, {IMAGES} images, gloo, one thread each"
    )
    found: dict[str, list[float]] = {}
    for number in range(options.rounds):
        order = (1, 2) if number % 2 else (2, 1)
        seconds = {world: _run(world, options.model) for world in order}
        for name, one in seconds[1].items():
            found.setdefault(name, []).append(seconds[2][name] / one)
    print(f"\n| evaluation | two processes / one (asked ≤ {ASKED}) | rounds |\n|---|---|---|")
    for name, ratios in found.items():
        every = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| {name} | **{statistics.median(ratios):.2f}** | {every} |")


def _run(world: int, model: str) -> dict[str, float]:
    """Start so many processes; medians of what the first one printed."""
    printed = together(world, f"from benchmarks.two_ranks import worker; worker({world}, {model!r})")
    return {name: float(value) for name, value in json.loads(printed[0].splitlines()[-1]).items()}


def worker(world: int, model: str) -> None:
    """One process: evaluates, and prints the median seconds of each monitor."""
    import lightning.pytorch as pl
    import timm
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    import lightning_attngrad as attngrad

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = timm.create_model(model, num_classes=10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images)

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    took: dict[str, list[float]] = {}

    def timed(monitor: type[Any], **options: Any) -> Any:
        class Timed(monitor):
            def evaluate(self, evaluation: Any) -> Any:
                began = time.perf_counter()
                findings = super().evaluate(evaluation)
                took.setdefault(monitor.__name__, []).append(time.perf_counter() - began)
                return type(findings)(findings.scalars, dict)

        return Timed(probe=probe, on_error="raise", **options)

    probe = attngrad.ProbeImages(num_images=IMAGES, mean=0.5, std=0.5)
    monitors = [
        timed(attngrad.AttentionMapMonitor),
        timed(attngrad.AttentionDriftMonitor),
        timed(attngrad.RewriteRobustnessMonitor, steps=4),
    ]
    images = torch.rand(IMAGES, 3, 224, 224)
    loader = DataLoader(TensorDataset((images - 0.5) / 0.5, torch.arange(IMAGES) % 10), batch_size=IMAGES)
    module = Module()
    for monitor in monitors:  # a Trainer each: in one they would share the maps
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=world,
            strategy=pl.strategies.DDPStrategy(process_group_backend="gloo") if world > 1 else "auto",
            logger=False,
            callbacks=[monitor],
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=1,
        )
        for _ in range(1 + EVALUATIONS):
            trainer.validate(module, loader, verbose=False)
    print(json.dumps({name: statistics.median(seconds[1:]) for name, seconds in took.items()}))


if __name__ == "__main__":
    main()
