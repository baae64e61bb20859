"""The command `lightning-attngrad`: its arguments are made of the dataclasses that say what can be asked for."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import docstring_parser
import jsonargparse

from lightning_attngrad import __version__
from lightning_attngrad.audit.options import AuditError, AuditOptions
from lightning_attngrad.demo.options import DemoError, DemoOptions
from lightning_attngrad.reporting.report.options import ReportError, ReportOptions

# What a command does, with torch, Lightning and timm, is imported only where it runs: `--help` is there at once.

_DEMO = """\
Fine-tune a small Vision Transformer and watch where it looks.

Without options: 4,000 handwritten digits that a Python package carries, two to three minutes on a
laptop, no download. With --data, a folder of your own images instead. The attention maps, before,
during and after, go to TensorBoard and, as PNG files, to the output folder."""

_DEMO_EXAMPLES = """\
examples:
  lightning-attngrad demo
  lightning-attngrad demo --plant-shortcut
  lightning-attngrad demo --plant-shortcut --guide
  lightning-attngrad demo --data flowers --model vit_small_patch16_224 --pretrained --epochs 5
  lightning-attngrad demo --data flowers --model deit3_small_patch16_224 --weights deit3.safetensors"""

_AUDIT = """\
Compare checkpoints by where they look and how little it takes to rewrite a class.

All are evaluated on the same frozen validation images: those of the run, where it had a CheckpointAudit,
with its settings; else images chosen at the first checkpoint. A table is printed; audit.json, audit.csv
and the figures of each checkpoint go to the output folder."""

_AUDIT_EXAMPLES = """\
examples:
  lightning-attngrad audit run/checkpoints/*.ckpt --model train.py:LitViT --data train.py:Flowers
  lightning-attngrad audit run/checkpoints/*.ckpt --config run/config.yaml --data-arg folder=/data/flowers
  lightning-attngrad audit best.ckpt --model my.module.LitViT --data my.data.Flowers \\
      --fail-if "rewrite/median_linf<2/255" --fail-if "val_accuracy<0.9"

exit codes: 0 all is well, 1 a --fail-if condition is met, 2 bad input, or checkpoints that do not compare"""


_REPORT = """\
Write the report of a run as one HTML file, which needs no network; of two runs, compare them.

The run has to have been made with report=True in one of its callbacks: its maps and numbers are then kept in
its log directory. Such a run writes its report itself when it ends; this makes it of a run that was
interrupted or still goes on, and of two runs on the same validation images."""

_REPORT_EXAMPLES = """\
examples:
  lightning-attngrad report lightning_logs/version_0
  lightning-attngrad report lightning_logs/version_0 lightning_logs/version_1 --output comparison.html"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        The exit code: 0; 1 where an audit breaks a threshold; 2 for bad input, which is told in one line on stderr.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = next((command for command in _COMMANDS if given[:1] == [command.name]), None)
    if command is None:
        return _without_a_command(given)
    found = _Parser(command).parse_args(given[1:])
    options = {field.name: found[field.name] for field in dataclasses.fields(command.options)}
    try:
        return command.run(command.options(**options))
    except command.error as error:
        print(f"lightning-attngrad {command.name}: error: {error}", file=sys.stderr)
        return 2


def _run_demo(options: DemoOptions) -> int:
    from lightning_attngrad.demo import run_demo  # noqa: PLC0415

    run_demo(options)
    return 0


def _run_audit(options: AuditOptions) -> int:
    from lightning_attngrad.audit.run import audit_exit_code  # noqa: PLC0415

    return audit_exit_code(options)


def _run_report(options: ReportOptions) -> int:
    from lightning_attngrad.reporting.report.page import make_report  # noqa: PLC0415

    make_report(options)
    print(options.file)
    return 0


@dataclasses.dataclass(frozen=True)
class _Command:
    """A sub-command.

    Attributes:
        name: as it is typed.
        summary: one line for the list of commands.
        description: above the arguments in its help.
        examples: below them.
        options: a dataclass; each field is an argument, explained by its line in the docstring. The metadata of a
            field may hold its group in the help, a metavar, and a flag if that is not simply its name.
        error: what bad input ends in.
        run: does it, and returns the exit code.
    """

    name: str
    summary: str
    description: str
    examples: str
    options: Any
    error: type[Exception]
    run: Callable[[Any], int]


_COMMANDS = (
    _Command(
        name="demo",
        summary="fine-tune a small Vision Transformer and watch where it looks",
        description=_DEMO,
        examples=_DEMO_EXAMPLES,
        options=DemoOptions,
        error=DemoError,
        run=_run_demo,
    ),
    _Command(
        name="audit",
        summary="evaluate saved checkpoints again and compare them",
        description=_AUDIT,
        examples=_AUDIT_EXAMPLES,
        options=AuditOptions,
        error=AuditError,
        run=_run_audit,
    ),
    _Command(
        name="report",
        summary="write the report of a run, or of two side by side, as one HTML file",
        description=_REPORT,
        examples=_REPORT_EXAMPLES,
        options=ReportOptions,
        error=ReportError,
        run=_run_report,
    ),
)


class _Parser(jsonargparse.ArgumentParser):
    """The arguments of a command; says what is wrong in one line."""

    def __init__(self, command: _Command) -> None:
        super().__init__(
            prog=f"lightning-attngrad {command.name}",
            description=command.description,
            epilog=command.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,  # that of jsonargparse adds Python's types
            allow_abbrev=True,
        )
        self._expected: dict[str, str] = {}  # what each argument expects, for messages
        docstring = docstring_parser.parse(command.options.__doc__ or "")
        texts = {entry.arg_name: " ".join((entry.description or "").split()) for entry in docstring.params}
        hints = get_type_hints(command.options)
        groups: dict[str | None, Any] = {None: self}
        for field in dataclasses.fields(command.options):
            title = field.metadata.get("group")
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            flag = field.metadata.get("flag", f"--{field.name.replace('_', '-')}")
            hint = hints[field.name]
            described = {"help": _help(texts.get(field.name, ""), field.default)}
            if field.default is dataclasses.MISSING:  # one or more of them, without a flag
                metavar = field.metadata["metavar"]
                groups[title].add_argument(field.name, nargs="+", type=get_args(hint)[0], metavar=metavar, **described)
            elif hint is bool:
                groups[title].add_argument(flag, action="store_true", **described)
            else:
                self._expected[field.name] = f"{flag}: {{}}; expected {_expected(hint)}"
                described["metavar"] = field.metadata.get("metavar", _metavar(hint))
                groups[title].add_argument(flag, dest=field.name, **_reading(hint, field.default), **described)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # noqa: ARG002
        self.exit(2, f"{self.prog}: error: {self._plain(message)} (see {self.prog} --help)\n")

    def _plain(self, message: str) -> str:
        """What was given and what would do, where jsonargparse tells of Python's types over many lines."""
        wrong = re.match(r'Parser key "(\w+)":.*value: ([^\n]*)\Z', message, re.DOTALL)
        if wrong is None or wrong[1] not in self._expected:
            return " ".join(message.split())
        return self._expected[wrong[1]].format(f"got {wrong[2]!r}")


def _help(text: str, default: Any) -> str:
    says_nothing = default is dataclasses.MISSING or default is None or default is False or default == ()
    return (text.removesuffix(".") + ("" if says_nothing else f" (default: {default})")).replace("%", "%%")


def _reading(hint: Any, default: Any) -> dict[str, Any]:
    """How text becomes a value of a type."""
    kinds = _kinds(hint)
    if kinds == [Sequence[float]]:
        return {"type": _numbers, "default": default}
    if kinds == [Sequence[str]]:
        return {"action": "append", "default": list(default)}  # no type: jsonargparse before 4.47 refuses one
    return {"type": hint, "default": default}


def _numbers(text: str | tuple[float, ...]) -> tuple[float, ...]:
    try:  # jsonargparse checks what came of it by asking again
        return tuple(float(part) for part in (text.split(",") if isinstance(text, str) else text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected numbers such as 0.5,0.5,0.5") from None


def _kinds(hint: Any) -> list[Any]:
    """The types of a union, None left out."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]
    return [kind for kind in kinds if kind is not type(None)]


def _metavar(hint: Any) -> str:
    kind = _kinds(hint)[0]
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    return {int: "N", Path: "FILE"}.get(kind, "NAME")


def _expected(hint: Any) -> str:
    kind = _kinds(hint)[0]
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    return {int: "a whole number", float: "a number"}.get(kind, "text")


class _Program(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _without_a_command(given: list[str]) -> int:
    """The program itself: its version, its help, and what is wrong if neither was asked for."""
    parser = _Program(
        prog="lightning-attngrad", description="See where a Vision Transformer looks while Lightning fine-tunes it."
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(title="commands", metavar="command")
    for command in _COMMANDS:
        commands.add_parser(command.name, help=command.summary)
    if parser.parse_args(given).version:
        print(f"lightning-attngrad {__version__}")
    else:
        parser.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
