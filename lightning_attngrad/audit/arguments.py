"""The arguments of `lightning-attngrad audit`; torch is not needed to explain them."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "recompute and compare the figures of saved checkpoints"

DESCRIPTION = """\
Compare checkpoints by where they look and how little it takes to rewrite a class.

All are audited on the same frozen validation images: those of the run, where it had a CheckpointAudit,
with its settings; else images chosen at the first checkpoint. A table is printed; audit.json, audit.csv
and the figures of each checkpoint go to the output folder."""

EXAMPLES = """\
examples:
  lightning-attngrad audit run/checkpoints/*.ckpt --model train.py:LitViT --data train.py:Flowers
  lightning-attngrad audit run/checkpoints/*.ckpt --config run/config.yaml --data-arg folder=/data/flowers
  lightning-attngrad audit best.ckpt --model my.module.LitViT --data my.data.Flowers \\
      --fail-if "rewrite/median_linf<2/255" --fail-if "val_accuracy<0.9"

exit codes: 0 all is well, 1 a --fail-if condition is met, 2 bad input, or checkpoints that do not compare"""


def add_audit_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all arguments; their names are those of AuditOptions."""
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=Path,
        metavar="CKPT",
        help="files that Lightning saved, in the order of the table",
    )
    _add_code(parser.add_argument_group("model and data"))
    _add_settings(parser.add_argument_group("settings, where they are to differ from those of the run"))
    _add_trainer(parser.add_argument_group("trainer"))
    outcome = parser.add_argument_group("outcome")
    outcome.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="COND",
        help="exit with 1 if a figure or metric of any checkpoint meets this, as in 'rewrite/median_linf<2/255'; "
        "a value that is missing or not a number meets it; may be repeated",
    )
    outcome.add_argument(
        "--output",
        type=Path,
        default=Path("attngrad_audit"),
        metavar="DIR",
        help="where tables and figures go (default: attngrad_audit)",
    )


def _add_code(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="PATH",
        help="a LightningModule, or a function that makes one: package.module.Name or path/to/file.py:Name",
    )
    group.add_argument(
        "--data",
        metavar="PATH",
        help="likewise a LightningDataModule, or a function that makes one or a validation loader "
        "(default: the module's own val_dataloader)",
    )
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="config.yaml of a LightningCLI run, for its model and its data"
    )
    group.add_argument(
        "--model-arg",
        dest="model_args",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model that was not saved, or is to be another; may be repeated",
    )
    group.add_argument(
        "--data-arg",
        dest="data_args",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="likewise of the data",
    )
    group.add_argument(
        "--allow-unsafe",
        action="store_true",
        help="read checkpoints that can run code on this machine; only for files whose maker you trust",
    )


def _add_settings(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--new-images",
        action="store_true",
        help="choose images and classes anew, as checkpoints of different runs or data need it",
    )
    group.add_argument("--name", metavar="NAME", help="which CheckpointAudit of the run, where it had several")
    group.add_argument("--num-images", type=int, metavar="N", help="how many validation images")
    group.add_argument("--norm", choices=("linf", "l2", "l0_patches"), help="how a change is measured")
    group.add_argument("--steps", type=int, metavar="N", help="gradients an image")
    group.add_argument(
        "--target",
        type=_number_or_name,
        metavar="CLASS",
        help="which class images are rewritten to: a number, random, runner_up, least_likely or all",
    )
    group.add_argument("--seed", type=int, metavar="N", help="of the choice of images and random targets")
    group.add_argument(
        "--model-path", metavar="PATH", help="the part of the LightningModule that classifies, as in net"
    )
    group.add_argument(
        "--image-key", type=_number_or_name, metavar="KEY", help="where the images are in a batch, as in pixel_values"
    )
    group.add_argument("--target-key", type=_number_or_name, metavar="KEY", help="where the classes are in a batch")
    group.add_argument(
        "--batch-adapter", metavar="PATH", help="import path of a function from a batch to (images, targets or None)"
    )
    group.add_argument("--mean", type=_numbers, metavar="M,M,M", help="with which the images were normalised")
    group.add_argument("--std", type=_numbers, metavar="S,S,S", help="likewise")


def _add_trainer(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--accelerator", default="auto", metavar="NAME", help="cpu, gpu, mps, … (default: auto)")
    group.add_argument("--devices", default="auto", metavar="N", help="how many, or which (default: auto)")
    group.add_argument("--strategy", default="auto", metavar="NAME", help="ddp, fsdp, … (default: auto)")
    group.add_argument("--precision", metavar="NAME", help="32-true, bf16-mixed, … (default: that of the run)")
    group.add_argument("--num-nodes", type=int, default=1, metavar="N", help="how many machines (default: 1)")


def _number_or_name(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
