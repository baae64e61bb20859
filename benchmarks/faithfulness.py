"""How faithful the maps are, method by method, on three models: Markdown tables.

Methods were chosen on one half of the images (``--half choose``) and are reported on the other. With several
``--seeds`` each model is fine-tuned anew with each, and what is printed is what holds over them.
"""

from __future__ import annotations

import argparse
import datetime
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import timm
import torch
from torch import Tensor

from benchmarks import faithfulness_models, faithfulness_seeds, peers
from benchmarks.faithfulness_methods import BEST, CHEFER, ROWS, Row
from benchmarks.faithfulness_models import Subject
from benchmarks.faithfulness_scores import Scores, interval, judge, mean, price
from benchmarks.faithfulness_seeds import GAINS, QUESTIONS
from benchmarks.rewriting_models import DEFAULT_CACHE
from benchmarks.stamps import STAMPS

MODELS = ("photographs", "digits", "swin")
#: What was asked of the first row on the Swin: against grad-CAM.
SRG_OVER_CAM, SWIN_MASK_AP, GRAD_CAM = 0.03, 0.75, "grad_cam"
#: What was asked of one method (the first row): question, whether at least or at most, limit.
SRG_GAIN, MASK_AP, SENSITIVITY, PRICE = 0.03, 0.80, 0.45, 1.25
COLUMNS = ("SaCo", "class sensitivity", "sanity", "pointing", "mask AP", "energy", "two objects")
ALL_QUESTIONS = ("srg_mean", "srg_blur", *COLUMNS)
TIMED_IMAGES = 8

#: What a row came to: its scores and its price, or why there are none.
Outcome = tuple[Scores, float] | str


def main() -> None:
    options = _parse()
    torch.set_num_threads(1)
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, timm {timm.__version__}, "
        f"{peers.versions() or 'no peer installed'}; float32 on one thread; the half of the images to {options.half}"
    )
    wanted = (*options.only, CHEFER) if options.only else ("",)
    rows = [row for row in ROWS if any(part in row.name for part in wanted)]
    if len(options.seeds) > 1:
        for name in options.models:
            _over_seeds(name, rows, options)
        return
    (seed,) = options.seeds
    subjects = [subject for name in options.models if (subject := _subject(name, options, seed)) is not None]
    for subject, outcomes in compare(subjects, rows, options.cache, options.rounds, options.ask):
        print(*table(subject, outcomes), sep="\n")
        print(*leads(outcomes), sep="\n")
        known = {name: [result[0]] for name, result in outcomes.items() if not isinstance(result, str)}
        print("", *faithfulness_seeds.claims(known), sep="\n", flush=True)
        if len(rows) < len(ROWS) or options.ask or not options.rounds:
            continue  # what was asked is asked of the first row, beside all others
        asked = aims_of_swin(outcomes) if subject.name.startswith("swin") else aims(outcomes, subject.masks is not None)
        print(*asked, sep="\n", flush=True)


def _over_seeds(name: str, rows: Sequence[Row], options: argparse.Namespace) -> None:
    found = [_subject(name, options, seed) for seed in options.seeds]
    subjects = [subject for subject in found if subject is not None]
    if len(subjects) < len(found):
        return
    outcomes = faithfulness_seeds.scores_of_seeds(subjects, rows, options.cache, options.ask or QUESTIONS)
    print(*faithfulness_seeds.tables(subjects, options.seeds, outcomes), sep="\n")
    print(*faithfulness_seeds.claims(outcomes), sep="\n", flush=True)


def _subject(name: str, options: argparse.Namespace, seed: int) -> Subject | None:
    if name == "digits":
        return faithfulness_models.digits(options.cache, options.half, seed=seed, used_to_hiding=options.used_to_hiding)
    build = faithfulness_models.photographs_swin if name == "swin" else faithfulness_models.photographs
    try:
        return build(options.cache, options.half, options.stamps, seed, used_to_hiding=options.used_to_hiding)
    except FileNotFoundError as error:
        print(f"\n### {name}\n\nleft out: {error}")
        return None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="rows with one of these in the name")
    parser.add_argument("--half", choices=("choose", "report"), default="report", help="of the images")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="of the fine-tuning; several: what holds over them"
    )
    parser.add_argument(
        "--used-to-hiding", action="store_true", help="copies that were fine-tuned with patches hidden, as IDSDS asks"
    )
    parser.add_argument("--ask", nargs="+", default=(), metavar="QUESTION", help=f"some of: {', '.join(ALL_QUESTIONS)}")
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds of the timing that count (default 5); 0: no timing"
    )
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder that keeps weights and scores")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of Tux Paint's stamps")
    options = parser.parse_args()
    if options.rounds < 0:
        parser.error("--rounds: expected 0 or more")
    if unknown := set(options.ask) - set(ALL_QUESTIONS):
        parser.error(f"--ask: got {', '.join(sorted(unknown))}; expected some of {', '.join(ALL_QUESTIONS)}")
    if options.ask and not set(options.ask) & set(GAINS):
        parser.error(f"--ask: expected one of {', '.join(GAINS)} among them, which rows are compared by")
    return options


def compare(
    subjects: Sequence[Subject], rows: Sequence[Row], cache: Path, rounds: int, questions: Sequence[str] = ()
) -> Iterator[tuple[Subject, dict[str, Outcome]]]:
    """Every row on every subject; row by row, for the last ones may patch torch's classes for good."""
    outcomes: list[dict[str, Outcome]] = [{} for _ in subjects]
    for row in rows:
        for subject, of_subject in zip(subjects, outcomes, strict=True):
            if row.twin_of_vit and subject.name.startswith("swin"):
                of_subject[row.name] = "is set up for a ViT here"
                continue
            print(f"{subject.name}: {row.name}", file=sys.stderr, flush=True)
            of_subject[row.name] = outcome(subject, row, cache, rounds, questions)
    yield from zip(subjects, outcomes, strict=True)


def outcome(subject: Subject, row: Row, cache: Path, rounds: int, questions: Sequence[str] = ()) -> Outcome:
    """A row's scores and price, NaN without a round; the reason, where another library is missing or fails."""
    if (reason := row.missing()) is not None:
        return reason
    try:
        scores = judge(subject, row, cache, questions)
        return scores, price(subject, row, TIMED_IMAGES, rounds) if rounds else float("nan")
    except ImportError as error:
        return f"cannot be imported: {error}"
    except Exception as error:
        if row.package is None:
            raise  # it is ours
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def table(subject: Subject, outcomes: dict[str, Outcome]) -> Iterator[str]:
    """One line a row, paired differences to Chefer's rule beside its gains."""
    yield f"\n### {subject.name}\n"
    yield f"{subject.about}. {len(subject.images)} images, classified correctly (accuracy {subject.accuracy:.2f}).\n"
    chefer = outcomes[CHEFER]
    if isinstance(chefer, str):
        raise TypeError(f"{CHEFER}: {chefer}")
    columns = [name for name in COLUMNS if name in chefer[0]]
    gains = [gain for gain in ("srg_mean", "srg_blur") if gain in chefer[0]]
    heads = [*(head for gain in gains for head in (GAINS[gain], "− Chefer")), *columns, "× one forward and backward"]
    yield f"| | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}"
    for name, result in outcomes.items():
        if isinstance(result, str):
            yield f"| {name} | {result} |{' |' * (len(heads) - 1)}"
            continue
        scores, times = result
        cells = []
        for gain in gains:
            cells += [f"{mean(scores[gain]):.3f}", "" if name == CHEFER else difference(scores[gain], chefer[0][gain])]
        cells += [f"{mean(scores[column]):.2f}" for column in columns]
        yield f"| {name} | {' | '.join(cells)} | {'' if math.isnan(times) else f'{times:.2f}'} |"


def difference(gains: Tensor, of_other: Tensor) -> str:
    """Mean of the paired differences and its 95 % interval."""
    low, high = interval(gains - of_other)
    return f"{mean(gains - of_other):+.3f} [{low:+.3f}, {high:+.3f}]"


def leads(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """By how much the dearer mode is ahead of each other row, in paired differences; nothing where it was not run."""
    best = outcomes.get(BEST)
    if best is None or isinstance(best, str) or math.isnan(best[1]) or not {"srg_mean", "srg_blur"} <= best[0].keys():
        return
    yield f"\n| `{BEST}` − | SRG, mean | SRG, blur | time / its |\n|---|---|---|---|"
    for name, result in outcomes.items():
        if name != BEST and not isinstance(result, str):
            gains = [difference(best[0][gain], result[0][gain]) for gain in ("srg_mean", "srg_blur")]
            yield f"| {name} | {' | '.join(gains)} | {best[1] / result[1]:.2f} |"


def aims(outcomes: dict[str, Outcome], with_masks: bool) -> Iterator[str]:
    """What was asked of the first row, and what it came to."""
    (name, first), chefer = next(iter(outcomes.items())), outcomes[CHEFER]
    if isinstance(first, str) or isinstance(chefer, str):
        return
    gains = first[0]["srg_mean"] - chefer[0]["srg_mean"]
    low, _ = interval(gains)
    yield f"\n| asked of `{name}` | limit | measured | |\n|---|---|---|---|"
    yield _asked("SRG (mean) − Chefer", f"≥ {SRG_GAIN}", mean(gains), mean(gains) >= SRG_GAIN)
    yield _asked("lower end of its interval", "> 0", low, low > 0)
    if with_masks:
        precision = mean(first[0]["mask AP"])
        yield _asked("mask AP", f"≥ {MASK_AP:.2f}", precision, precision >= MASK_AP)
    sensitivity = mean(first[0]["class sensitivity"])
    yield _asked("class sensitivity", f"≥ {SENSITIVITY}", sensitivity, sensitivity >= SENSITIVITY)
    yield _asked("time / one forward and backward", f"≤ {PRICE}", first[1], first[1] <= PRICE)


def aims_of_swin(outcomes: dict[str, Outcome]) -> Iterator[str]:
    """What was asked of the first row on a Swin, and what it came to."""
    (name, first), cam = next(iter(outcomes.items())), outcomes[GRAD_CAM]
    if isinstance(first, str) or isinstance(cam, str):
        return
    gains, precision = first[0]["srg_mean"] - cam[0]["srg_mean"], first[0]["mask AP"]
    yield f"\n| asked of `{name}` | limit | measured, and its 95 % interval | |\n|---|---|---|---|"
    for what, limit, values in (
        (f"SRG (mean) − {GRAD_CAM}", SRG_OVER_CAM, gains),
        ("mask AP", SWIN_MASK_AP, precision),
    ):
        low, high = interval(values)
        met = "met" if mean(values) >= limit else "missed"
        yield f"| {what} | ≥ {limit} | {mean(values):.3f} [{low:.3f}, {high:.3f}] | {met} |"


def _asked(what: str, limit: str, measured: float, met: bool) -> str:
    return f"| {what} | {limit} | {measured:.3f} | {'met' if met else 'missed'} |"


if __name__ == "__main__":
    main()
