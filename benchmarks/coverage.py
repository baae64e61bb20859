"""Which families of image models can be explained by which method: ``python -m benchmarks.coverage``.

One small model with random weights of each family (`tests.families`) under every registered method, judged by
`benchmarks.coverage_judging`. ``--write docs/coverage.md`` writes what is printed.
"""

from __future__ import annotations

import argparse
import datetime
import multiprocessing
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import timm
import torch
import torchvision
import transformers

from benchmarks.coverage_judging import BATCH_TOLERANCE, TOLERANCE, Judged, Judgement, Verdict, every_method, judge
from lightning_attngrad.explain.default import DEFAULT_METHOD, STAND_INS
from tests.families import FAMILIES

#: Of the models with image tokens and softmax attention, so many are to work with the default method.
AIM = 0.95
_SYMBOLS: dict[Verdict, str] = {
    "works": "✓",
    "unchecked": "(✓)",
    "refused": "–",
    "wrong": "**wrong**",
    "fails": "**fails**",
}
_LEGEND = (
    "✓ the map equals the naive reference of `tests/references/` (all of the attention and its gradients kept, in "
    "float64; where tokens lie is found by making bands of the image brighter and looking what moves) to "
    f"{TOLERANCE:g} of its largest value, and a batch of four gives what four single images give, to "
    f"{BATCH_TOLERANCE:g}. "
    "(✓) no reference covers the method on this model: the map is finite, not zero, and the same in a batch. "
    "– refused, for the reason below. **wrong**, **fails**: as they say."
)


def main() -> None:
    options = _parse()
    names = [name for name in FAMILIES if not options.only or any(part in name for part in options.only)]
    begun = time.perf_counter()
    judged = list(_progress(_judged(names, options.processes), len(names)))
    lines = report(judged, time.perf_counter() - begun)
    print("\n".join(lines))
    if options.write is not None:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="NAME", help="families whose name has one of these in it"
    )
    parser.add_argument("--write", type=Path, help="Markdown file for the table")
    parser.add_argument("--processes", type=int, default=2)
    return parser.parse_args()


def _judged(names: Sequence[str], processes: int) -> Iterator[Judged]:
    if processes < 2 or len(names) < 2:
        yield from map(_judge_named, names)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, of_family in zip(names, pool.imap(_judge_named, names), strict=True):
            assert of_family.name == name
            yield of_family


def _judge_named(name: str) -> Judged:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return judge(FAMILIES[name], every_method())


def _progress(judged: Iterable[Judged], number: int) -> Iterator[Judged]:
    for count, of_family in enumerate(judged, 1):
        verdicts = " ".join(judgement.verdict for judgement in of_family.judgements)
        print(f"{count}/{number} {of_family.name} {of_family.seconds:.0f} s: {verdicts}", file=sys.stderr, flush=True)
        yield of_family


def report(judged: Sequence[Judged], seconds: float) -> list[str]:
    """The Markdown file, line by line."""
    methods = [judgement.method for judgement in judged[0].judgements]
    reasons = _reasons(judged)
    versions = ", ".join(
        f"{library.__name__} {library.__version__}" for library in (torch, timm, torchvision, transformers)
    )
    lines = [
        "# Coverage: families of models and methods",
        "",
        f"Written by `python -m benchmarks.coverage` on {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d} in "
        f"{seconds / 60:.0f} minutes: {versions}. Small models with random weights.",
        "",
        _LEGEND,
        "",
        *_summary(judged),
        "",
        "| model | tokens mix by | " + " | ".join(f"`{method}`" for method in methods) + " |",
        "|---|---|" + "---|" * len(methods),
    ]
    for of_family in judged:
        cells = [_cell(judgement, reasons) for judgement in of_family.judgements]
        lines.append(f"| {of_family.name} | {_MIXING[of_family.mixing]} | " + " | ".join(cells) + " |")
    if reasons:
        lines += ["", "## What was said", ""]
        lines += [f"{number}. {said}" for said, number in reasons.items()]
    return lines


_MIXING = {
    "tokens": "softmax attention",
    "partly": "softmax and other attention",
    "otherwise": "other attention",
    "none": "no attention",
}


def _summary(judged: Sequence[Judged]) -> list[str]:
    every = [judgement for of_family in judged for judgement in of_family.judgements]
    counts = Counter(judgement.verdict for judgement in every)
    with_tokens = [of_family for of_family in judged if of_family.mixing in ("tokens", "partly")]
    good = [of_family for of_family in with_tokens if _answered_by_default(of_family)]
    checked = [
        of_family
        for of_family in with_tokens
        if any(j.method == "gradient_guided" and j.verdict == "works" for j in of_family.judgements)
    ]
    share = len(good) / len(with_tokens) if with_tokens else 1.0
    return [
        f"- {len(judged)} models × {len(judged[0].judgements)} methods: "
        + ", ".join(f"{counts[verdict]} {verdict}" for verdict in _SYMBOLS)
        + " (asked: none wrong, none that fails)",
        f"- of {len(with_tokens)} with image tokens and softmax attention the default, `{DEFAULT_METHOD}` or what "
        f"stands in for it, gives a map of {len(good)}, {share:.0%} (asked: {AIM:.0%}); `gradient_guided` equals the "
        f"reference on {len(checked)}",
    ]


def _answered_by_default(of_family: Judged) -> bool:
    """Whether the default method, or what stands in for it where it is refused, gives a map that is not wrong."""
    verdicts = {judgement.method: judgement for judgement in of_family.judgements}
    judgement = verdicts.get(DEFAULT_METHOD)
    for error, method in STAND_INS.items():
        if judgement is not None and judgement.said.startswith(error.__name__):
            judgement = verdicts.get(method)
    return judgement is not None and judgement.verdict in ("works", "unchecked")


def _reasons(judged: Sequence[Judged]) -> dict[str, int]:
    """What was said of cells that do not work, once each, numbered."""
    found: dict[str, int] = {}
    for of_family in judged:
        for judgement in of_family.judgements:
            if judgement.verdict in ("refused", "wrong", "fails"):
                found.setdefault(_said(judgement), len(found) + 1)
    return found


def _said(judgement: Judgement) -> str:
    """The message without what differs from model to model: names and shapes."""
    said = " ".join(judgement.said.split())
    said = re.sub(r"'[^' ]*[.0-9][^' ]*'", "'…'", said)
    said = re.sub(r"\(\d[\d, ]*\) for \d+ images(?: of \d+×\d+ pixels)?", "(…)", said)
    return re.sub(r"(Error: )\w+(:| makes| attends| has)", r"\1…\2", said) if judgement.verdict == "refused" else said


def _cell(judgement: Judgement, reasons: dict[str, int]) -> str:
    symbol = _SYMBOLS[judgement.verdict]
    number = reasons.get(_said(judgement)) if judgement.verdict in ("refused", "wrong", "fails") else None
    return symbol if number is None else f"{symbol} ({number})"


if __name__ == "__main__":
    main()
