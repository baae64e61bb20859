"""The command `lightning-attngrad`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from lightning_attngrad.audit.arguments import DESCRIPTION, EXAMPLES, SUMMARY, add_audit_arguments

# What a command does, with torch, Lightning and timm, is imported only where it runs.

_DEMO_TEXT = """\
Fine-tune a small Vision Transformer and watch where it looks.

Without options: 4,000 handwritten digits that a Python package carries, two to three minutes on a
laptop, no download. With --data, a folder of your own images instead. The attention maps, before,
during and after, go to TensorBoard and, as PNG files, to the output folder."""

_DEMO_EXAMPLES = """\
examples:
  lightning-attngrad demo
  lightning-attngrad demo --plant-shortcut
  lightning-attngrad demo --data flowers --model vit_small_patch16_224 --pretrained --epochs 5
  lightning-attngrad demo --data flowers --model deit3_small_patch16_224 --weights deit3.safetensors"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = _Parser(
        prog="lightning-attngrad",
        description="See where a Vision Transformer looks while Lightning fine-tunes it.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="command", parser_class=_Parser)
    demo = commands.add_parser(
        "demo",
        help="fine-tune a small Vision Transformer and watch where it looks",
        description=_DEMO_TEXT,
        epilog=_DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    images = demo.add_argument_group("images")
    images.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="a folder with one sub-folder of images a class, or with such trees in train/ and val/; "
        "without the latter a fifth of the images is held out (default: handwritten digits)",
    )
    images.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="height and width (default: what the model was made for)",
    )
    model = demo.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="NAME",
        help="any Vision Transformer that timm knows by name (default: a small one that ships with this package, "
        "or vit_tiny_patch16_224 with --data)",
    )
    model.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="start from a local .safetensors, .pth or .ckpt state dict",
    )
    model.add_argument("--pretrained", action="store_true", help="start from timm's weights, which are downloaded")
    model.add_argument(
        "--from-scratch",
        action="store_true",
        help="start from random weights, to see what the backbone is worth",
    )
    training = demo.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=8, metavar="N", help="passes over the images (default: 8)")
    training.add_argument("--batch-size", type=int, default=32, metavar="N", help="images a step (default: 32)")
    training.add_argument(
        "--learning-rate",
        type=float,
        metavar="RATE",
        help="highest learning rate (default: set for the model)",
    )
    training.add_argument(
        "--plant-shortcut",
        action="store_true",
        help="mark every image with its class in a corner, and see how a run looks that learns nothing else",
    )
    training.add_argument("--max-steps", type=int, metavar="N", help="take at most N steps, for a quick try")
    training.add_argument(
        "--max-overhead",
        type=float,
        metavar="SHARE",
        help="of the training time that the monitors may take together, such as 0.05 (default: every look is taken)",
    )
    training.add_argument("--seed", type=int, default=0, metavar="N", help="of all that is random (default: 0)")
    training.add_argument(
        "--accelerator",
        default="auto",
        metavar="NAME",
        help="cpu, gpu, mps, … as in lightning.Trainer (default: auto)",
    )
    training.add_argument(
        "--devices",
        default="auto",
        metavar="N",
        help="how many, or which, as in lightning.Trainer (default: auto)",
    )
    demo.add_argument(
        "--output",
        type=Path,
        default=Path("attngrad_demo"),
        metavar="DIR",
        help="where logs and figures go (default: attngrad_demo)",
    )
    audit = commands.add_parser(
        "audit",
        help=SUMMARY,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_audit_arguments(audit)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Without the program's name; None takes those of the process.

    Returns:
        The exit code: 0; 1 where an audit breaks a threshold; 2 for bad input, which is told in one line on stderr.
    """
    parser = build_parser()
    given = vars(parser.parse_args(arguments))
    if given.pop("version"):
        from lightning_attngrad import __version__  # noqa: PLC0415

        print(f"lightning-attngrad {__version__}")
        return 0
    command = given.pop("command")
    if command is None:
        parser.print_help()
        return 0
    return _audit(given) if command == "audit" else _demo(given)


def _demo(given: dict[str, Any]) -> int:
    from lightning_attngrad.demo import DemoError, DemoOptions, run_demo  # noqa: PLC0415

    try:
        run_demo(DemoOptions(**given))
    except DemoError as error:
        print(f"lightning-attngrad demo: error: {error}", file=sys.stderr)
        return 2
    return 0


def _audit(given: dict[str, Any]) -> int:
    from lightning_attngrad.audit.options import AuditError, AuditOptions  # noqa: PLC0415
    from lightning_attngrad.audit.run import audit_exit_code  # noqa: PLC0415

    try:
        return audit_exit_code(AuditOptions(**given))
    except AuditError as error:
        print(f"lightning-attngrad audit: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
