"""What the monitors take of the demo: ``python -m benchmarks.overhead``.

The demo with every evaluation that is due, and within ``--max-overhead``: seconds of each monitor, and of what is done
once for all of them (``probe``), over the seconds of the fit that they were in. The demo's checkpoint audit, which goes
with checkpoints, is no monitor here; what it shares with them is in ``probe``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import tempfile
from pathlib import Path

import lightning
import timm
import torch

from lightning_attngrad.demo import DemoOptions, run_demo

#: What each monitor takes by itself, and last what they share.
ACCOUNTS = ("maps", "drift", "rewrite", "probe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-overhead", type=float, default=0.05, metavar="SHARE")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, lightning "
        f"{lightning.__version__}, timm {timm.__version__}; the demo, {options.epochs} epochs, one thread\n"
    )
    print("| limit | " + " | ".join(ACCOUNTS) + " | together |\n|---|" + "---|" * (len(ACCOUNTS) + 1))
    for limit in (None, options.max_overhead):
        with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
            ran = run_demo(DemoOptions(epochs=options.epochs, max_overhead=limit, output=Path(directory)))
        shares = [
            sum(scalars.get(f"attngrad/{name}/seconds", 0.0) for scalars in ran.history) / ran.training_seconds
            for name in ACCOUNTS
        ]
        said = "every evaluation that is due" if limit is None else f"max_overhead={limit:g}"
        print(f"| {said} | " + " | ".join(f"{share:.1%}" for share in shares) + f" | **{sum(shares):.1%}** |")


if __name__ == "__main__":
    main()
