"""The run that looked perfect: one fine-tuning on marked digits, one on the same digits without the mark.

Both see faint digits. In the first, a mark of four by four pixels in the upper left corner tells the class, in training
and in validation; the monitor sees the map move there while validation accuracy looks perfect.

    python examples/planted_shortcut.py
    python examples/planted_shortcut.py --guide --seeds 3

With --guide there is a third run, on the marked digits, whose attention is guided to the strokes while it trains; a
table says what each of the three is worth without the mark. No patches are then dropped while training, in any of them.
"""

from __future__ import annotations

import argparse
import logging
import platform
import warnings
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lightning as L
import timm
import torch
from matplotlib.figure import Figure
from matplotlib.image import imsave

import lightning_attngrad as attngrad
from lightning_attngrad.demo.data import DigitsDataModule
from lightning_attngrad.demo.models import demo_vision_transformer, load_backbone
from lightning_attngrad.demo.module import FineTuner
from lightning_attngrad.demo.shortcut import FAINT
from lightning_attngrad.measure.maps import explain_images
from lightning_attngrad.metrics.functional import times_uniform_share
from lightning_attngrad.probe import Evaluation, Findings
from lightning_attngrad.reporting.figures import Caption, FigureStyle, figure_to_array, map_grid

KINDS = ("clean", "planted", "guided")
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


class Watched(attngrad.AttentionMapMonitor):
    """Keeps its last images and maps, for the figure that puts two runs side by side."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.seen = evaluation, explain_images(evaluation, self.question)
        return Findings(super().evaluate(evaluation).scalars, dict)


class Lines(L.Callback):
    """One line an evaluation."""

    def __init__(self, monitor: Watched, title: str) -> None:
        self.monitor, self.title = monitor, title

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        print(f"\n{self.title:12} accuracy   mass in the corners   on the strokes   pointing")
        self.line("start", "")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self.line(f"step {trainer.global_step}", f"{float(trainer.callback_metrics['val_accuracy']):.1%}")

    def line(self, label: str, accuracy: str) -> None:
        seen = self.monitor.scalars
        print(
            f"{label:12} {accuracy:>8}   {seen['corner_mass']:19.1%}   {seen['mass_in_mask']:14.1%}   "
            f"{seen['pointing']:8.0%}",
            flush=True,
        )


def train(kind: str, seed: int, options: argparse.Namespace) -> tuple[Watched, dict[str, float]]:
    """One run, "clean", "planted" or "guided"; prints what became of it, and returns what it is worth."""
    L.seed_everything(seed, verbose=False)
    model = demo_vision_transformer(patch_drop=0.0 if options.guide else 0.5)
    load_backbone(model)
    planted = kind != "clean"
    data = DigitsDataModule(plant_shortcut=planted, contrast=FAINT)
    module = FineTuner(model, 10)
    monitor = Watched(probe=attngrad.ProbeImages(mask=data.strokes, num_images=options.images))
    callbacks: list[L.Callback] = [monitor, Lines(monitor, kind)]
    if kind == "guided":
        callbacks.append(attngrad.AttentionGuidance(data.strokes, options.weight, model="model"))
    trainer = L.Trainer(
        max_steps=options.steps,
        val_check_interval=min(options.every, options.steps),
        check_val_every_n_epoch=None,
        callbacks=callbacks,
        **QUIET,
    )
    trainer.fit(module, datamodule=data)
    worth = {"accuracy": float(trainer.callback_metrics["val_accuracy"])}
    for data.marks, what in (("none", "without the mark"), ("wrong", "with another's mark")):
        worth[what] = worth["accuracy"]
        if planted:
            worth[what] = L.Trainer(**QUIET).validate(module, datamodule=data, verbose=False)[0]["val_accuracy"]
            print(f"accuracy {what}: {worth[what]:.1%}", flush=True)
    worth |= {name: monitor.scalars[name] for name in ("corner_mass", "mass_in_mask")}
    return monitor, worth


def print_table(worth: dict[str, list[dict[str, float]]]) -> None:
    """Mean and range over the seeds, a row a kind of run."""
    names = list(next(iter(worth.values()))[0])
    print(f"\n{'':8}" + "".join(f"{name.replace('_', ' '):>24}" for name in names))
    for kind, seeds in worth.items():
        cells = []
        for name in names:
            values = [one[name] for one in seeds]
            cells.append(f"{sum(values) / len(values):.1%} ({min(values):.1%} – {max(values):.1%})")
        print(f"{kind:8}" + "".join(f"{cell:>24}" for cell in cells))


def side_by_side(clean: Watched, marked: Watched, kind: str, count: int) -> Figure:
    """The same images in both runs: left column clean, right column planted, or planted and guided."""
    pixels, maps, captions, masks = [], [], [], []
    for name, monitor in (("clean", clean), (kind, marked)):
        probe, found = monitor.seen
        assert probe.masks is not None
        assert probe.targets is not None
        probabilities = found.logits.softmax(dim=1)
        for index in range(count):
            predicted = int(probabilities[index].argmax())
            pixels.append(probe.pixels[index])
            maps.append(times_uniform_share(found.heatmap[index]))
            masks.append(probe.masks[index])
            captions.append(
                Caption(
                    f"{probe.class_name(predicted)} · {name} run",
                    float(probabilities[index, predicted]),
                    f"{probe.class_name(int(probe.targets[index]))} · {name} run",
                    float(probabilities[index, int(probe.targets[index])]),
                )
            )
    return map_grid(
        torch.stack(pixels),
        torch.stack(maps),
        captions,
        title=f"Without the mark (left), and with it{', guided' if kind == 'guided' else ''} (right)",
        masks=torch.stack(masks),
        style=FigureStyle(width=11.4),  # two columns
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250, metavar="N", help="of training, in each run")
    parser.add_argument("--every", type=int, default=25, metavar="N", help="steps between two evaluations")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="that are evaluated")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first one")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="how many")
    parser.add_argument("--guide", action="store_true", help="a third run, guided to the strokes, and a table")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="of runs (default: all of them)")
    parser.add_argument("--weight", type=float, default=10.0, metavar="W", help="of the guidance in the loss")
    parser.add_argument("--output", type=Path, default=Path("planted_shortcut.png"), metavar="FILE", help="the figure")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)  # the matrices are so small that threads only wait for each other

    kinds = options.kinds or (KINDS if options.guide else KINDS[:2])
    monitors: dict[str, Watched] = {}  # of the last seed
    worth: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for seed in range(options.seed, options.seed + options.seeds):
        for kind in kinds:
            monitors[kind], found = train(kind, seed, options)
            worth[kind].append(found)
    if options.guide or options.seeds > 1:
        print_table(worth)

    if "clean" in kinds and len(kinds) > 1:
        figure = side_by_side(monitors["clean"], monitors[kinds[-1]], kinds[-1], min(4, options.images))
        imsave(options.output, figure_to_array(figure))
    versions = f"torch {torch.__version__}, lightning {L.__version__}, timm {timm.__version__}"
    print(f"\n{datetime.now(timezone.utc):%Y-%m-%d}, Python {platform.python_version()}, {versions}, one thread")
    if options.output.exists():
        print(f"figure: {options.output}")


if __name__ == "__main__":
    main()
