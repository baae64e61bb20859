"""``quality="best"``: of two maps of each image the one that the model confirms."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from lightning_attngrad.explain import Contrast, Mixture, PixelClass, QueryClass, Region, explain
from lightning_attngrad.explain.confirmed import SHARES, STEPS, integrated_gradients, passes
from lightning_attngrad.explain.objectives.classes import Logit
from lightning_attngrad.explain.outputs import UNSAID
from lightning_attngrad.explain.question import Question
from tests.bright_objects import scenes, trained
from tests.other_models import vit_beside_colours
from tests.references import confirmed as reference
from tests.zoo import ZOO, ZooModel, logits_of, randomise

OBLONG = (64, 96)
#: By less than this neither map is the better confirmed one in float32, and both are right.
TIE = 1e-4


def a_vit(size: tuple[int, int] = (64, 64)) -> nn.Module:
    return randomise(timm.create_model("test_vit", img_size=size, num_classes=5), seed=0).eval()


def some(count: int, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(1))


def a_swin() -> nn.Module:
    model = timm.models.swin_transformer.SwinTransformer(
        img_size=OBLONG, patch_size=4, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2), num_classes=5
    )
    return randomise(model, seed=0).eval()


def without_attention() -> nn.Module:
    model = timm.models.mlp_mixer.MlpMixer(
        img_size=64, patch_size=16, num_blocks=2, embed_dim=32, num_classes=5, in_chans=3
    )
    return randomise(model, seed=0).eval()


MODELS: dict[str, tuple[Any, tuple[int, int]]] = {
    "vit": (lambda: a_vit(OBLONG), OBLONG),
    "swin": (a_swin, OBLONG),
    "mixer": (without_attention, (64, 64)),
    "without an embedding": (vit_beside_colours, (32, 32)),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_better_of_two_by_the_reference(name: str) -> None:
    build, size = MODELS[name]
    model, images, target = build(), some(3, size), [0, 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another method stands in
        default = explain(model, images, target)
        found = explain(model, images, target, quality="best")
    maps = [default]
    if default.method == "guided_relevance":
        maps.append(explain(model, images, target, method="attn_lrp"))
    grid = default.heatmap.shape[-2:]
    assert {one.heatmap.shape[-2:] for one in maps} == {grid}  # so that the reference need not carry them
    clear = 0
    for number, image in enumerate(images):
        for panel, label in enumerate(target):

            def phi(one: Tensor, label: int = label) -> Tensor:
                return model(one)[:, label]

            others = [one.heatmap[number, panel] for one in maps]
            expected, lead = reference.best(phi, image, others, STEPS, SHARES)
            if abs(lead) > TIE:
                clear += 1
                torch.testing.assert_close(found.heatmap[number, panel], expected, rtol=1e-3, atol=1e-6)
    assert clear >= 4
    torch.testing.assert_close(found.heatmap.abs().sum(dim=(-2, -1)), torch.ones(3, 2))
    cells = grid[0] * grid[1]
    torch.testing.assert_close(found.token_scores[..., -cells:].unflatten(-1, grid), found.heatmap)
    torch.testing.assert_close(found.logits, default.logits)  # those of the images as they are
    assert found.method == "quality='best'"
    assert found.layers is None
    assert found.completeness_error is None


@pytest.mark.parametrize("objective", ["margin", Contrast(2), Mixture({0: 1.0, 3: -0.5}), lambda output: output[:, 3]])
def test_any_number_that_is_read_off_the_output_can_be_explained(objective: Any) -> None:
    model, images = a_vit(), some(2)
    found = explain(model, images, objective=objective, quality="best")
    maps = [explain(model, images, objective=objective, method=name) for name in ("guided_relevance", "attn_lrp")]
    for number, image in enumerate(images):

        def phi(one: Tensor, number: int = number) -> Tensor:
            logits = model(one)
            if found.target is None:
                mixed: Tensor = objective(logits) if callable(objective) else logits[:, 0] - 0.5 * logits[:, 3]
                return mixed
            label = int(found.target[number])
            rivals = logits.clone()
            rivals[:, label] = -torch.inf
            rival = rivals.amax(dim=1) if objective == "margin" else logits[:, 2]
            return logits[:, label] - rival

        expected, lead = reference.best(phi, image, [one.heatmap[number] for one in maps], STEPS, SHARES)
        if abs(lead) > TIE:
            torch.testing.assert_close(found.heatmap[number], expected, rtol=1e-3, atol=1e-6)


def _gradients(model: nn.Module, images: Tensor, colour: Tensor, target: Tensor) -> Tensor:
    run, ask = passes(model, Logit(), target, None, UNSAID)
    area = (0, 0, images.shape[-2], images.shape[-1])
    return integrated_gradients(images, colour, torch.zeros(len(images), 1, 4, 4), area, run, ask)[:, 0]


def test_integrated_gradients_add_up_to_what_the_output_gains() -> None:
    model, images, target = a_vit(), some(2), torch.tensor([1, 3])
    colour = images.lerp(images.mean(dim=(2, 3), keepdim=True), 0.1)  # a short way, which few steps follow well
    found = _gradients(model, images, colour, target)
    with torch.no_grad():
        gained = (model(images) - model(colour)).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(found.sum(dim=(1, 2)), gained, rtol=1e-2, atol=1e-4)


def test_integrated_gradients_are_captums() -> None:
    attr = pytest.importorskip("captum.attr")
    model, images, target = a_vit(), some(2), torch.tensor([1, 3])
    colour = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    pixels = attr.IntegratedGradients(model).attribute(
        images, colour, target=target, n_steps=STEPS, method="riemann_middle"
    )
    expected = pixels.sum(dim=1).unflatten(2, (4, 16)).unflatten(1, (4, 16)).sum(dim=(2, 4)).float()
    torch.testing.assert_close(_gradients(model, images, colour, target), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("member", ZOO.values(), ids=ZOO)
def test_best_is_there_for_every_model_and_changes_nothing(member: ZooModel) -> None:
    model, images = member.build(), member.images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    was_training = model.train().training
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another method stands in
        default, best = explain(model, images), explain(model, images, quality="best")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training == was_training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not images.requires_grad
    assert best.heatmap.shape == default.heatmap.shape
    assert bool(torch.isfinite(best.heatmap).all())
    torch.testing.assert_close(best.target, default.target)
    torch.testing.assert_close(best.logits, logits_of(model.eval()(images)).float(), rtol=1e-4, atol=1e-4)


def test_a_batch_gives_what_single_images_give_and_again_the_same() -> None:
    model, images = a_vit(), some(3)
    found = explain(model, images, quality="best")
    with torch.inference_mode():
        assert torch.equal(explain(model, images, quality="best").heatmap, found.heatmap)
    for number, image in enumerate(images):
        alone = explain(model, image[None], quality="best")
        torch.testing.assert_close(alone.heatmap[0], found.heatmap[number], rtol=1e-3, atol=1e-5)


def test_all_classes_are_as_many_panels() -> None:
    model, images = a_vit(), some(2)
    found = explain(model, images, [0, 1, 2], quality="best")
    assert found.heatmap.shape == (2, 3, 4, 4)
    torch.testing.assert_close(
        found.heatmap[:, 2], explain(model, images, 2, quality="best").heatmap, rtol=1e-3, atol=1e-5
    )


def test_half_precision_finds_nearly_the_same() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=4)
    trained(model, (64, 64), 16, 300)
    scene = scenes(6, (64, 64), 16, seed=5)
    exact = explain(model, scene.images, scene.classes, quality="best").heatmap
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = explain(model, scene.images, scene.classes, quality="best").heatmap
    half = explain(model.bfloat16(), scene.images.bfloat16(), scene.classes, quality="best").heatmap
    for other in (under_autocast, half):
        assert other.dtype == torch.float32
        similarity = torch.cosine_similarity(other.flatten(1), exact.flatten(1))
        assert float(similarity.mean()) > 0.9
    assert bool(scene.holds(exact).all())  # the largest cell is on the bright square


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "attn_lrp"}, r"method: got 'attn_lrp' beside quality='best'.* leave method= out"),
        ({"combine": "sum"}, r"combine: got 'sum' beside quality='best'.* leave combine= out"),
        ({"objective": Region(torch.ones(8, 8))}, "has to be a function of the output alone"),
        ({"objective": PixelClass(1)}, "has to be a function of the output alone"),
        ({"objective": QueryClass(1)}, "has to be a function of the output alone"),
        ({"score_offsets": [torch.zeros(1, 1, 1, 1)]}, "score_offsets: .*write quality='default'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        explain(a_vit(), some(1), quality="best", **options)


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match=r"quality: got 'high'; expected 'default' or 'best'"):
        explain(a_vit(), some(1), quality="high")  # type: ignore[arg-type]


def test_a_question_of_another_quality_is_another() -> None:
    assert Question() == Question() != Question(quality="best")
    assert "quality" not in Question().plain()  # as checkpoints have it
    assert Question(quality="best").signed
    assert not Question().signed
