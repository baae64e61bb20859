"""What holds over several fine-tunings of a model, and what holds for all comparisons of a claim together."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.faithfulness_methods import BEST, CHEFER, ROWS, Row
from benchmarks.faithfulness_models import Subject
from benchmarks.faithfulness_scores import RESAMPLES, Scores, judge, mean

#: What is asked where a model was fine-tuned several times: what the claims are about.
QUESTIONS = ("srg_mean", "srg_blur", "SaCo", "class sensitivity", "mask AP")
GAINS = {"srg_mean": "SRG, mean", "srg_blur": "SRG, blur", "SaCo": "SaCo"}
DEFAULT, ATTN_LRP = ROWS[0].name, "attn_lrp"
#: Each row's scores, those of one fine-tuning after the other.
OfSeeds = Mapping[str, Sequence[Scores]]


def scores_of_seeds(
    subjects: Sequence[Subject], rows: Sequence[Row], cache: Path, questions: Sequence[str] = QUESTIONS
) -> dict[str, list[Scores]]:
    """Every row that can be had on every fine-tuning of one model."""
    found: dict[str, list[Scores]] = {}
    for row in rows:
        if row.missing() is not None or (row.twin_of_vit and subjects[0].name.startswith("swin")):
            continue
        for number, subject in enumerate(subjects):
            print(f"{subject.name}, {number + 1} of {len(subjects)}: {row.name}", file=sys.stderr, flush=True)
            found.setdefault(row.name, []).append(judge(subject, row, cache, questions))
    return found


def spread(values: Sequence[Tensor], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds of each seed's mean over images, and the interval of a hierarchical bootstrap.

    Each resample draws as many seeds as there are, with replacement, and of each seed that it draws as many images as
    that has, with replacement. Images that several seeds share are drawn for each seed by itself. With one seed this is
    the percentile bootstrap over images. Undefined numbers (NaN) are left out.

    Args:
        values: of each seed, one number an image.
        confidence: of the interval.

    Returns:
        The mean, the lower and the upper end; all NaN where a seed has no number.
    """
    defined = [some[some.isfinite()].double() for some in values]
    if not all(len(some) for some in defined):
        return float("nan"), float("nan"), float("nan")
    resamples = round(RESAMPLES * max(1.0, 0.05 / (1 - confidence)))  # as many beyond either end as at 95 %
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(len(defined), (resamples, len(defined)), generator=generator)
    means = torch.empty(resamples, len(defined), dtype=torch.float64)
    for number, some in enumerate(defined):
        for place in range(len(defined)):
            of_place = (seeds[:, place] == number).nonzero()[:, 0]
            images = torch.randint(len(some), (len(of_place), len(some)), generator=generator)
            means[of_place, place] = some[images].mean(dim=1)
    ends = torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)
    low, high = means.mean(dim=1).quantile(ends).tolist()
    return sum(float(some.mean()) for some in defined) / len(defined), low, high


def tables(subjects: Sequence[Subject], seeds: Sequence[int], outcomes: OfSeeds) -> Iterator[str]:
    """For each question of faithfulness a table, rows by their means over the fine-tunings."""
    counts = ", ".join(str(len(subject.images)) for subject in subjects)
    accuracies = ", ".join(f"{subject.accuracy:.2f}" for subject in subjects)
    yield f"\n### {subjects[0].name}, {len(seeds)} fine-tunings\n"
    yield f"Seeds {', '.join(map(str, seeds))}: {counts} images, classified correctly (accuracy {accuracies}).\n"
    more = [name for name in ("class sensitivity", "mask AP") if name in outcomes[CHEFER][0]]
    asked = [question for question in GAINS if question in outcomes[CHEFER][0]]
    for question in asked:
        others = more if question == asked[0] else []
        heads = [GAINS[question], "of each", "− Chefer", f"− {ATTN_LRP}", *others]
        yield f"| | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}"
        for name, scores in outcomes.items():
            middle, low, high = spread([one[question] for one in scores])
            cells = [
                f"{middle:.3f} [{low:.3f}, {high:.3f}]",
                ", ".join(f"{mean(one[question]):.3f}" for one in scores),
                *(
                    "" if other == name or other not in outcomes else paired(scores, outcomes[other], question)
                    for other in (CHEFER, ATTN_LRP)
                ),
                *(f"{sum(mean(one[other]) for one in scores) / len(scores):.2f}" for other in others),
            ]
            yield f"| {name} | {' | '.join(cells)} |"
        yield ""


def paired(scores: Sequence[Scores], of_other: Sequence[Scores], question: str, confidence: float = 0.95) -> str:
    """Mean of the differences on the same image and its interval."""
    gains = [one[question] - other[question] for one, other in zip(scores, of_other, strict=True)]
    middle, low, high = spread(gains, confidence)
    return f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]"


def claims(outcomes: OfSeeds) -> Iterator[str]:
    """The default against Chefer's rule and `attn_lrp`, and the dearer mode against every other row.

    Beside the interval of each comparison stands one that holds for all of them together with 95 %: Bonferroni, at
    1 − 0.05 / m, where m is the number of other rows, whether they are compared here or not.
    """
    together = 1 - 0.05 / max(1, len(outcomes) - 1)
    compared = [(DEFAULT, other) for other in (CHEFER, ATTN_LRP)]
    compared += [(BEST, other) for other in outcomes if other != BEST]
    compared = [pair for pair in compared if set(pair) <= outcomes.keys()]
    if not compared:
        return
    asked = [question for question in GAINS if question in next(iter(outcomes.values()))[0]]
    heads = " | ".join(GAINS[question] for question in asked)
    yield f"| for all of {len(outcomes) - 1} together | {heads} |\n|{'---|' * (len(asked) + 1)}"
    for name, other in compared:
        cells = [paired(outcomes[name], outcomes[other], question, together) for question in asked]
        yield f"| `{name}` − {other} | {' | '.join(cells)} |"
