"""One of two processes dies while it evaluates: ``python -m tests.distributed.killed_in_an_evaluation DIRECTORY``."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_attngrad.probe import Evaluation, Findings
from tests.distributed.scenarios import dropping, two_processes
from tests.distributed.sharing_scenarios import SharingMonitor, loaders
from tests.integration.harness import fit


class Dying(SharingMonitor):
    """On the second process the kernel kills it in a forward pass of the second evaluation."""

    def __init__(self, directory: Path) -> None:
        super().__init__(on_error="log")  # as users have it: the error of the evaluation alone would not end the run
        self.directory = directory

    def evaluate(self, evaluation: Evaluation) -> Findings:
        def forward(images: Tensor) -> Any:
            if evaluation.label != "start":
                if torch.distributed.get_rank() == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                (self.directory / "evaluating").touch()
            return evaluation.forward(images)

        return super().evaluate(Evaluation(**{**vars(evaluation), "forward": forward}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    fit(dropping(), [Dying(Path(sys.argv[1]))], loaders=loaders(), **two_processes())
