"""What must hold for every map, whatever the model: symmetries, independence of the batch, panels."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from lightning_attngrad.explain.objectives import Contrast, Mixture
from tests.references import guided
from tests.zoo import ZOO, ZooModel

TARGET = torch.tensor([2, 5])
METHODS = [
    "gradient_guided",
    "conservative",
    "attn_lrp",
    "guided_relevance",
    "raw_attention",
    "rollout",
    "grad_cam",
]
SOME = ["vit", "vit_unfused", "vit_registers_mean", "siglip", "torchvision", "hf_vit"]
few_examples = settings(max_examples=8, deadline=None, derandomize=True)


@cache
def model_of(name: str) -> nn.Module:
    return ZOO[name].build()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert expected.abs().amax() > 0
    assert (actual - expected).abs().amax() < tolerance * expected.abs().amax()


# Symmetries ------------------------------------------------------------------------------------------------


def mirrored(zoo: ZooModel) -> nn.Module:
    """The model made blind to left and right: symmetric patch kernels, positions mirrored in the grid."""
    model = copy.deepcopy(model_of(zoo.name))
    with torch.no_grad():
        kernel = model.patch_embed.proj.weight
        kernel.copy_((kernel + kernel.flip(-1)) / 2)
        position = model.pos_embed
        in_front = position.shape[1] - zoo.grid[0] * zoo.grid[1]  # some models give prefix tokens no position
        patches = position[:, in_front:].unflatten(1, zoo.grid)
        position[:, in_front:] = ((patches + patches.flip(2)) / 2).flatten(1, 2)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vit", "vit_unfused", "vit_mean", "dinov2_registers", "deit3", "siglip"])
def test_flipped_image_gives_the_flipped_map(name: str, method: str) -> None:
    zoo = ZOO[name]
    model, images = mirrored(zoo), zoo.images()
    one = explain(model, images, TARGET, method=method).heatmap
    other = explain(model, images.flip(-1), TARGET, method=method).heatmap
    assert_close(other, one.flip(-1))
    assert (one - one.flip(-1)).abs().amax() > 1e-3 * one.abs().amax()  # the maps are not symmetric themselves


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SOME)
def test_an_image_does_not_depend_on_its_batch(name: str, method: str) -> None:
    zoo = ZOO[name]
    images, target = zoo.images(batch=3, seed=4), torch.tensor([0, 6, 3])
    together = explain(model_of(name), images, target, method=method)
    for i in range(3):
        alone = explain(model_of(name), images[i : i + 1], target[i : i + 1], method=method)
        assert_close(together.heatmap[i : i + 1], alone.heatmap)
        assert_close(together.token_scores[i : i + 1], alone.token_scores)


@few_examples
@given(factor=st.floats(0.01, 50), correction=st.sampled_from(sorted(guided.CORRECTIONS)))
def test_a_head_twice_as_large_makes_a_last_layer_twice_as_large(factor: float, correction: str) -> None:
    zoo = ZOO["vit"]
    scaled = copy.deepcopy(model_of("vit"))
    with torch.no_grad():
        scaled.head.weight.mul_(factor)
    before, after = (
        explain(model, zoo.images(), TARGET, method="gradient_guided", correction=correction).layers
        for model in (model_of("vit"), scaled)
    )
    assert_close(after[:, -1], factor * before[:, -1])


@few_examples
@given(factor=st.floats(0.01, 50), method=st.sampled_from(["conservative", "attn_lrp", "grad_cam"]))
def test_a_head_twice_as_large_makes_relevance_twice_as_large(factor: float, method: str) -> None:
    zoo = ZOO["vit_mean"]
    scaled = copy.deepcopy(model_of("vit_mean"))
    with torch.no_grad():
        scaled.head.weight.mul_(factor)
    before, after = (
        explain(model, zoo.images(), TARGET, method=method).heatmap for model in (model_of("vit_mean"), scaled)
    )
    assert_close(after, factor * before)


@few_examples
@given(order=st.permutations(range(7)), method=st.sampled_from(METHODS))
def test_renaming_the_classes_renames_the_maps(order: list[int], method: str) -> None:
    zoo = ZOO["vit"]
    renamed = copy.deepcopy(model_of("vit"))
    with torch.no_grad():
        renamed.head.weight.copy_(renamed.head.weight[order])
        renamed.head.bias.copy_(renamed.head.bias[order])
    images = zoo.images(batch=1)
    for new in range(3):
        one = explain(renamed, images, new, method=method).heatmap
        assert_close(one, explain(model_of("vit"), images, order[new], method=method).heatmap)


@few_examples
@given(seed=st.integers(0, 10_000), name=st.sampled_from(SOME))
def test_signs_of_the_corrections(seed: int, name: str) -> None:
    zoo = ZOO[name]
    images = zoo.images(seed=seed)
    names = ["positive", "negative", "absolute", "signed", "transfer"]
    explanation = explain(model_of(name), images, TARGET, method="gradient_guided", correction=names)
    positive, negative, absolute, signed, _ = explanation.layers[:, :, -1].unbind(1)  # last call alone: linear
    scale = absolute.abs().amax()
    torch.testing.assert_close((positive - negative) / scale, signed / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close((positive + negative) / scale, absolute / scale, rtol=0, atol=1e-5)
    for sign in (0, 1, 2):
        assert explanation.token_scores[:, sign].amin() >= -1e-6 * scale
    transferred = explanation.token_scores[:, 4]
    assert transferred.sum(-1).abs().amax() < 1e-5 * transferred.abs().amax()


@few_examples
@given(seed=st.integers(0, 10_000), name=st.sampled_from(SOME))
def test_shares_are_shares(seed: int, name: str) -> None:
    zoo = ZOO[name]
    images = zoo.images(seed=seed)
    for combine in ("sum", "gated_sum"):
        combined = explain(model_of(name), images, TARGET, method="guided_relevance", combine=combine).heatmap
        torch.testing.assert_close(combined.sum((-2, -1)), torch.ones(2))
        assert combined.amin() >= 0
    for method in ("raw_attention", "rollout"):
        attention = explain(model_of(name), images, method=method).token_scores
        torch.testing.assert_close(attention.sum(-1), torch.ones(2))
        assert attention.amin() >= 0
    assert explain(model_of(name), images, TARGET, method="grad_cam").heatmap.amin() >= 0


@pytest.mark.parametrize("name", ["vit", "vit_registers_mean", "siglip"])
def test_objectives_that_are_the_same_function_give_the_same_map(name: str) -> None:
    zoo = ZOO[name]
    model, images = model_of(name), zoo.images()
    for method in ("gradient_guided", "attn_lrp", "guided_relevance", "grad_cam"):
        logit = explain(model, images, 3, method=method).heatmap
        one_class = Mixture(torch.eye(7)[3])
        assert_close(explain(model, images, method=method, objective=one_class).heatmap, logit, 1e-5)
        as_callable = explain(model, images, method=method, objective=lambda output: output[:, 3])
        assert_close(as_callable.heatmap, logit, 1e-5)
        assert as_callable.target is None
        # The margin's rival is the best class that is not the target.
        best = explain(model, images, method=method)
        rivals = best.logits.scatter(1, best.target[:, None], -torch.inf).argmax(1)
        margin = explain(model, images, best.target, method=method, objective="margin").heatmap
        for i, rival in enumerate(rivals.tolist()):
            contrast = explain(
                model, images[i : i + 1], best.target[i : i + 1], method=method, objective=Contrast(rival)
            )
            assert_close(margin[i : i + 1], contrast.heatmap, 1e-4)


# Panels and targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_no_target_is_the_predicted_class(method: str) -> None:
    zoo = ZOO["vit"]
    found = explain(model_of("vit"), zoo.images(), method=method)
    assert found.target.tolist() == found.logits.argmax(1).tolist()
    assert_close(found.heatmap, explain(model_of("vit"), zoo.images(), found.logits.argmax(1), method=method).heatmap)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["vit", "hf_vit_eager", "siglip"])
def test_panels_of_classes_equal_single_calls(name: str, method: str) -> None:
    zoo = ZOO[name]
    model, images = model_of(name), zoo.images()
    panels = explain(model, images, [4, 0, 6], method=method)
    assert panels.heatmap.shape == (2, 3, *zoo.grid)
    assert panels.target.tolist() == [[4, 0, 6]] * 2
    assert panels.panels is not None
    assert len(panels.panels) == 3
    own = torch.tensor([[1, 4], [5, 2]])
    per_image = explain(model, images, own, method=method)
    assert per_image.target.tolist() == own.tolist()
    for p, target in enumerate([4, 0, 6]):
        single = explain(model, images, target, method=method)
        assert_close(panels.heatmap[:, p], single.heatmap)
        assert_close(panels.token_scores[:, p], single.token_scores)
        assert (panels.layers is None) == (single.layers is None)
        if single.layers is not None:
            assert_close(panels.layers[:, p], single.layers)
    for p in range(2):
        assert_close(per_image.heatmap[:, p], explain(model, images, own[:, p], method=method).heatmap)


@pytest.mark.parametrize("name", SOME)
def test_panels_of_corrections_equal_single_calls(name: str) -> None:
    zoo = ZOO[name]
    order = ["transfer", "positive", "signed", "absolute", "negative"]
    panels = explain(model_of(name), zoo.images(), TARGET, method="gradient_guided", correction=order)
    assert panels.panels == tuple(order)
    for p, correction in enumerate(order):
        single = explain(model_of(name), zoo.images(), TARGET, method="gradient_guided", correction=correction)
        assert_close(panels.heatmap[:, p], single.heatmap, 1e-5)
        assert_close(panels.layers[:, p], single.layers, 1e-5)
        assert_close(panels.token_scores[:, p], single.token_scores, 1e-5)
