"""What is said over several fine-tunings of a model, on numbers that are known and on tiny networks."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.faithfulness_methods import BEST, CHEFER, Row, ours
from benchmarks.faithfulness_models import Subject
from benchmarks.faithfulness_scores import Scores, interval
from benchmarks.faithfulness_seeds import GAINS, QUESTIONS, claims, scores_of_seeds, spread, tables
from benchmarks.rewriting_models import of_seed
from tests.benchmarks.test_faithfulness import GRID, on_object, small_network, subject

__all__ = ["subject"]  # the fixture


def numbers(*means: float, images: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [middle + torch.randn(images, generator=generator) for middle in means]


def test_one_seed_is_a_bootstrap_over_images() -> None:
    (values,) = numbers(1.0, images=400)
    middle, low, high = spread([values])
    assert middle == pytest.approx(values.mean().item())
    expected = interval(values)
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_what_differs_between_seeds_widens_the_interval() -> None:
    alike, apart = numbers(0.0, 0.0, 0.0), numbers(-3.0, 0.0, 3.0)
    widths = [high - low for _, low, high in map(spread, (alike, apart))]
    # Of a mean of means: the images' variance over 3·40, and the seeds' own over 3.
    within = 1 / (3 * 40)
    assert widths[1] / 2 == pytest.approx(1.96 * math.sqrt(6 / 3 + within), rel=0.2)
    assert widths[0] < 0.25 * widths[1]


def test_every_seed_counts_as_much_as_another() -> None:
    few, many = torch.ones(5), torch.zeros(500)
    assert spread([few, many])[0] == pytest.approx(0.5)
    undefined = torch.tensor([torch.nan, 1.0, 1.0])
    assert spread([undefined, few]) == (1.0, 1.0, 1.0)
    assert all(map(math.isnan, spread([few, torch.tensor([torch.nan])])))


def test_more_confidence_is_a_wider_interval_that_can_be_had() -> None:
    values = numbers(0.0, 0.5)
    (_, low, high), (_, lower, higher) = spread(values), spread(values, confidence=1 - 0.05 / 20)
    assert lower < low < high < higher


def outcomes(**gains: float) -> dict[str, list[Scores]]:
    names = {"chefer": CHEFER, "best": BEST}
    return {
        names.get(name, name): [
            {**{question: torch.full((4,), gain + seed) for question in GAINS}, "class sensitivity": torch.ones(4)}
            for seed in (0, 1)
        ]
        for name, gain in gains.items()
    }


def test_claims_are_paired_and_name_all_that_was_compared() -> None:
    lines = list(claims(outcomes(default=0.5, best=0.75, attn_lrp=0.375, chefer=0.25)))
    assert lines[0].startswith("| for all of 3 together |")
    assert lines[1].startswith(f"| `default` − {CHEFER} | +0.250 [+0.250, +0.250] |")
    assert lines[2].startswith("| `default` − attn_lrp | +0.125 [+0.125, +0.125] |")
    assert [line.split(" | ")[0] for line in lines[3:]] == [
        f"| `{BEST}` − {other}" for other in ("default", "attn_lrp", CHEFER)
    ]
    assert not list(claims(outcomes(rollout=0.5, chefer=0.25)))


def test_tables_of_fine_tunings(subject: Subject, tmp_path: Path) -> None:
    other = small_network()
    with torch.no_grad():
        other.get_parameter("blocks.0.attn.qkv.weight").mul_(1.5)
    subjects = [subject, dataclasses.replace(subject, network=other)]
    rows = [Row("default", on_object), Row(CHEFER, ours()), Row("gone", on_object, package="no-such-package")]
    found = scores_of_seeds(subjects, rows, tmp_path)
    assert list(found) == ["default", CHEFER]
    assert all(set(scores) == set(QUESTIONS) for of_seeds in found.values() for scores in of_seeds)
    assert not torch.equal(found[CHEFER][0]["srg_mean"], found[CHEFER][1]["srg_mean"])
    lines = "\n".join(tables(subjects, (0, 1), found)).split("\n")
    assert sum(line.startswith("| default |") for line in lines) == len(GAINS)
    middle = sum(scores["srg_mean"].mean().item() for scores in found["default"]) / 2
    assert next(line for line in lines if line.startswith("| default |")).startswith(f"| default | {middle:.3f} [")
    for line in lines:
        assert line.count("|") in (0, 6, 8)  # two more of the first table: sensitivity and mask AP


def test_files_of_the_first_seed_keep_their_names() -> None:
    assert of_seed(Path("a/digits.pt"), 0) == Path("a/digits.pt")
    assert of_seed(Path("a/digits.pt"), 2) == Path("a/digits-seed2.pt")


def test_maps_are_of_the_network_that_is_judged(subject: Subject, tmp_path: Path) -> None:
    seen: list[nn.Module] = []

    def maps(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
        seen.append(network)
        return on_object(network, images, target, grid)

    other = small_network()
    scores_of_seeds([dataclasses.replace(subject, network=other)], [Row(CHEFER, maps)], tmp_path)
    assert all(network is other for network in seen)
    assert subject.grid == GRID
