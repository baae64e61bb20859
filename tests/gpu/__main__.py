"""Check a GPU without pytest, and print what was found: `PYTHONPATH=. python -m tests.gpu`.

Exit codes: 0 all passed, 1 something failed, 2 there is no GPU.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Sequence

import lightning
import timm
import torch

from tests.gpu.checks import CHECKS, ONLY_ON_A_GPU, why_no_gpu


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks.

    Args:
        arguments: of the command line; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu shows only that the checks run")
    parser.add_argument("--only", default="", metavar="PART", help="checks whose name has this in it")
    parser.add_argument("--trace", action="store_true", help="print where a check failed")
    asked = parser.parse_args(arguments)
    reason = why_no_gpu()
    if asked.device == "cuda" and reason is not None:
        print(f"nothing was checked: {reason}", file=sys.stderr)
        return 2
    names = [name for name in CHECKS if asked.only in name and (asked.device != "cpu" or name not in ONLY_ON_A_GPU)]
    if not names:
        print(f"--only: no check has {asked.only!r} in its name; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    device = torch.device(asked.device)
    print(
        f"{_card(device)}; torch {torch.__version__}, lightning {lightning.__version__}, timm {timm.__version__}",
        flush=True,
    )
    _quieten()
    failed = [name for name in names if not _passes(name, device, trace=asked.trace)]
    print(f"\n{len(names) - len(failed)} passed, {len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    return int(bool(failed))


def _passes(name: str, device: torch.device, *, trace: bool) -> bool:
    began = time.perf_counter()
    try:
        said, passed = CHECKS[name](device), True
    except Exception as error:  # one that fails must not hide the others
        said, passed = f"{type(error).__name__}: {' '.join(str(error).split()):.300}", False
        if trace:
            traceback.print_exc()
    print(f"{'passed' if passed else 'FAILED'}  {name:44} {time.perf_counter() - began:6.1f} s  {said}", flush=True)
    return passed


def _card(device: torch.device) -> str:
    if device.type == "cpu":
        return "CPU: nothing here is evidence of a GPU"
    free, total = torch.cuda.mem_get_info(device)
    return f"{torch.cuda.get_device_name(device)}, {free >> 20} of {total >> 20} MiB free, CUDA {torch.version.cuda}"


def _quieten() -> None:
    """Lightning's advice is not what is to be read."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
