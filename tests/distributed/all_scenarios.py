"""All scenarios in one pair of processes: ``python -m tests.distributed.all_scenarios DIRECTORY``, once a rank."""

from __future__ import annotations

import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch

from tests.distributed import (
    drift_scenarios,
    faithfulness_scenarios,
    guidance_scenarios,
    inputs_scenarios,
    labels_scenarios,
    rewriting_scenarios,
    scenarios,
    sharing_scenarios,
)

SCENARIOS = (
    *scenarios.SCENARIOS,
    *sharing_scenarios.SCENARIOS,
    *rewriting_scenarios.SCENARIOS,
    *drift_scenarios.SCENARIOS,
    *faithfulness_scenarios.SCENARIOS,
    *inputs_scenarios.SCENARIOS,
    *labels_scenarios.SCENARIOS,
    *guidance_scenarios.SCENARIOS,
)


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    # All Trainers of this process share one group of processes, whatever strategy comes first.
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=scenarios.TIMEOUT))
    rank = torch.distributed.get_rank()
    for scenario in SCENARIOS:
        try:
            outcome = scenario(directory)
        except BaseException as error:
            # A process that failed is out of step with the other: no later scenario could be trusted.
            traceback.print_exc()
            torch.save({"error": f"{type(error).__name__}: {error}"}, directory / f"{scenario.__name__}-{rank}.pt")
            raise
        torch.save(outcome, directory / f"{scenario.__name__}-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
