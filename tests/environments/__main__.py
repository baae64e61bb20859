"""The package in environments of its own, each made for this once: ``python -m tests.environments [NAME …]``.

Into each a wheel of this checkout is installed with what it asks for, and `checks.py` is run there: fits with all
callbacks and without, explaining, rewriting, the report, the audit command. Prints a table in Markdown, and exits 1
where a check failed.

Needs nothing but Python and a package index: uv, which is installed for this once as well, can put in the oldest
versions that are permitted, and takes the oldest Python from ``PATH``, or fetches it. Two releases of PyTorch are
fetched, some 10 GB, which all environments share and which are removed at the end; ``TMPDIR`` says where they lie, and
where ``UV_CACHE_DIR`` is set they are kept there.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "pyproject.toml"
CHECKS = Path(__file__).with_name("checks.py")
#: Told of each environment.
SHOWN = ("torch", "torchvision", "lightning", "pytorch-lightning", "timm", "torchmetrics", "numpy")
_LONGEST_CHECK = 1800  # seconds, on slow cores


@dataclass(frozen=True)
class Environment:
    """What is installed, and which Lightning the program trains with.

    Attributes:
        packages: the names that ``checks.py`` is run with, one after the other.
        floors: whether Python and all that pyproject.toml asks for are as old as it allows; what those ask for in turn
            is as new as they take. Else all is as new as there is, in the Python that runs this.
        first: what was there before this package: in the oldest version that is supported.
        without: uninstalled again. As `lightning` asks for `pytorch-lightning`, installing it puts both into every
            environment; with `pytorch-lightning` alone this package cannot be, as it asks for `lightning`.
    """

    packages: tuple[str, ...]
    floors: bool = False
    first: str | None = None
    without: str | None = None


ENVIRONMENTS = {
    "newest": Environment(("lightning.pytorch", "pytorch_lightning")),
    "newest-lightning-alone": Environment(("lightning.pytorch",), without="pytorch-lightning"),
    "pytorch-lightning-first": Environment(("pytorch_lightning",), first="pytorch-lightning"),
    "oldest": Environment(("lightning.pytorch", "pytorch_lightning"), floors=True),
    "oldest-lightning-alone": Environment(("lightning.pytorch",), floors=True, without="pytorch-lightning"),
}


def floors(project: str) -> dict[str, str]:
    """The oldest version of Python, and of each package that the program needs.

    Args:
        project: text of pyproject.toml.

    Returns:
        Versions by names, of ``requires-python``, ``dependencies`` and the extra ``demo``.

    Example:
        >>> floors('requires-python = ">=3.9"\\ndependencies = [\\n    "one[two]>=1.2,!=1.3",  # why\\n]')
        {'python': '3.9', 'one': '1.2'}
    """
    python = dict(re.findall(r'^requires-(python) = ">=([\d.]+)"', project, re.MULTILINE))
    lists = re.findall(r"^(?:dependencies|demo) = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    lines = re.findall(r'^ +"([\w-]+)(?:\[\w+\])?>=([\w.]+)', "".join(lists), re.MULTILINE)
    return python | dict(lines)


def not_met(asked: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """The floors that are no versions which can be installed: what pyproject.toml promises there is not so.

    Args:
        asked: versions by names, see :func:`floors`.
        found: what was installed where the oldest was asked for.

    Returns:
        A line each.

    Example:
        >>> not_met({"python": "3.9", "one": "1.2", "two": "2"}, {"python": "3.9.7", "one": "1.2.0", "two": "2.1"})
        ['two>=2 is not to be had beside the other floors, two>=2.1 is']
    """
    lines = []
    for name, floor in asked.items():
        version = found[name].split("+")[0]
        is_met = version.startswith(f"{floor}.") if name == "python" else _plain(version) == _plain(floor)
        if not is_met:
            lines.append(f"{name}>={floor} is not to be had beside the other floors, {name}>={version} is")
    return lines


def _plain(version: str) -> str:
    return re.sub(r"(\.0)+$", "", version)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make environments, check them, and remove them.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        The exit code.
    """
    names = _parse(arguments)
    columns: dict[str, dict[str, str]] = {}
    failures = []
    with tempfile.TemporaryDirectory(prefix="environments-") as place:
        tools = _Tools(Path(place) / "tools")
        wheel = tools.wheel(Path(place) / "wheel")
        for name in names:
            folder = Path(place) / name
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                columns[name], wrong = _checked(ENVIRONMENTS[name], folder, tools, wheel)
            except (subprocess.SubprocessError, ValueError) as error:
                columns[name], wrong = {}, [f"not installed: {error}"]
            shutil.rmtree(folder, ignore_errors=True)  # the next one may take as many gigabytes
            failures += [f"- {name}: {one}" for one in wrong]
            print(*wrong or ["passed"], sep="\n", file=sys.stderr, flush=True)
        version = " ".join(wheel.name.split("-")[:2]).replace("_", "-")
        text = f"{datetime.date.today()}, {version}, CPU\n\n{table(columns)}\n"
        print(text, *failures, sep="\n", flush=True)  # before all is removed, which takes a while
    return int(bool(failures))


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """What was found, an environment a column, in Markdown: narrow enough for a page.

    Args:
        columns: for each environment versions by package, and how many checks passed by the Lightning that trained.

    Returns:
        Lines without a trailing newline.

    Example:
        >>> print(*table({"newest": {"python": "3.13.0"}, "oldest": {"python": "3.10.13"}}).splitlines()[:3], sep="\\n")
        | | newest | oldest |
        |---|---|---|
        | python | 3.13.0 | 3.10.13 |
    """
    trained = sorted({package for environment in ENVIRONMENTS.values() for package in environment.packages})
    rows = {name: name for name in ("python", *SHOWN)} | {name: f"checks passed, `{name}`" for name in trained}
    lines = [f"| | {' | '.join(name.replace('-', ' ') for name in columns)} |", f"|{'---|' * (len(columns) + 1)}"]
    for name, title in rows.items():
        lines.append(f"| {title} | {' | '.join(column.get(name, '–') for column in columns.values())} |")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> list[str]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.environments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all without one")
    names = parser.parse_args(arguments).names
    for name in names:
        if name not in ENVIRONMENTS:
            parser.error(f"got {name!r}; expected some of {', '.join(ENVIRONMENTS)}")
    return names or list(ENVIRONMENTS)


class _Tools:
    """uv, in an environment of its own: it resolves to the oldest versions, and links what two environments share.

    Args:
        folder: for that environment, and for what is fetched.
    """

    def __init__(self, folder: Path) -> None:
        _ran([sys.executable, "-m", "venv", str(folder)])
        _ran([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"])
        self._program = folder / "bin" / "uv"
        self._settings = {"UV_CACHE_DIR": str(folder / "cache")} | os.environ

    def uv(self, *words: str) -> None:
        _ran([str(self._program), *words, "--quiet"], self._settings)

    def wheel(self, folder: Path) -> Path:
        self.uv("build", "--wheel", "--out-dir", str(folder), str(ROOT))
        (wheel,) = folder.glob("*.whl")
        return wheel

    def install(self, python: str, *words: str) -> None:
        self.uv("pip", "install", "--python", python, *words)


def _ran(program: list[str], settings: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(program, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(f"{done.stdout} {done.stderr}".split())
        raise subprocess.SubprocessError(f"{' '.join(program[1:4])}: {said[-600:]}")


def _checked(environment: Environment, folder: Path, tools: _Tools, wheel: Path) -> tuple[dict[str, str], list[str]]:
    """A column of the table, and a line for each check that failed."""
    python = _made(environment, folder, tools, wheel)
    column, wrong = _versions(python, SHOWN), []
    for package in environment.packages:
        outcomes = _outcomes(python, package, folder)
        failed = [f"`{package}`, {one['check']}: {one['error']}" for one in outcomes if one["error"]]
        column[package] = f"{len(outcomes) - len(failed)} of {len(outcomes)}"
        wrong += failed
    return column, wrong


def _made(environment: Environment, folder: Path, tools: _Tools, wheel: Path) -> str:
    """An environment's Python, with the package in it."""
    oldest = floors(PROJECT.read_text(encoding="utf-8"))
    tools.uv("venv", "--python", oldest["python"] if environment.floors else sys.executable, str(folder))
    python = str(folder / "bin" / "python")
    if environment.first is not None:
        tools.install(python, f"{environment.first}=={oldest[environment.first]}")
    if environment.floors:
        asked = ("--requirements", str(PROJECT), "--extra", "demo")
        tools.install(python, "--resolution", "lowest-direct", *asked)
    tools.install(python, f"lightning-attngrad[demo] @ {wheel.as_uri()}")
    if environment.floors and (lines := not_met(oldest, _versions(python, oldest))):
        raise ValueError("; ".join(lines))
    if environment.without is not None:
        tools.uv("pip", "uninstall", "--python", python, environment.without)
    return python


def _outcomes(python: str, package: str, folder: Path) -> list[dict[str, str | None]]:
    """What `checks.py` found; a check that ended the process, or did not end, is told of as well."""
    place = folder / f"checked-{package}"
    place.mkdir()
    with (place / "found.txt").open("w", encoding="utf-8") as found, (place / "output.txt").open("w") as errors:
        program = [python, str(CHECKS), package, str(place)]
        try:
            done = subprocess.run(
                program, env=_alone(), cwd=place, stdout=found, stderr=errors, timeout=_LONGEST_CHECK, check=False
            )
            ended = None if done.returncode == 0 else f"ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"had not ended after {_LONGEST_CHECK} s"
    lines = (place / "found.txt").read_text(encoding="utf-8").splitlines()
    outcomes = [json.loads(line) for line in lines if line.startswith('{"check"')]
    if ended is not None:
        print((place / "output.txt").read_text(encoding="utf-8")[-6000:], file=sys.stderr)
    if not any(one["error"] for one in outcomes) and (ended or not outcomes):
        outcomes.append({"check": "the process", "error": ended or "printed nothing"})
    return outcomes


def _alone() -> dict[str, str]:
    """No checkout on the path, no threads that other work waits for, no hub."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LIGHTNING_ATTNGRAD")}
    return kept | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}


def _versions(python: str, names: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """Those of packages and of Python; a dash for what is not there."""
    done = subprocess.run([python, "-c", _VERSIONS, *names], env=_alone(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        found[name] = "–"
print(json.dumps(found | {"python": platform.python_version()}))
"""


if __name__ == "__main__":
    sys.exit(main())
