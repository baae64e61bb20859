"""How long one waits for `import lightning_attngrad` and for `lightning-attngrad --help`, in units of `import torch`.

Whole processes, one of each kind in turn, so that what else the machine does meets all kinds alike; medians.

    python -m benchmarks.startup --rounds 9
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median

REFERENCE = "import torch"
HELP = "from lightning_attngrad.cli import main; import sys; sys.exit(main(sys.argv[1:]))"

#: What is started: a program for `python -c`, and its arguments.
PROGRAMS: Mapping[str, Sequence[str]] = {
    REFERENCE: (REFERENCE,),
    "import lightning_attngrad": ("import lightning_attngrad",),
    "… and explain": ("import lightning_attngrad; lightning_attngrad.explain",),
    "… and AttentionMapMonitor": ("import lightning_attngrad; lightning_attngrad.AttentionMapMonitor",),
    "import lightning.pytorch": ("import lightning.pytorch",),
    "lightning-attngrad --help": (HELP, "--help"),
    "lightning-attngrad demo --help": (HELP, "demo", "--help"),
    "lightning-attngrad audit --help": (HELP, "audit", "--help"),
}


def seconds_of(program: Sequence[str]) -> float:
    """Wall time of a process from its start to its end.

    Raises:
        CalledProcessError: if it fails.
    """
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", *program], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def measure(rounds: int, programs: Mapping[str, Sequence[str]] = PROGRAMS) -> dict[str, float]:
    """Median seconds of each program over rounds in which each is started once; a first round only fills caches."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            spent = seconds_of(program)
            if number:
                seconds[name].append(spent)
    return {name: median(values) for name, values in seconds.items()}


def report(seconds: Mapping[str, float]) -> str:
    """A line a program: seconds, and how many times as long as `import torch`."""
    return "\n".join(
        f"{name:34}{spent:7.2f} s{spent / seconds[REFERENCE]:8.2f} × {REFERENCE}" for name, spent in seconds.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="processes of each kind that count (default: 9)")
    print(report(measure(parser.parse_args(arguments).rounds)))


if __name__ == "__main__":
    main()
