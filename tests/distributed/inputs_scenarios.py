"""What each of two processes does with modules that take more than images; see ``scenarios``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import lightning_attngrad as attngrad
from tests.distributed.scenarios import two_processes
from tests.integration.harness import BATCH, make_trainer, seed_everything
from tests.integration.input_kinds import KINDS, Items, Kind, Stream
from tests.integration.reference_monitor import Reference
from tests.probe.runs import everything


def _fitted(kind: Kind, callbacks: list[Any], validation: Any) -> tuple[dict[str, Any], list[str]]:
    seed_everything(3)
    module = kind.module()
    trainer = make_trainer(callbacks, max_epochs=1, **two_processes())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, kind.loader(seed=1), validation())
    left = everything(module)
    left["metrics"] = {name: value for name, value in left["metrics"].items() if not name.startswith("attngrad")}
    return left, [str(one.message) for one in caught if "switched off" in str(one.message)]


def _compared(kind: Kind, validation: Callable[[], Any]) -> dict[str, Any]:
    """The monitor compares each number with what the module's own step says of one sample alone, on each process."""
    without, _ = _fitted(kind, [], validation)
    reference = Reference(kind)
    left, off = _fitted(kind, [reference], validation)
    return {
        "without": without,
        "fingerprint": left,
        "labels": reference.labels,
        "hash": reference.probe_set.hash,
        "switched off": off,
    }


def more_than_images(directory: Path) -> dict[str, Any]:
    return _compared(KINDS["numbers"], KINDS["numbers"].loader)


def more_than_images_of_a_stream(directory: Path) -> dict[str, Any]:
    """The second process sees other samples: both explain those of the first, with what goes along with them."""
    kind = KINDS["own way"]
    seed = 2 + 10 * torch.distributed.get_rank()
    return _compared(kind, lambda: DataLoader(Stream(Items(kind.form, seed=seed)), batch_size=BATCH))


def nothing_fits(directory: Path) -> dict[str, Any]:
    """On both: no process waits for the other in what would have come."""
    kind = KINDS["own way"]
    probe = attngrad.ProbeImages(num_images=3)
    left, off = _fitted(kind, [attngrad.AttentionMapMonitor(probe=probe)], kind.loader)
    without, _ = _fitted(kind, [], kind.loader)
    return {"without": without, "fingerprint": left, "switched off": off}


SCENARIOS: tuple[Callable[[Path], dict[str, Any]], ...] = (more_than_images, more_than_images_of_a_stream, nothing_fits)
