"""The package in environments of its own, each made for this once: ``python -m tests.environments [NAME …]``.

Into each a wheel of this checkout is installed with what it asks for, and `checks.py` is run there: fits with all
callbacks and without, explaining, rewriting, the report, the audit command. Prints a table in Markdown.

Every environment with a torch of its own takes minutes and some 5 GB, nearly all of it PyTorch: ``--torch-of`` links
that of another environment. Exits 1 where a check failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.environments.link_torch import link_torch

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "pyproject.toml"
CHECKS = Path(__file__).with_name("checks.py")
#: Told of each environment; the first is what runs it.
SHOWN = ("torch", "torchvision", "lightning", "pytorch-lightning", "timm", "torchmetrics", "numpy")
_LONGEST_CHECK = 1800  # seconds, on slow cores


@dataclass(frozen=True)
class Environment:
    """What is installed, and which Lightning the program trains with.

    Attributes:
        packages: the names that ``checks.py`` is run with, one after the other.
        floors: whether all that pyproject.toml asks for is as old as it allows, else as new as there is.
        first: what was there before this package: in the oldest version that is supported.
        without: uninstalled again. As `lightning` asks for `pytorch-lightning`, pip itself puts both into every
            environment; with `pytorch-lightning` alone this package cannot be, as it asks for `lightning`.
    """

    packages: tuple[str, ...]
    floors: bool = False
    first: str | None = None
    without: str | None = None


ENVIRONMENTS = {
    "newest": Environment(("lightning.pytorch", "pytorch_lightning")),
    "newest, lightning alone": Environment(("lightning.pytorch",), without="pytorch-lightning"),
    "newest, pytorch_lightning first": Environment(("pytorch_lightning",), first="pytorch-lightning"),
    "oldest": Environment(("lightning.pytorch", "pytorch_lightning"), floors=True),
    "oldest, lightning alone": Environment(("lightning.pytorch",), floors=True, without="pytorch-lightning"),
}


def floors(project: str) -> dict[str, str]:
    """The oldest version of each package that the program needs.

    Args:
        project: text of pyproject.toml.

    Returns:
        Versions by names, of ``dependencies`` and of the extra ``demo``.

    Example:
        >>> floors('dependencies = [\\n    "one[two]>=1.2,!=1.3",  # why\\n]\\ndemo = [\\n    "other>=3",\\n]')
        {'one': '1.2', 'other': '3'}
    """
    lists = re.findall(r"^(?:dependencies|demo) = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    lines = re.findall(r'^ +"([\w-]+)(?:\[\w+\])?>=([\w.]+)', "".join(lists), re.MULTILINE)
    return dict(lines)


def oldest() -> dict[str, str]:
    """The floors of this checkout; `pytorch-lightning` is as old as `lightning`."""
    found = floors(PROJECT.read_text(encoding="utf-8"))
    return found | {"pytorch-lightning": found["lightning"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make environments, check them, and remove them.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        The exit code.
    """
    asked = _parse(arguments)
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="environments-") as place:
        wheel = _wheel(Path(place))
        for name in asked.names or ENVIRONMENTS:
            folder = Path(place) / name.replace(", ", "-").replace(" ", "-")
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                row, well = _checked(name, folder, wheel, asked)
            except (subprocess.SubprocessError, ValueError) as error:
                row, well = f"| {name} |{' |' * len(SHOWN)} | | **not installed**: {error} |", False
            shutil.rmtree(folder, ignore_errors=True)  # the next one may take as many gigabytes
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
            failed |= not well
    print(f"{datetime.date.today()}, {_version(wheel)}, CPU\n")
    print(f"| environment | Python | {' | '.join(SHOWN)} | trained with | checks |\n|{'---|' * (len(SHOWN) + 4)}")
    print(*rows, sep="\n")
    return int(failed)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.environments", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {'; '.join(ENVIRONMENTS)}; all without one")
    parser.add_argument("--python", default=sys.executable, metavar="PROGRAM", help="what makes the environments")
    parser.add_argument("--torch-of", metavar="PROGRAM", help="a Python of the same version whose torch is linked")
    asked = parser.parse_args(arguments)
    for name in asked.names:
        if name not in ENVIRONMENTS:
            parser.error(f"got {name!r}; expected one of {'; '.join(ENVIRONMENTS)}")
    return asked


def _wheel(place: Path) -> Path:
    program = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(place), str(ROOT)]
    subprocess.run(program, check=True)
    (wheel,) = place.glob("*.whl")
    return wheel


def _version(wheel: Path) -> str:
    return " ".join(wheel.name.split("-")[:2]).replace("_", "-")


def _checked(name: str, folder: Path, wheel: Path, asked: argparse.Namespace) -> tuple[str, bool]:
    """A row of the table, and whether every check passed."""
    environment = ENVIRONMENTS[name]
    python = _made(environment, folder, wheel, asked)
    found = json.loads(_said(python, "-c", _VERSIONS, *SHOWN))
    cells, well = [], True
    for package in environment.packages:
        outcomes = _outcomes(python, package, folder)
        wrong = [f"**{one['check']}: {one['error']}**" for one in outcomes if one["error"]]
        well &= not wrong and bool(outcomes)
        passed = f"{len(outcomes) - len(wrong)} of {len(outcomes)} passed"
        cells.append("; ".join([f"`{package}`: {passed}", *wrong]))
    linked = " (linked)" if asked.torch_of else ""
    versions = [found[one] + (linked if one == "torch" else "") for one in ("python", *SHOWN)]
    return f"| {name} | {' | '.join(versions)} | {'<br>'.join(cells)} |", well


def _made(environment: Environment, folder: Path, wheel: Path, asked: argparse.Namespace) -> str:
    """An environment's Python, with the package in it."""
    subprocess.run([asked.python, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    if asked.torch_of:
        link_torch(asked.torch_of, python)
    if environment.first is not None:
        _pip(python, "install", "--no-compile", f"{environment.first}=={oldest()[environment.first]}")
    limits = folder / "constraints.txt"
    lines = [f"{name}=={version}" for name, version in oldest().items()] if environment.floors else []
    limits.write_text("\n".join(lines), encoding="utf-8")
    _pip(python, "install", "--no-compile", "--constraint", str(limits), f"lightning-attngrad[demo] @ {wheel.as_uri()}")
    if environment.without is not None:
        _pip(python, "uninstall", "--yes", environment.without)
    return python


def _pip(python: str, *words: str) -> None:
    done = subprocess.run([python, "-m", "pip", *words, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        last = " ".join(done.stderr.split())[-600:]
        raise subprocess.SubprocessError(f"pip {words[0]}: {last}")


def _outcomes(python: str, package: str, folder: Path) -> list[dict[str, str | None]]:
    """What `checks.py` found; a check that ended the process is told of as well."""
    place = folder / f"checked-{package}"
    place.mkdir()
    with (place / "output.txt").open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            [python, str(CHECKS), package, str(place)],
            env=_alone(),
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=_LONGEST_CHECK,
            check=False,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"check"')]
    if done.returncode:
        print((place / "output.txt").read_text(encoding="utf-8")[-6000:], file=sys.stderr)
    if done.returncode and not any(json.loads(line)["error"] for line in lines):
        lines.append(json.dumps({"check": "the process", "error": f"ended with {done.returncode}"}))
    return [json.loads(line) for line in lines]


def _alone() -> dict[str, str]:
    """No checkout on the path, no threads that other work waits for, no hub."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LIGHTNING_ATTNGRAD")}
    return kept | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}


def _said(*program: str) -> str:
    return subprocess.run(program, capture_output=True, text=True, check=True, env=_alone()).stdout.strip()


_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = "–"
print(json.dumps(found))
"""


if __name__ == "__main__":
    sys.exit(main())
