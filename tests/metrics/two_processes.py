"""Metrics over two real processes on gloo: run as ``python -m tests.metrics.two_processes DIRECTORY RANK``.

Every metric of `CASES` is computed with every division of its entries in `SHARES`. Both ranks leave what they computed
in ``<rank>.pt``; a rank that is waited for in vain raises after `TIMEOUT` seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_attngrad import metrics
from lightning_attngrad.metrics import functional

TIMEOUT = 60
ROOT = Path(__file__).parents[2]
ENTRIES = 23
PATCHES, STEPS = 9, 4  # of faithfulness curves: shares that are rounded to whole patches
RADII = [1 / 255, 4 / 255, 16 / 255]

Entries = dict[str, Tensor]
Division = list[list[int]]


@dataclass(frozen=True)
class Case:
    """A metric and what it ought to be.

    Attributes:
        make: a new metric.
        entries: the arguments of its ``update``, `ENTRIES` entries each.
        expected: from those arguments to the result of ``compute``, by the function.
    """

    make: Callable[[], Metric]
    entries: Entries
    expected: Callable[..., Any]


def _entries() -> Entries:
    generator = torch.Generator().manual_seed(0)
    distance, reference = torch.rand(2, ENTRIES, generator=generator) * 0.1
    distance[::5], reference[::7], distance[3], reference[1] = torch.inf, torch.inf, 0, 0
    original = torch.rand(ENTRIES, 3, 8, 8, generator=generator)
    rewritten = (original + 0.2 * torch.rand(ENTRIES, 3, 8, 8, generator=generator)).clamp(0, 1)
    before, after = torch.rand(2, ENTRIES, 4, 5, generator=generator)
    after[2] = 0  # a map that has no order
    heatmap, now, jittered = torch.randn(3, ENTRIES, 4, 5, generator=generator)
    heatmap[7], now[8], jittered[9] = 0, torch.nan, 1
    mask, other_mask = torch.rand(2, ENTRIES, 9, 9, generator=generator) < 0.6
    mask[3], mask[4] = False, True  # no object, and nothing but object
    entropy, distance_of_heads, prefix_mass = torch.rand(3, ENTRIES, 3, 2, generator=generator)
    high_norm_share = torch.rand(ENTRIES, 3, generator=generator)
    high_norm_share[:, 0] = torch.nan  # a layer without a normalisation before it
    morf, lerf = torch.rand(2, ENTRIES, STEPS + 1, generator=generator)
    morf[4], lerf[11, 3] = torch.nan, torch.nan  # a map that is not finite, and an output that is not
    salience, drop = torch.rand(2, ENTRIES, 5, generator=generator)
    salience[2], salience[7], drop[9, 1] = torch.nan, 0.5, torch.nan  # not finite, all alike, no output
    return {
        "distance": distance,
        "reference": reference,
        "success": distance.isfinite(),
        "correct": torch.rand(ENTRIES, generator=generator) < 0.7,
        "survived": torch.rand(ENTRIES, generator=generator) < 0.5,
        "source": torch.randint(3, (ENTRIES,), generator=generator),
        "target": torch.randint(3, (ENTRIES,), generator=generator),
        "original": original,
        "rewritten": rewritten,
        "before": before,
        "after": after,
        "heatmap": heatmap,
        "now": now,
        "jittered": jittered,
        "mask": mask,
        "other_mask": other_mask,
        "entropy": entropy,
        "distance_of_heads": distance_of_heads,
        "prefix_mass": prefix_mass,
        "high_norm_share": high_norm_share,
        "morf": morf,
        "lerf": lerf,
        "salience": salience,
        "drop": drop,
    }


def _quality(original: Tensor, rewritten: Tensor, success: Tensor) -> dict[str, Tensor]:
    quality = functional.image_quality(original[success], rewritten[success])
    psnr = quality.psnr.quantile(0.5) if len(quality.psnr) else torch.tensor(torch.nan)
    return {"psnr": psnr, "ssim": quality.ssim.mean()}


def _drift(reference: Tensor, now: Tensor, jittered: Tensor) -> dict[str, Tensor]:
    drift, floor = functional.map_drift(reference, now), functional.map_drift(now, jittered)
    return {
        **{name: values.nanmean() for name, values in drift.items()},
        **{f"{name}_floor": values.nanmean() for name, values in floor.items()},
        **{f"{name}_ratio": value for name, value in functional.drift_ratio(drift, floor).items()},
    }


def _map_statistics(heatmap: Tensor) -> dict[str, Tensor]:
    row, column = functional.map_centroid(heatmap).nanmean(dim=0)
    numbers = {name: torch.tensor(value) for name, value in functional.map_statistics(heatmap).items()}
    return {**numbers, "centroid_row": row, "centroid_column": column}


def _areas(curve: Tensor) -> Tensor:
    return functional.area_under_curve(curve, functional.replaced_shares(PATCHES, STEPS))


def _cases() -> dict[str, Case]:
    entries = _entries()

    def case(make: Callable[[], Metric], names: str, expected: Callable[..., Any]) -> Case:
        return Case(make, {name: entries[name] for name in names.split()}, expected)

    return {
        "success": case(
            lambda: metrics.RewriteSuccess(RADII), "distance", lambda distance: functional.success_at(distance, RADII)
        ),
        "distance": case(metrics.RewriteDistance, "distance", functional.distance_quantiles),
        "area": case(
            lambda: metrics.AreaUnderSuccess(0.01, 0.1),
            "distance",
            lambda distance: functional.area_under_success(distance, 0.01, 0.1),
        ),
        "robust": case(
            lambda: metrics.RobustAccuracy(RADII),
            "distance correct",
            lambda distance, correct: functional.robust_accuracy(distance, correct, RADII),
        ),
        "quality": case(metrics.RewriteQuality, "original rewritten success", _quality),
        "survival": case(metrics.EightBitSurvival, "survived success", functional.share_surviving),
        "matrix": case(
            lambda: metrics.RewriteMatrix(3),
            "distance source target",
            lambda distance, source, target: functional.median_matrix(distance, source, target, 3),
        ),
        "ratio": case(
            lambda: metrics.PairedLogRatio(confidence=0.8, resamples=200, seed=5),
            "distance reference",
            lambda distance, reference: vars(
                functional.paired_log_ratio(distance, reference, confidence=0.8, resamples=200, seed=5)
            ),
        ),
        "shift": case(
            metrics.MapShift,
            "before after",
            lambda before, after: (1 - functional.map_spearman(before, after)).nanmean(),
        ),
        "deletion": case(lambda: metrics.Deletion(PATCHES, STEPS), "morf", lambda morf: _areas(morf).nanmean()),
        "insertion": case(lambda: metrics.Insertion(PATCHES, STEPS), "lerf", lambda lerf: _areas(lerf).nanmean()),
        "srg": case(
            lambda: metrics.SymmetricRelevanceGain(PATCHES, STEPS),
            "morf lerf",
            lambda morf, lerf: functional.Faithfulness(
                functional.replaced_shares(PATCHES, STEPS), morf, lerf
            ).srg.nanmean(),
        ),
        "saco": case(metrics.SaCo, "salience drop", lambda salience, drop: functional.saco(salience, drop).nanmean()),
    }


def _map_cases() -> dict[str, Case]:
    """Metrics of maps and heads; some of their arguments have the names that others have above."""
    entries = _entries()

    def mean_of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, **kwargs: function(*args, **kwargs).nanmean()

    maps, masks = {"heatmap": entries["heatmap"]}, {"mask": entries["mask"]}
    heads = {
        "entropy": entries["entropy"],
        "distance": entries["distance_of_heads"],
        "prefix_mass": entries["prefix_mass"],
        "high_norm_share": entries["high_norm_share"],
    }
    return {
        "map statistics": Case(metrics.MapStatistics, maps, _map_statistics),
        "heads": Case(
            lambda: metrics.AttentionHeadStatistics(layers=3, heads=2),
            heads,
            lambda **values: {name: value.nanmean(dim=0) for name, value in values.items()},
        ),
        "energy": Case(metrics.EnergyInMask, maps | masks, mean_of(functional.energy_in_mask)),
        "pointing": Case(metrics.PointingGame, maps | masks, mean_of(functional.pointing_game)),
        "average precision": Case(
            metrics.MaskAveragePrecision, maps | masks, mean_of(functional.mask_average_precision)
        ),
        "two objects": Case(
            metrics.TwoObjectShare,
            maps | {"mask_right": entries["mask"], "mask_wrong": entries["other_mask"]},
            mean_of(functional.two_object_share),
        ),
        "sensitivity": Case(
            metrics.ClassSensitivity,
            {"predicted_maps": entries["heatmap"], "runner_up_maps": entries["now"]},
            mean_of(functional.class_sensitivity),
        ),
        "sanity": Case(
            metrics.SanityCheck,
            {"maps": entries["heatmap"], "maps_of_redrawn": entries["jittered"]},
            mean_of(functional.sanity_correlation),
        ),
        "drift": Case(
            metrics.MapDrift,
            {"reference": entries["heatmap"], "now": entries["now"], "jittered": entries["jittered"]},
            _drift,
        ),
    }


MAP_CASES = _map_cases()
CASES = _cases() | MAP_CASES
_ALL = list(range(ENTRIES))
#: What each of two processes updates with, batch by batch.
SHARES: dict[str, tuple[Division, Division]] = {
    "uneven": ([_ALL[:5], _ALL[5:15]], [_ALL[15:]]),
    "taking turns": ([_ALL[::2]], [_ALL[1::2]]),
    "a single entry": ([_ALL[:22]], [_ALL[22:]]),
    "an empty batch": ([[]], [_ALL[:9], [], _ALL[9:]]),
    "the first without a batch": ([], [_ALL]),
    "the second without a batch": ([_ALL[:20], _ALL[20:]], []),
    "both without a batch": ([], []),
}


def batch(entries: Entries, chosen: list[int]) -> Entries:
    return {name: values[chosen] for name, values in entries.items()}


def compute_all(rank: int) -> dict[tuple[str, str], list[Any]]:
    """Every metric with every division: computed, then reset and computed again."""
    results = {}
    for division, shares in SHARES.items():
        for name, case in CASES.items():
            metric = case.make()
            found = []
            for _ in range(2):
                for chosen in shares[rank]:
                    metric.update(**batch(case.entries, chosen))
                found.append(metric.compute())
                metric.reset()
            results[division, name] = found
    return results


def run_both(directory: Path) -> list[dict[tuple[str, str], list[Any]]]:
    """What both ranks computed."""
    processes = []
    for rank in range(2):
        with (directory / f"{rank}.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.metrics.two_processes", str(directory), str(rank)]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            processes.append(
                subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=subprocess.STDOUT)
            )
    try:
        for process in processes:
            process.wait(3 * TIMEOUT)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((directory / f"{rank}.log").read_text(errors="replace")[-3000:] for rank in range(2))
    assert [process.returncode for process in processes] == [0, 0], logs
    return [torch.load(directory / f"{rank}.pt") for rank in range(2)]


def main(directory: Path, rank: int) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{directory / 'rendezvous'}",
        world_size=2,
        rank=rank,
        timeout=timedelta(seconds=TIMEOUT),
    )
    try:
        torch.save(compute_all(rank), directory / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
