"""What is asked of images, which classes they are rewritten to, and the numbers of what came of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import NonFiniteOutputError
from lightning_attngrad.measure.questions import question_of_maps
from lightning_attngrad.measure.rewrite_scalars import ill_health, ratio_scalars, rewrite_scalars
from lightning_attngrad.measure.rewriting import (
    RADII,
    FrozenTargets,
    RewriteSettings,
    RewrittenPairs,
    comparison_hash,
    rewrite_images,
)
from lightning_attngrad.probe import Evaluation, Normalisation, PartSharing, find_pixels
from lightning_attngrad.probe.evaluation import Kept
from tests.callbacks.small_runs import Squares, tiny_vit

INF, NAN = math.inf, math.nan
PIXELS = Normalisation((0.0,), (1.0,), "the test")


def evaluation_of(
    model: nn.Module, images: Tensor, targets: Any = None, known: Normalisation | None = PIXELS
) -> Evaluation:
    targets = None if targets is None else torch.tensor(targets)
    return Evaluation(model.eval(), model, images, targets, images, None, "now", normalisation=known)


def counting(evaluation: Evaluation) -> tuple[Evaluation, list[int]]:
    """The same, and the numbers of images that go through its model: outside of it, where nothing is put back."""
    batches: list[int] = []
    forward = evaluation.forward
    return dataclasses.replace(evaluation, forward=lambda some: batches.append(len(some)) or forward(some)), batches


class Scores(nn.Module):
    """Logits that are written in the first pixels of an image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : self.classes]


def scored(*logits: tuple[float, ...]) -> tuple[Scores, Tensor]:
    """A model, and images that it gives these logits for."""
    images = torch.zeros(len(logits), 1, 4, 4)
    images.flatten(1)[:, : len(logits[0])] = torch.tensor(logits)
    return Scores(len(logits[0])), images


# Settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", RADII)
def test_radii_come_with_the_norm(norm: str) -> None:
    assert RewriteSettings(norm).radii == RADII[norm]


def test_the_defaults_are_those_that_order_checkpoints() -> None:
    settings = RewriteSettings()
    assert (settings.norm, settings.steps, settings.target, settings.top_share) == ("linf", 16, "random", None)
    assert [radius * 255 for radius in settings.radii] == pytest.approx([1, 2, 4, 8, 16])


@pytest.mark.parametrize("given", [(0.2, 0.1, 0.2), [0.1, 0.2], np.array([0.2, 0.1]), {0.1, 0.2}])
def test_radii_are_sorted_and_said_once_whatever_holds_them(given: Any) -> None:
    assert RewriteSettings("l2", radii=given) == RewriteSettings("l2", radii=(0.1, 0.2))
    assert RewriteSettings("l2", radii=(1, 2)).radii == (1.0, 2.0)


def test_settings_as_plain_values_survive_json_and_make_the_same_settings() -> None:
    settings = RewriteSettings("l2", 20, 3, (0.5, 1.5), 0.25)
    plain = json.loads(json.dumps(settings.plain()))
    assert plain == settings.plain()
    assert plain == {"norm": "l2", "steps": 20, "target": 3, "radii": [0.5, 1.5], "top_share": 0.25}
    assert RewriteSettings(**plain) == settings


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("norm", "l1", "linf, l2, l0, l0_patches"),
        ("norm", None, "linf, l2, l0, l0_patches"),
        ("steps", 0, "number of gradients"),
        ("steps", -3, "number of gradients"),
        ("steps", 2.0, "number of gradients"),
        ("steps", True, "number of gradients"),
        ("target", "likely", "random, runner_up, least_likely, all"),
        ("target", -1, "a class from 0"),
        ("target", True, "a class from 0"),
        ("target", 1.0, "a class from 0"),
        ("target", None, "a class from 0"),
        ("radii", (0.1,), "two or more"),
        ("radii", (0.1, 0.1), "two or more"),
        ("radii", (0.0, 0.1), "positive numbers"),
        ("radii", (-0.1, 0.1), "positive numbers"),
        ("radii", (0.1, NAN), "positive numbers"),
        ("radii", (0.1, INF), "positive numbers"),
        ("radii", (True, 0.1), "positive numbers"),
        ("radii", ("4/255", "8/255"), "positive numbers"),
        ("radii", "4/255", "positive numbers"),
        ("radii", 0.1, "positive numbers"),
        ("radii", None, "positive numbers"),
        ("top_share", 0, "above 0"),
        ("top_share", 1.5, "at most 1"),
        ("top_share", True, "above 0"),
        ("top_share", NAN, "above 0"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(argument: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        RewriteSettings(**{argument: value})
    message = str(caught.value)
    assert message.startswith(f"{argument}: got ")
    assert expected in message


def test_radii_of_pixels_are_whole_pixels_at_least() -> None:
    assert RewriteSettings("l0").radii == (1.0, 4.0, 16.0, 64.0, 256.0)
    with pytest.raises(ValueError, match=r"radii: got \(0\.5, 4\); expected numbers of pixels, 1 or more"):
        RewriteSettings("l0", radii=(0.5, 4))


def test_a_share_of_the_patches_is_not_asked_of_the_norm_that_looks_for_it() -> None:
    with pytest.raises(ValueError, match=r"top_share: got 0\.5; norm='l0_patches' looks for the share"):
        RewriteSettings("l0_patches", top_share=0.5)


@pytest.mark.parametrize(
    ("norm", "radius", "name"),
    [
        ("linf", 4 / 255, "4_255"),
        ("linf", 16 * (1 / 255), "16_255"),
        ("linf", 1.0, "255_255"),
        ("linf", 0.5, "0.5"),
        ("linf", 0.3 / 255, "0.00117647"),
        ("l2", 4 / 255, "0.0156863"),
        ("l2", 1.0, "1"),
        ("l2", 0.25, "0.25"),
        ("l0", 64.0, "64"),
        ("l0_patches", 0.05, "0.05"),
    ],
)
def test_names_of_radii(norm: str, radius: float, name: str) -> None:
    assert RewriteSettings(norm).radius_name(radius) == name


# Classes --------------------------------------------------------------------------------------------------------


def test_a_known_class_is_believed_and_an_unknown_one_is_the_predicted_one() -> None:
    model, images = scored((0, 5, 1, 2), (0, 5, 1, 2), (0, 5, 1, 2), (7, 0, 0, 0))
    frozen = FrozenTargets.choose(evaluation_of(model, images, [3, -1, 4, 0]), "runner_up", seed=0)
    assert frozen.own.tolist() == [3, 1, 1, 0]  # 4 is no class of this model
    assert frozen.targets.tolist() == [[1], [3], [3], [1]]


def test_without_labels_the_predicted_classes_are_the_images_own() -> None:
    model, images = scored((0, 5, 1), (9, 5, 1))
    frozen = FrozenTargets.choose(evaluation_of(model, images), "least_likely", seed=0)
    assert frozen.own.tolist() == [1, 0]
    assert frozen.targets.tolist() == [[0], [2]]


def test_random_targets_are_never_the_images_own_and_depend_on_the_seed_alone() -> None:
    images = torch.rand(40, 1, 4, 4)
    labels = [index % 5 for index in range(40)]
    one, again = (FrozenTargets.choose(evaluation_of(Scores(5), images, labels), "random", seed=3) for _ in range(2))
    other = FrozenTargets.choose(evaluation_of(Scores(5), images, labels), "random", seed=4)
    darker = FrozenTargets.choose(evaluation_of(Scores(5), images / 2, labels), "random", seed=3)
    assert (one.targets[:, 0] != one.own).all()
    assert len(one.targets.unique()) == 5
    assert torch.equal(one.targets, again.targets)
    assert torch.equal(one.targets, darker.targets)
    assert not torch.equal(one.targets, other.targets)


def test_all_is_every_class_but_the_images_own() -> None:
    model, images = scored((0, 5, 1), (9, 5, 1))
    frozen = FrozenTargets.choose(evaluation_of(model, images, [2, -1]), "all", seed=0)
    assert frozen.targets.tolist() == [[0, 1], [1, 2]]


def test_a_class_by_number() -> None:
    model, images = scored((0, 5, 1), (9, 5, 1))
    assert FrozenTargets.choose(evaluation_of(model, images), 2, seed=0).targets.tolist() == [[2], [2]]
    with pytest.raises(ValueError, match=r"target: got 3; the model's classes are 0 to 2"):
        FrozenTargets.choose(evaluation_of(model, images), 3, seed=0)


def test_the_model_sees_no_more_images_at_once_than_in_a_search() -> None:
    images = torch.rand(19, 1, 4, 4)
    evaluation, batches = counting(evaluation_of(Scores(3), images))
    frozen = FrozenTargets.choose(evaluation, "random", seed=0)
    assert batches == [8, 8, 3]
    assert torch.equal(frozen.own, images.flatten(1)[:, :3].argmax(1))


@pytest.mark.parametrize("output", [lambda images: images, lambda images: images.mean((1, 2, 3)), lambda images: None])
def test_a_model_that_gives_no_row_of_logits_is_refused(output: Any) -> None:
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return output(images)

    with pytest.raises(ValueError, match=r"model: its output .* not one row of logits an image"):
        FrozenTargets.choose(evaluation_of(Odd(), torch.rand(2, 1, 4, 4)), "random", seed=0)


def test_the_hash_stands_for_all_that_has_to_be_the_same() -> None:
    settings, frozen = RewriteSettings(), FrozenTargets(torch.tensor([0, 1]), torch.tensor([[1], [2]]))
    evaluation = dataclasses.replace(evaluation_of(Scores(3), torch.rand(2, 1, 4, 4) / 2), images_hash="images")
    same = FrozenTargets(torch.tensor([0, 1]), torch.tensor([[1], [2]]))
    one = comparison_hash(evaluation, settings, frozen)
    assert one == comparison_hash(dataclasses.replace(evaluation, label="later"), RewriteSettings(), same)
    others = [
        *(
            comparison_hash(dataclasses.replace(evaluation, **changed), settings, frozen)
            for changed in (
                {"images_hash": "others"},
                {"images_hash": None},
                {"model_path": "net"},
                {"precision": "bf16-mixed"},
                {"normalisation": Normalisation((0.0,), (0.5,), "the test")},
                {"normalisation": Normalisation((0.1,), (1.0,), "the test")},
            )
        ),
        *(
            comparison_hash(evaluation, settings, other)
            for other in (
                FrozenTargets(torch.tensor([0, 2]), frozen.targets),
                FrozenTargets(frozen.own, torch.tensor([[1], [0]])),
                FrozenTargets(frozen.own, torch.tensor([[1, 2]])),
            )
        ),
        *(
            comparison_hash(evaluation, dataclasses.replace(settings, **{name: value}), frozen)
            for name, value in {
                "norm": "l2",
                "steps": 17,
                "target": "all",
                "radii": (0.1, 0.2),
                "top_share": 0.5,
            }.items()
        ),
    ]
    hashes = {one, *others}
    assert len(hashes) == 1 + len(others)
    assert all(len(digest) == 64 for digest in hashes)


def test_targets_of_a_run_are_chosen_once_for_all_its_callbacks() -> None:
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    evaluation = evaluation_of(Scores(5), images)
    first = FrozenTargets.of_this_run(evaluation, "runner_up")
    later = dataclasses.replace(evaluation, model=Scores(5), images=images.flip(0), label="later")
    assert FrozenTargets.of_this_run(later, "runner_up") is first
    assert FrozenTargets.of_this_run(later, "least_likely") is not first


# Numbers --------------------------------------------------------------------------------------------------------


def pairs_of(distance: list[float], **columns: Any) -> RewrittenPairs:
    count = len(distance)
    defaults = {
        "image": range(count),
        "own": [0] * count,
        "target": [1] * count,
        "predicted": [0] * count,
        "psnr": [30.0] * count,
        "ssim": [0.5] * count,
        "survives": [True] * count,
        "map_shift": [0.25] * count,
        "zero_gradient": [0.0] * count,
        "unconverged": [False] * count,
        "one_step_better": [False] * count,
    }
    columns = {name: torch.tensor(list(values)) for name, values in {**defaults, **columns}.items()}
    return RewrittenPairs(distance=torch.tensor(distance), **columns)


def test_every_number_of_four_pairs_made_by_hand() -> None:
    pairs = pairs_of(
        [0.02, 0.08, INF, 0.0],
        own=[0, 1, 2, 3],
        predicted=[0, 1, 2, 0],  # the last one is not seen as its own class
        psnr=[20.0, 40.0, 10.0, INF],  # of a failure it does not count
        ssim=[0.2, 0.4, 0.9, 1.0],
        survives=[True, False, True, True],
        map_shift=[0.1, NAN, 0.5, 0.3],
        zero_gradient=[0.0, 0.5, 1.0, 0.0],
        unconverged=[True, False, True, True],
        one_step_better=[True, False, False, False],
    )
    scalars = rewrite_scalars(pairs, RewriteSettings(radii=(0.01, 0.04, 0.16)))
    log = np.log
    # Shares of the log radii from 0.01 to 0.16 at which each pair is rewritten.
    area = np.mean([log(0.16 / 0.02) / log(16), log(0.16 / 0.08) / log(16), 0, 1])
    assert scalars == pytest.approx(
        {
            "median_linf": (0.02 + 0.08) / 2,
            "q25_linf": 0.75 * 0.02,  # place 0.75 between 0 and 0.02
            "q75_linf": INF,  # place 2.25 leans on a failure
            "success/0.01": 1 / 4,
            "success/0.04": 2 / 4,
            "success/0.16": 3 / 4,
            "robust_accuracy/0.01": 3 / 4,
            "robust_accuracy/0.04": 2 / 4,
            "robust_accuracy/0.16": 1 / 4,
            "area": float(area),
            "psnr": 40.0,
            "ssim": (0.2 + 0.4 + 1.0) / 3,
            "survives_8_bit": 2 / 3,
            "map_shift": 0.3,
            "health/zero_gradient": 0.375,
            "health/unconverged": 0.75,
            "health/never_rewritten": 0.25,
            "health/one_step_better": 0.25,
        }
    )


def test_names_carry_norm_and_radii() -> None:
    names = set(rewrite_scalars(pairs_of([0.1, 0.2]), RewriteSettings()))
    levels = ("1_255", "2_255", "4_255", "8_255", "16_255")
    assert {name for name in names if "255" in name} == {
        f"{kind}/{level}" for kind in ("success", "robust_accuracy") for level in levels
    }
    l2 = set(rewrite_scalars(pairs_of([0.1, 0.2]), RewriteSettings("l2")))
    assert {"median_l2", "q25_l2", "q75_l2", "success/0.25", "robust_accuracy/4"} <= l2
    patches = set(rewrite_scalars(pairs_of([0.1, 0.2]), RewriteSettings("l0_patches", radii=(0.1, 0.5))))
    assert {"median_l0_patches", "success/0.1", "success/0.5"} <= patches
    assert not {name for name in l2 | patches if "linf" in name}


def test_a_distance_of_a_radius_lies_within_it() -> None:
    scalars = rewrite_scalars(pairs_of([4 / 255, 4 / 255]), RewriteSettings())
    assert (scalars["success/2_255"], scalars["success/4_255"], scalars["robust_accuracy/4_255"]) == (0, 1, 0)


def test_where_nothing_was_rewritten_there_is_no_quality_but_every_other_number() -> None:
    scalars = rewrite_scalars(pairs_of([INF, INF], map_shift=[NAN, NAN]), RewriteSettings())
    undefined = {name for name, value in scalars.items() if math.isnan(value)}
    assert undefined == {"psnr", "ssim", "survives_8_bit", "map_shift"}
    without_maps = rewrite_scalars(dataclasses.replace(pairs_of([INF, INF]), map_shift=None), RewriteSettings())
    assert without_maps.keys() == scalars.keys() - {"map_shift"}
    assert scalars["median_linf"] == scalars["q25_linf"] == INF
    assert scalars["area"] == scalars["success/16_255"] == 0
    assert scalars["health/never_rewritten"] == scalars["robust_accuracy/16_255"] == 1


def test_each_pair_against_itself_at_the_reference() -> None:
    now, reference = torch.tensor([0.1, 0.1, 0.4]), torch.tensor([0.2, 0.2, 0.1])
    scalars = ratio_scalars(now, reference)
    assert scalars["log_ratio"] == pytest.approx(math.log(0.5))
    assert scalars["log_ratio_low"] <= scalars["log_ratio"] <= scalars["log_ratio_high"]
    assert set(ratio_scalars(now, now).values()) == {0.0}
    nothing = ratio_scalars(now, None)
    assert nothing.keys() == scalars.keys()
    assert all(math.isnan(value) for value in nothing.values())


HEALTHY = {"health/zero_gradient": 0.1, "health/never_rewritten": 0.05, "health/unconverged": 0.25} | {
    "health/one_step_better": 0.05
}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"health/zero_gradient": 0.11}, "no gradient"),
        ({"health/never_rewritten": 0.06}, "not rewritten at any radius"),
        ({"health/unconverged": 0.26}, "unconverged"),
        ({"health/one_step_better": 0.06}, "unconverged"),
        (dict.fromkeys(HEALTHY, 1.0), "no gradient, not rewritten at any radius, unconverged"),
        (dict.fromkeys(HEALTHY, 0.0), ""),
    ],
)
def test_ill_health_in_words(changed: dict[str, float], words: str) -> None:
    assert ill_health({**HEALTHY, **changed}) == words


# Rewriting ------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Two classes: the least change in L∞ is the margin over the sum of the weights' magnitudes."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(3 * 64, classes, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def grey(count: int) -> Tensor:
    """Images far from black and white, which no clamp touches."""
    return 0.4 + 0.2 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_the_distances_are_those_of_a_linear_model_in_closed_form() -> None:
    model, images = Linear(), grey(11)
    probe = evaluation_of(model, images)
    settings = RewriteSettings(steps=24)
    frozen = FrozenTargets.choose(probe, "random", seed=0)
    pairs, shown = rewrite_images(probe, settings, frozen, shown=10)
    weight = (model.weight[:, 1] - model.weight[:, 0]).detach()
    expected = (images.flatten(1) @ weight).abs() / weight.abs().sum()
    assert pairs.success.all()
    assert (pairs.distance >= 0.999 * expected).all()  # no rewrite can be shorter
    torch.testing.assert_close(pairs.distance, expected, rtol=0.15, atol=0)
    assert pairs.image.tolist() == list(range(11))
    assert torch.equal(pairs.own, (images.flatten(1) @ model.weight).argmax(1))
    assert torch.equal(pairs.predicted, pairs.own)
    assert torch.equal(pairs.target, 1 - pairs.own)
    assert pairs.map_shift is None  # no attention
    # of images across two parts: the pairs that are shown are the first ones, with their pixels
    assert [pair.pair for pair in shown] == list(range(10))
    for pair in shown:
        torch.testing.assert_close(pair.original, images[pair.pair], rtol=0, atol=1e-6)
        change = (pair.rewritten - pair.original).abs().max()
        torch.testing.assert_close(change, pairs.distance[pair.pair], rtol=0, atol=1e-6)
        assert int(pair.after.argmax()) == int(pairs.target[pair.pair])
        assert int(pair.before.argmax()) == int(pairs.own[pair.pair])
        torch.testing.assert_close(pair.before, model(images[pair.pair][None])[0].detach())  # scores
        assert pair.maps is None


def test_distances_are_in_pixels_whatever_the_model_takes() -> None:
    model, images = Linear(), grey(4)
    settings = RewriteSettings(steps=8)
    plain = evaluation_of(model, images)
    known = Normalisation((0.3, 0.4, 0.5), (0.2, 0.3, 0.4), "the test")

    class Denormalised(Linear):
        def forward(self, images: Tensor) -> Tensor:
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (known.mean, known.std))
            return super().forward(images * std + mean)

    normalised = evaluation_of(Denormalised(), known.to_images(images), None, known)
    frozen = FrozenTargets.choose(plain, "random", seed=0)
    one, other = (rewrite_images(probe, settings, frozen)[0] for probe in (plain, normalised))
    torch.testing.assert_close(one.distance, other.distance, rtol=1e-3, atol=1e-6)


def test_all_targets_of_an_image_are_pairs_of_their_own() -> None:
    model = Linear(4)
    probe = evaluation_of(model, grey(3), [0, 1, 2])
    pairs, _ = rewrite_images(probe, RewriteSettings(steps=2), FrozenTargets.choose(probe, "all", seed=0))
    assert pairs.image.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert pairs.own.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert pairs.target.tolist() == [1, 2, 3, 0, 2, 3, 0, 1, 3]


@pytest.mark.parametrize("norm", RADII)
def test_the_number_of_forwards_does_not_depend_on_what_is_found(norm: str) -> None:
    images = Squares(11, seed=1).images
    counts = []
    for scale in (1.0, 0.0, -1.0):  # as it is, without any gradient, and the other way round
        vit = tiny_vit()
        with torch.no_grad():
            vit.head.weight.mul_(scale)
            vit.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))  # without a gradient nothing is ever rewritten
        probe, forwards = counting(evaluation_of(vit, images))
        frozen = FrozenTargets.choose(probe, 1, seed=0)
        pairs, _ = rewrite_images(probe, RewriteSettings(norm, steps=3), frozen)
        counts.append(forwards)
        assert scale != 0 or not pairs.success.any()
    assert counts[0] == counts[1] == counts[2]


def test_images_that_give_no_numbers_cost_as_many_passes_as_others() -> None:
    """A sharded model waits in every pass for all processes, also for the one whose images overflow."""
    counts = []
    for spoil in (False, True):
        forwards: list[int] = []
        vit = tiny_vit()  # of one that has been traced already a pass less is made

        def forward(
            images: Tensor, forwards: list[int] = forwards, spoil: bool = spoil, vit: nn.Module = vit
        ) -> Tensor:
            forwards.append(len(images))
            black = images.abs().sum() == 0
            # Which method answers has been asked of one image, on all processes alike.
            spoiled = spoil and len(images) > 1 and not black
            return vit(images) + (float("nan") if spoiled else 0.0)

        probe = dataclasses.replace(evaluation_of(vit, Squares(3, seed=1).images), forward=forward)
        frozen = FrozenTargets(torch.zeros(3).long(), torch.ones(3, 1).long())
        with pytest.raises(NonFiniteOutputError) if spoil else contextlib.nullcontext():
            rewrite_images(probe, RewriteSettings(steps=2), frozen)
        counts.append(forwards)
    assert counts[0] == counts[1]


def test_images_that_are_of_the_class_already_make_no_pairs() -> None:
    frozen = FrozenTargets(torch.tensor([0, 1, 2]), torch.ones(3, 1, dtype=torch.long))
    index, targets = frozen.pairs()
    assert index.tolist() == [0, 2]
    assert targets.tolist() == [1, 1]
    with pytest.raises(ValueError, match="every one of the 2 images is of this class already"):
        FrozenTargets(torch.ones(2).long(), torch.ones(2, 1).long()).pairs()


def test_pairs_go_through_the_model_a_few_at_a_time() -> None:
    """So that numbers do not depend on how many processes share them."""
    model = Linear()
    probe, seen = counting(dataclasses.replace(evaluation_of(model, grey(11)), sharing=PartSharing(4)))
    question_of_maps(probe)  # asks one image
    seen.clear()
    rewrite_images(probe, RewriteSettings(steps=2), FrozenTargets.choose(probe, "random", seed=0))
    assert max(seen) == 4
    assert set(seen) == {4, 3}


def test_attention_gives_maps_and_their_shift() -> None:
    torch.manual_seed(0)
    vit = tiny_vit()
    nn.init.normal_(vit.head.weight, std=0.5)
    probe = evaluation_of(vit, Squares(3, seed=1).images)
    frozen = FrozenTargets.choose(probe, "runner_up", seed=0)
    pairs, shown = rewrite_images(probe, RewriteSettings(steps=4), frozen, shown=2)
    assert pairs.map_shift.isfinite().all()
    assert (pairs.map_shift >= 0).all()
    assert (pairs.map_shift <= 2).all()
    assert len(shown) == 2
    for pair in shown:
        assert pair.maps is not None
        assert pair.maps.shape == (2, 4, 4)
        torch.testing.assert_close(pair.maps.mean((1, 2)), torch.ones(2))  # in times the uniform share


def test_what_is_asked_again_at_one_moment_is_there_already_and_what_differs_is_not() -> None:
    evaluation, batches = counting(evaluation_of(Linear(3), grey(3), [0, 1, 2]))
    frozen = FrozenTargets.choose(evaluation, "random", seed=0)
    settings = RewriteSettings(steps=2)
    once = rewrite_images(evaluation, settings, frozen)
    before = len(batches)
    again = rewrite_images(evaluation, RewriteSettings(steps=2), FrozenTargets(frozen.own, frozen.targets.clone()))
    assert again is once
    assert len(batches) == before > 0
    others = [(evaluation, dataclasses.replace(settings, steps=3), frozen)]
    others.append((evaluation, settings, FrozenTargets(frozen.own, 3 - frozen.own[:, None] - frozen.targets)))
    others.append((dataclasses.replace(evaluation, at_this_moment=Kept()), settings, frozen))
    for other in others:
        before = len(batches)
        assert rewrite_images(*other) is not once
        assert len(batches) > before


def test_in_doubt_about_the_normalisation_nothing_is_measured() -> None:
    images = 3 * (grey(2) - 0.5) / 0.1
    known = find_pixels(images, model=Linear())
    probe = dataclasses.replace(evaluation_of(Linear(), images, None, None), why_no_normalisation=known.why_not)
    with pytest.raises(ValueError, match=r"mean, std: the images lie in .*nothing says how they were normalised"):
        rewrite_images(probe, RewriteSettings(), FrozenTargets(torch.tensor([0, 0]), torch.tensor([[1], [1]])))
