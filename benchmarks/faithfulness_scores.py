"""What is asked of a map: one number an image for each question."""

from __future__ import annotations

import copy
import hashlib
import statistics
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


def judge(subject: Subject, row: Row, cache: Path) -> Scores:
    """All questions to one row. The answers are kept on disk, by the row's maps and all that they are judged on."""
    maps = row.all_maps(row.of(subject.network), subject.images, subject.label, subject.grid)
    file = cache / "scores" / f"{_digest(subject, maps)}.pt"
    if file.is_file():
        kept: Scores = torch.load(file, weights_only=True)
        return kept
    scores = _judge(subject, row, maps)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(scores, file)
    return scores


def _judge(subject: Subject, row: Row, maps: Tensor) -> Scores:
    network, grid = row.of(subject.network), subject.grid
    scores = {f"srg_{replacement}": gain(subject, maps, replacement) for replacement in REPLACEMENTS}
    of_runner_up = row.all_maps(network, subject.images, runner_up(subject), grid)
    scores["class sensitivity"] = class_sensitivity(maps, of_runner_up)
    of_redrawn = row.all_maps(row.of(redrawn(subject.network)), subject.images, subject.label, grid)
    scores["sanity"] = sanity_correlation(maps, of_redrawn)
    if subject.masks is not None:
        scores["pointing"] = pointing_game(maps, subject.masks)
        scores["mask AP"] = mask_average_precision(maps, subject.masks)
        scores["energy"] = energy_in_mask(maps, subject.masks)
    if subject.pairs is not None:
        images, labels, masks = subject.pairs
        shares = []
        for side in (0, 1):
            of_side = row.all_maps(network, images, labels[:, side], grid)
            shares.append(two_object_share(of_side, masks[:, side], masks[:, 1 - side]))
        scores["two objects"] = torch.stack(shares).mean(dim=0)
    return scores


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
