"""Processes on gloo, one thread each, that run a function of a benchmark together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def together(world: int, call: str, limit: int = 900) -> list[str]:
    """What each of so many processes printed.

    Args:
        world: how many.
        call: Python that each of them runs.
        limit: in seconds.

    Raises:
        SystemExit: if one of them ended with an error.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world):
        environment = os.environ | {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", call]
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    printed = [process.communicate(timeout=limit)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process ended with an error")
    return printed
