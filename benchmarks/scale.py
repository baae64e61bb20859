"""What an evaluation costs and moves with many processes: ``python -m benchmarks.scale``.

Each monitor evaluates in a ``trainer.validate`` of one, two and four real processes on gloo, with few and with many
classes. Counted are the images that go forward through the model on the busiest process, the collective operations, and
the bytes that a process receives in them: neither depends on how large the model is, or how fast the machine. Where
there are more processes than parts of the work, what travels does not grow with them: docs/cost.md reads the rest off.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pickle
import warnings
from typing import Any

from benchmarks.processes import together

IMAGES = 16
WORLDS = (1, 2, 4)
CLASSES = (10, 1000, 21_841)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS)
    parser.add_argument("--classes", type=int, nargs="+", default=CLASSES)
    options = parser.parse_args()
    import lightning
    import torch

    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, lightning "
        f"{lightning.__version__}; {IMAGES} images, maps of 64 patches, rewriting in 4 steps; figures left out"
    )
    print(
        "\n| monitor | classes | processes | images forward, of the busiest | collective operations | received, kB |\n"
        "|---|---|---|---|---|---|"
    )
    for classes in options.classes:
        for world in options.worlds:
            printed = together(world, f"from benchmarks.scale import worker; worker({world}, {classes})")
            everyone = [json.loads(lines.splitlines()[-1]) for lines in printed]
            for name in everyone[0]:
                images, operations, received = (max(one[name][index] for one in everyone) for index in range(3))
                print(
                    f"| {name} | {classes:,} | {world} | {images} | {operations} | {received / 1000:,.1f} |", flush=True
                )


def worker(world: int, classes: int) -> None:
    """One process: evaluates, and prints what it counted of each monitor's second evaluation."""
    import lightning.pytorch as pl
    import timm
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    import lightning_attngrad as attngrad

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    counts = {"images": 0, "operations": 0, "bytes": 0}
    _count_collectives(counts)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = timm.create_model("test_vit", img_size=128, num_classes=classes)
            self.network.register_forward_pre_hook(_counted)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images)

        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def _counted(_: Any, inputs: Any) -> None:
        counts["images"] += len(inputs[0])

    found: dict[str, list[int]] = {}

    def counting(monitor: type[Any], **options: Any) -> Any:
        class Counting(monitor):
            def evaluate(self, evaluation: Any) -> Any:
                before = dict(counts)
                findings = super().evaluate(evaluation)
                found[monitor.__name__] = [counts[name] - before[name] for name in counts]
                return type(findings)(findings.scalars, dict)

        return Counting(probe=probe, on_error="raise", **options)

    probe = attngrad.ProbeImages(num_images=IMAGES, mean=0.5, std=0.5, task="multiclass")
    monitors = [
        counting(attngrad.AttentionMapMonitor),
        counting(attngrad.AttentionDriftMonitor),
        counting(attngrad.RewriteRobustnessMonitor, steps=4),
        counting(attngrad.FaithfulnessMonitor),
    ]
    images = torch.rand(IMAGES, 3, 128, 128)
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
        for _ in range(2):
            trainer.validate(module, loader, verbose=False)
    print(json.dumps(found))


def _count_collectives(counts: dict[str, int]) -> None:
    """Count those that carry objects; what a process receives is padded to the longest, as torch sends it."""
    import torch.distributed as dist

    gather, broadcast = dist.all_gather_object, dist.broadcast_object_list

    def all_gather_object(everyone: list[Any], mine: Any, *args: Any, **options: Any) -> None:
        gather(everyone, mine, *args, **options)
        counts["operations"] += 1
        counts["bytes"] += len(everyone) * max(len(pickle.dumps(one)) for one in everyone)

    def broadcast_object_list(objects: list[Any], *args: Any, **options: Any) -> None:
        broadcast(objects, *args, **options)
        counts["operations"] += 1
        counts["bytes"] += len(pickle.dumps(objects))

    dist.all_gather_object, dist.broadcast_object_list = all_gather_object, broadcast_object_list


if __name__ == "__main__":
    main()
