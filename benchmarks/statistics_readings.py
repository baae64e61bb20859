"""Which reading of ``layernorm_statistics`` ships, and what it came to: ``python -m benchmarks.statistics_readings``.

No formula of arXiv 2311.11378 is public: only that statistics of tokens at normalisation layers enter Chefer's rule.
``--half choose`` compares five readings with Chefer's rule on the ViT and the Swin of `benchmarks.faithfulness`. The
one with the largest mean over both models of SRG (mean colour) less Chefer's ships; that rule was set before the
run. ``--half report`` has it beside Chefer's rule, rollout and the default, on images not chosen on.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
from torch import Tensor

from benchmarks import faithfulness_models
from benchmarks.faithfulness_methods import CHEFER, Row, ours
from benchmarks.faithfulness_models import Subject
from benchmarks.faithfulness_scores import gain, interval, mean
from benchmarks.rewriting_models import DEFAULT_CACHE
from lightning_attngrad.attention import AttentionCall
from lightning_attngrad.explain import METHODS, ForwardPass, Seeds, TokenScores, register_method
from lightning_attngrad.explain.flow import first_tensors
from lightning_attngrad.explain.layernorm_statistics import key_weights
from lightning_attngrad.explain.placing import gather_tokens
from lightning_attngrad.explain.propagation import RowPropagation
from lightning_attngrad.metrics.functional import mask_average_precision

SHIPPED = "keys × σ"
MODELS = {"photographs": faithfulness_models.photographs, "swin": faithfulness_models.photographs_swin}

#: From σ / mean σ of the tokens (B, 1, N), and the mean σ of each image (B, 1, 1), to weights.
Weights = Callable[[Tensor, Tensor], Tensor]


def _by_mean(values: Tensor) -> Tensor:
    return values / values.mean(dim=-1, keepdim=True)


#: What the other readings weight, keys or queries, and by what.
READINGS: dict[str, tuple[str, Weights]] = {
    "keys / σ": ("keys", lambda shares, _: _by_mean(1 / shares)),
    "queries × σ": ("queries", lambda shares, _: shares),
    "queries / σ": ("queries", lambda shares, _: _by_mean(1 / shares)),
    "queries / σ, not over its mean": ("queries", lambda shares, size: 1 / (shares * size)),
}


def main() -> None:
    options = _parse()
    torch.set_num_threads(1)
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, timm {timm.__version__}; "
        f"float32 on one thread; the half of the images to {options.half}"
    )
    found = {}
    for name in options.models:
        subject = MODELS[name](options.cache, options.half, options.stamps)
        found[name] = {row.name: _scores(subject, row) for row in _rows(options.half)}
        print(*_table(subject, found[name], options.half), sep="\n", flush=True)
    if options.half == "choose" and len(found) == len(MODELS):
        print("\n| reading | mean over both models of SRG − Chefer |\n|---|---|")
        for reading in (SHIPPED, *READINGS):
            gains = [mean(scores[reading][0] - scores[CHEFER][0]) for scores in found.values()]
            print(f"| {reading} | {statistics.fmean(gains):+.4f} |")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics_readings", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--half", choices=("choose", "report"), default="report", help="of the images")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder that keeps weights")
    parser.add_argument("--stamps", type=Path, default=faithfulness_models.STAMPS, help="folder of Tux Paint's stamps")
    return parser.parse_args()


def _rows(half: str) -> Iterator[Row]:
    yield Row(CHEFER, ours(method="gradient_guided"))
    yield Row(SHIPPED, ours(method="layernorm_statistics"))
    if half == "report":
        yield from (Row("rollout", ours(method="rollout")), Row("default", ours()))
        return
    for name, (side, weights) in READINGS.items():
        if name not in METHODS:  # registered for the model before
            register = register_method(name, source="tried, not shipped", start="embedding", reads_statistics=True)
            register(reading(side, weights))
        yield Row(name, ours(method=name))


def reading(side: str, weigh: Weights) -> Callable[[ForwardPass, Seeds], TokenScores]:
    """A reading as a method: Chefer's rule whose keys or queries are weighted."""

    def scores(forward: ForwardPass, seeds: Seeds) -> TokenScores:
        calls, shares = forward.places.calls, key_weights(forward)
        weights = {number: weigh(of_call, _size(forward, number)) for number, of_call in shares.items()}
        propagation = RowPropagation(
            forward.places, ("positive",), forward.memory_budget, key_weights=weights if side == "keys" else {}
        )
        numbers = {call.name: number for number, call in enumerate(calls)}

        def weighted(call: AttentionCall, gradient: Tensor) -> None:
            if side == "queries":  # a row of A ∘ G is as its gradient
                number = numbers[call.name]
                rows = gather_tokens(weights[number], calls[number].queries, forward.places.slots)  # (R, 1, G, N)
                gradient = gradient * rows.squeeze(1).unsqueeze(-1)
            propagation(call, gradient)

        forward.tap.on_gradient = weighted
        try:
            seeds.gradients_at(first_tensors(forward.tap.calls))
        finally:
            forward.tap.on_gradient = None
        assert propagation.zero_gradient is not None
        return TokenScores(propagation.increments.sum(dim=2), propagation.zero_gradient)

    return scores


def _size(forward: ForwardPass, number: int) -> Tensor:
    """Mean σ of the tokens of each image in front of a call, (B, 1, 1): images follow each other in these models."""
    assert forward.tap.statistics is not None
    (statistic,) = forward.tap.statistics.of_call(number)
    return statistic.values.view(forward.batch, 1, -1).mean(dim=-1, keepdim=True)


def _scores(subject: Subject, row: Row) -> tuple[Tensor, Tensor]:
    """SRG (mean colour) and mask AP of each image."""
    maps = row.all_maps(subject.network, subject.images, subject.label, subject.grid)
    assert subject.masks is not None
    return gain(subject, maps, "mean"), mask_average_precision(maps, subject.masks)


def _table(subject: Subject, found: dict[str, tuple[Tensor, Tensor]], half: str) -> Iterator[str]:
    beside = [CHEFER] if half == "choose" else [CHEFER, "rollout", "default"]
    yield f"\n### {subject.name}\n\n{subject.about}. {len(subject.images)} images.\n"
    yield f"| | SRG, mean | mask AP | {' | '.join(f'SRG − {name}' for name in beside)} |\n|{'---|' * (3 + len(beside))}"
    for name, (srg, precision) in found.items():
        cells = [_difference(srg - found[other][0]) if name != other else "" for other in beside]
        yield f"| {name} | {mean(srg):.3f} | {mean(precision):.2f} | {' | '.join(cells)} |"


def _difference(gains: Tensor) -> str:
    low, high = interval(gains)
    return f"{mean(gains):+.4f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    main()
