"""Link another environment's torch into a new one: ``python link_torch.py PYTHON_WITH_TORCH PYTHON_OF_THE_NEW_ONE``.

PyTorch and what comes with it take 5 GB and minutes; pip then takes them for installed. They are files of the other
environment: as its torch is, so is what is checked.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

#: What belongs to torch, by the beginnings of names in site-packages.
_OF_TORCH = re.compile(r"(torch|torchvision|functorch|torchgen|triton|nvidia|cuda)([-_.]|$)")


def link_torch(other: str, python: str) -> None:
    """Put links into an environment.

    Args:
        other: the Python whose torch is to be used.
        python: that of the environment.

    Raises:
        ValueError: if they are of two versions of Python, or there is no torch.
    """
    theirs, ours = (_site_packages(one) for one in (other, python))
    if theirs.parent.name != ours.parent.name:
        raise ValueError(f"got a torch of {theirs.parent.name}; expected one of {ours.parent.name}, as the environment")
    parts = [part for part in theirs.iterdir() if _OF_TORCH.match(part.name)]
    if not any(part.name == "torch" for part in parts):
        raise ValueError(f"got {other}; expected a Python that has torch installed beside itself")
    for part in parts:
        (ours / part.name).symlink_to(part)


def _site_packages(python: str) -> Path:
    program = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    return Path(subprocess.run(program, capture_output=True, text=True, check=True).stdout.strip())


if __name__ == "__main__":
    link_torch(*sys.argv[1:])
