"""What is asked of a map: one number an image for each question."""

from __future__ import annotations

import copy
import hashlib
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.faithfulness_methods import Row
from benchmarks.faithfulness_models import Subject
from benchmarks.timing import interleaved, ratio
from lightning_attngrad.metrics.functional import (
    class_sensitivity,
    energy_in_mask,
    faithfulness_curves,
    group_drops,
    mask_average_precision,
    pointing_game,
    redrawn_state,
    sanity_correlation,
    two_object_share,
)
from lightning_attngrad.metrics.functional.faithfulness import REPLACEMENTS, Replacement

#: Question → one number an image; a question that has no meaning for a subject is left out.
Scores = dict[str, Tensor]
RESAMPLES = 2000


def runner_up(subject: Subject) -> Tensor:
    """The class with the second largest logit of each image, (N,)."""
    with torch.inference_mode():
        logits = torch.cat([subject.network(part) for part in subject.images.split(32)])
    return logits.scatter(1, subject.label[:, None], -torch.inf).argmax(dim=1)


def redrawn(network: nn.Module) -> nn.Module:
    """A copy with all weights drawn anew."""
    other = copy.deepcopy(network)
    other.load_state_dict(redrawn_state(network), strict=False)
    return other


def judge(subject: Subject, row: Row, cache: Path, questions: Sequence[str] = ()) -> Scores:
    """Some questions to one row, or all. The answers are kept on disk, by its maps and all that they are judged on.

    A question that was not asked before is asked now, and what was answered before is not asked again.
    """
    maps = row.all_maps(row.of(subject.network), subject.images, subject.label, subject.grid)
    file = cache / "scores" / f"{_digest(subject, maps)}.pt"
    kept: Scores = torch.load(file, weights_only=True) if file.is_file() else {}
    asked = {name: ask for name, ask in _questions(subject, row, maps).items() if not questions or name in questions}
    new = {name: ask() for name, ask in asked.items() if name not in kept}
    if new:
        kept |= new
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(kept, file)
    return {name: kept[name] for name in asked}


def _questions(subject: Subject, row: Row, maps: Tensor) -> dict[str, Callable[[], Tensor]]:
    """All that can be asked of a row's maps on a subject, none of it asked yet."""
    grid, masks = subject.grid, subject.masks

    def of_runner_up() -> Tensor:
        return row.all_maps(row.of(subject.network), subject.images, runner_up(subject), grid)

    def of_redrawn() -> Tensor:
        return row.all_maps(row.of(redrawn(subject.network)), subject.images, subject.label, grid)

    found: dict[str, Callable[[], Tensor]] = {
        **{f"srg_{replacement}": partial(gain, subject, maps, replacement) for replacement in REPLACEMENTS},
        "SaCo": lambda: group_drops(subject.network, subject.images, maps, subject.label, groups=subject.steps).saco,
        "class sensitivity": lambda: class_sensitivity(maps, of_runner_up()),
        "sanity": lambda: sanity_correlation(maps, of_redrawn()),
    }
    if masks is not None:
        found["pointing"] = lambda: pointing_game(maps, masks)
        found["mask AP"] = lambda: mask_average_precision(maps, masks)
        found["energy"] = lambda: energy_in_mask(maps, masks)
    if subject.pairs is not None:
        found["two objects"] = lambda: _on_the_right_object(subject, row)
    return found


def _on_the_right_object(subject: Subject, row: Row) -> Tensor:
    """(V,) mean over both objects of an image of the share that lies on the one whose class is explained."""
    assert subject.pairs is not None
    (images, labels, masks), shares = subject.pairs, []
    for side in (0, 1):
        of_side = row.all_maps(row.of(subject.network), images, labels[:, side], subject.grid)
        shares.append(two_object_share(of_side, masks[:, side], masks[:, 1 - side]))
    return torch.stack(shares).mean(dim=0)


def gain(subject: Subject, maps: Tensor, replacement: Replacement) -> Tensor:
    """Symmetric relevance gain (N,) of the network, whatever the maps were taken of."""
    return faithfulness_curves(
        subject.network, subject.images, maps, subject.label, steps=subject.steps, replacement=replacement
    ).srg


def _digest(subject: Subject, maps: Tensor) -> str:
    digest = hashlib.sha256(f"{subject.steps}".encode())
    more = [] if subject.masks is None else [subject.masks]
    more += [] if subject.pairs is None else list(subject.pairs)
    for tensor in (*subject.network.state_dict().values(), subject.images, subject.label, maps, *more):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def interval(values: Tensor, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over images; undefined ones (NaN) are left out."""
    defined = values[values.isfinite()].double()
    if not len(defined):
        return float("nan"), float("nan")
    places = torch.randint(len(defined), (RESAMPLES, len(defined)), generator=torch.Generator().manual_seed(seed))
    low, high = defined[places].mean(dim=1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def price(subject: Subject, row: Row, images: int, rounds: int) -> float:
    """Time of the maps over that of one forward and backward of the same network: median of interleaved rounds.

    The backward goes to the pixels, the parameters held constant: the least that a gradient of the image costs.
    """
    network = row.of(subject.network)
    some, label = subject.images[:images], subject.label[:images]

    def plain() -> object:
        flags = [parameter.requires_grad for parameter in network.parameters()]
        network.requires_grad_(False)
        inputs = some.clone().requires_grad_()
        try:
            return torch.autograd.grad(network(inputs).gather(1, label[:, None]).sum(), inputs)
        finally:
            for parameter, flag in zip(network.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)

    calls = {"row": lambda: row.maps(network, some, label, subject.grid), "plain": plain}
    return ratio(interleaved(calls, rounds), "row", "plain")


def mean(values: Tensor) -> float:
    """Over the images for which the question has an answer."""
    return statistics.fmean(values[values.isfinite()].tolist()) if values.isfinite().any() else float("nan")
