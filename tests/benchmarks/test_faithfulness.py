"""The benchmark that the default method rests on, on a tiny model and a few images: no stamps, no training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from benchmarks import faithfulness
from benchmarks.faithfulness_methods import BEST, CHEFER, ROWS, Row, ours
from benchmarks.faithfulness_models import REMAINDERS, Subject, shuffled_half
from benchmarks.faithfulness_scores import gain, interval, judge, mean, price, redrawn, runner_up
from benchmarks.faithfulness_twin import torchvision_twin
from tests.methods import OF_ANY_MODEL

SIDE, GRID, CLASSES, COUNT = 32, (4, 4), 5, 3
OBJECT = torch.zeros(COUNT, SIDE, SIDE)
OBJECT[:, 8:24, 8:16] = 1  # two of four columns' worth of patches: rows 1 and 2 of column 1


def small_network() -> nn.Module:
    torch.manual_seed(0)
    network = timm.models.VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=CLASSES, init_values=0.5
    )
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def subject() -> Subject:
    network = small_network()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(COUNT, 3, SIDE, SIDE, generator=generator)
    with torch.no_grad():
        label = network(images).argmax(dim=1)
    masks = torch.stack([OBJECT[0], OBJECT[0].flip(-1)]).expand(COUNT, 2, SIDE, SIDE)
    labels = torch.stack([label, (label + 1) % CLASSES], dim=1)
    return Subject("tiny", network, images, label, GRID, 4, OBJECT, (images, labels, masks), 1.0, "a tiny ViT")


def on_object(network: nn.Module, images: Tensor, target: Tensor, grid: tuple[int, int]) -> Tensor:
    """A map that is the mask, whatever the model."""
    return torch.nn.functional.adaptive_avg_pool2d(OBJECT[:1, None], grid)[:, 0].expand(len(images), *grid)


def test_every_method_of_the_library_has_a_row(subject: Subject) -> None:
    shown = {row.name.split(",")[0].split(" ")[0] for row in ROWS if row.package is None}
    assert set(OF_ANY_MODEL) <= shown
    for row in ROWS:
        if row.package is None:
            maps = row.all_maps(subject.network, subject.images, subject.label, GRID)
            assert maps.shape == (COUNT, *GRID)
            assert maps.isfinite().all()


def test_a_map_that_is_the_mask_scores_as_one(subject: Subject, tmp_path: Path) -> None:
    scores = judge(subject, Row("mask", on_object), tmp_path)
    assert scores["mask AP"].tolist() == scores["pointing"].tolist() == scores["energy"].tolist() == [1.0] * COUNT
    assert mean(scores["class sensitivity"]) == pytest.approx(0, abs=1e-6)  # blind to the class
    assert mean(scores["sanity"]) == pytest.approx(1)  # and to the weights
    assert mean(scores["two objects"]) == pytest.approx(0.5)  # the same object for both classes
    assert scores["srg_mean"].shape == scores["srg_blur"].shape == (COUNT,)


def test_a_faithful_order_gains_and_its_reverse_loses_as_much(subject: Subject) -> None:
    maps = ours(method="attn_lrp")(subject.network, subject.images, subject.label, GRID)
    forth, back = (gain(subject, sign * maps, "mean") for sign in (1, -1))
    torch.testing.assert_close(forth, -back, atol=1e-5, rtol=0)
    assert forth.mean() > 0


def test_scores_are_kept_by_what_is_in_the_maps(subject: Subject, tmp_path: Path) -> None:
    row = Row("mask", on_object)
    scores = judge(subject, row, tmp_path)
    (file,) = (tmp_path / "scores").iterdir()
    torch.save({"srg_mean": scores["srg_mean"] + 1}, file)
    torch.testing.assert_close(judge(subject, row, tmp_path)["srg_mean"], scores["srg_mean"] + 1)  # read, not computed
    judge(subject, Row("elsewhere", lambda *arguments: on_object(*arguments).flip(-1)), tmp_path)
    judge(dataclasses.replace(subject, masks=OBJECT.flip(-1)), row, tmp_path)
    assert len(list((tmp_path / "scores").iterdir())) == 3


def test_a_new_question_is_asked_alone_and_kept(subject: Subject, tmp_path: Path) -> None:
    asked: list[int] = []

    def maps(*arguments: object) -> Tensor:
        asked.append(1)
        return on_object(*arguments)  # type: ignore[arg-type]

    row = Row("mask", maps)
    assert set(judge(subject, row, tmp_path, ["srg_mean", "mask AP"])) == {"srg_mean", "mask AP"}
    assert len(asked) == 1  # the maps alone: nothing of the runner-up, of drawn weights, of two objects
    (file,) = (tmp_path / "scores").iterdir()
    torch.save({"srg_mean": torch.full((COUNT,), 7.0)}, file)  # as an older version kept it, without SaCo
    scores = judge(subject, row, tmp_path)
    assert scores["srg_mean"].tolist() == [7.0] * COUNT
    assert scores["SaCo"].shape == (COUNT,)
    assert set(torch.load(file)) == set(scores)
    before = len(asked)
    assert judge(subject, row, tmp_path).keys() == scores.keys()
    assert len(asked) == before + 1


def test_runner_up_is_the_second_class(subject: Subject) -> None:
    with torch.no_grad():
        second = subject.network(subject.images).topk(2, dim=1).indices[:, 1]
    assert runner_up(subject).tolist() == second.tolist()


def test_redrawing_leaves_the_network_alone(subject: Subject) -> None:
    before = {name: value.clone() for name, value in subject.network.state_dict().items()}
    other = redrawn(subject.network)
    assert not torch.equal(other.get_parameter("head.weight"), subject.network.get_parameter("head.weight"))
    for name, value in subject.network.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_twin_of_torchvision_is_the_same_function(subject: Subject) -> None:
    with torch.no_grad():
        expected, actual = subject.network(subject.images), torchvision_twin(subject.network)(subject.images)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_intervals_hold_the_mean_and_leave_out_what_is_undefined() -> None:
    values = torch.randn(80, generator=torch.Generator().manual_seed(0)) + 1
    low, high = interval(values)
    assert low < values.mean() < high
    assert interval(values) == (low, high)
    expected = 1.96 * values.std().item() / math.sqrt(80)  # of a normal mean
    assert (high - low) / 2 == pytest.approx(expected, rel=0.15)
    assert interval(torch.cat([values, torch.tensor([torch.nan])])) == (low, high)
    assert all(map(math.isnan, interval(torch.tensor([torch.nan]))))


def test_no_image_is_in_both_halves() -> None:
    chosen, reported = (set(shuffled_half(101, half).tolist()) for half in ("choose", "report"))
    assert not chosen & reported
    assert len(chosen | reported) == 101
    remainders = [remainder for part in REMAINDERS.values() for remainder in part]
    assert sorted(remainders) == [0, 1, 2, 3]


def test_another_library_that_fails_is_a_row_that_says_why(subject: Subject, tmp_path: Path) -> None:
    def fails(*arguments: object) -> Tensor:
        raise RuntimeError("no such\nlayer")

    def outcome(row: Row) -> faithfulness.Outcome:
        return faithfulness.outcome(subject, row, tmp_path, rounds=1)

    assert outcome(Row("absent", fails, package="no-such-package")) == "not installed"
    assert outcome(Row("broken", fails, package="torch")) == "fails: RuntimeError: no such layer"
    with pytest.raises(RuntimeError, match="no such"):
        outcome(Row("ours", fails))


def test_tables_compare_with_chefer_and_say_what_is_missed(subject: Subject, tmp_path: Path) -> None:
    rows = [
        Row("first", on_object),
        Row(CHEFER, ours(method="gradient_guided")),
        Row("gone", on_object, package="no-such"),
    ]
    ((found, outcomes),) = faithfulness.compare([subject], rows, tmp_path, rounds=1)
    lines = "\n".join(faithfulness.table(found, outcomes)).split("\n")
    cells = [line.count("|") for line in lines if line.startswith("|")]
    assert len(cells) == 5  # head, rule, three rows
    assert len(set(cells)) == 1
    assert "gone | not installed" in lines[-1]

    asked = "\n".join(faithfulness.aims(outcomes, with_masks=True))
    assert "| class sensitivity | ≥ 0.45 | 0.000 | missed |" in asked or "-0.000 | missed |" in asked
    assert "| mask AP | ≥ 0.80 | 1.000 | met |" in asked
    first, chefer = outcomes["first"], outcomes[CHEFER]
    assert not isinstance(first, str)
    assert not isinstance(chefer, str)
    first[0]["srg_mean"] = chefer[0]["srg_mean"] + 0.031
    asked = "\n".join(faithfulness.aims(outcomes, with_masks=True))
    assert "| SRG (mean) − Chefer | ≥ 0.03 | 0.031 | met |" in asked
    assert "mask AP" not in "\n".join(faithfulness.aims(outcomes, with_masks=False))


def test_some_questions_without_timing(subject: Subject, tmp_path: Path) -> None:
    rows = [Row("first", on_object), Row(BEST, ours()), Row(CHEFER, ours(method="gradient_guided"))]
    asked = ("srg_mean", "mask AP")
    ((found, outcomes),) = faithfulness.compare([subject], rows, tmp_path, rounds=0, questions=asked)
    lines = "\n".join(faithfulness.table(found, outcomes)).split("\n")
    assert "| | SRG, mean | − Chefer | mask AP | × one forward and backward |" in lines
    scores, price_of = outcomes["first"]
    assert set(scores) == set(asked)
    assert math.isnan(price_of)  # type: ignore[arg-type]
    assert next(line for line in lines if line.startswith("| first |")).endswith("| 1.00 |  |")
    assert not list(faithfulness.leads(outcomes))


def test_leads_are_paired_differences_to_every_other_row() -> None:
    def outcome(gain: float, price: float) -> faithfulness.Outcome:
        return {"srg_mean": torch.full((3,), gain), "srg_blur": torch.full((3,), gain / 2)}, price

    outcomes = {"default": outcome(0.5, 2.0), BEST: outcome(0.6, 10.0), "lxt": "not installed", CHEFER: outcome(0.8, 1)}
    lines = list(faithfulness.leads(outcomes))
    assert lines[1:] == [
        "| default | +0.100 [+0.100, +0.100] | +0.050 [+0.050, +0.050] | 5.00 |",
        f"| {CHEFER} | -0.200 [-0.200, -0.200] | -0.100 [-0.100, -0.100] | 10.00 |",
    ]
    del outcomes[BEST]
    assert not list(faithfulness.leads(outcomes))


def test_a_price_is_a_ratio(subject: Subject) -> None:
    twice = Row("twice", lambda network, images, target, grid: network(torch.cat([images] * 8)))
    assert price(subject, twice, images=COUNT, rounds=3) > 0
