"""The Hindered Transformer: its logit is a sum over patches, and that sum is the map."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from torch import Tensor

from lightning_attngrad.explain import UnsupportedModelError, explain
from lightning_attngrad.models import HinderedTransformer, from_vision_transformer
from tests.references.hindered import terms_of

FORMS = {
    "plain": {"patch_size": 8, "depths": (3,)},
    "pooled": {"patch_size": 4, "depths": (1, 2, 1)},
    "oblong": {"patch_size": 8, "depths": (2,), "img_size": (32, 48)},
}


def _model(form: str, **options: object) -> HinderedTransformer:
    torch.manual_seed(0)
    model = HinderedTransformer(
        **{"img_size": 32, "num_classes": 4, "embed_dim": 12, "num_heads": 3, **FORMS[form], **options}
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().double()


def _images(model: HinderedTransformer, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_terms_are_those_of_the_description(form: str) -> None:
    model = _model(form)
    images = _images(model)
    found = model.patch_terms(images)
    for index, image in enumerate(images):
        logits, blocks = terms_of(model, image)
        torch.testing.assert_close(found.logits[index], logits)
        number = 0
        for stage in found.stages:
            for block in range(stage.shape[2]):
                expected = blocks[number]
                assert len(expected) == stage.shape[3] * stage.shape[4]
                for (row, column), term in expected.items():
                    torch.testing.assert_close(stage[index, :, block, row, column], term)
                number += 1
        assert number == len(blocks)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_in_float32_the_terms_sum_to_the_logits_of_all_classes(form: str) -> None:
    model = _model(form).float()
    images = _images(model).float()
    found = model.patch_terms(images)
    total = sum(stage.sum((2, 3, 4)) for stage in found.stages)
    assert torch.equal(found.logits, model(images))
    torch.testing.assert_close(total, found.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_method_finds_the_same_terms_in_the_model_as_it_runs(form: str) -> None:
    model = _model(form)
    images = _images(model)
    with torch.no_grad():
        stages = model.patch_terms(images).stages
    for target in range(4):
        found = explain(model, images, target, method="patch_sum")
        assert found.layers is not None
        assert found.layer_names[-1] == "shared equally"
        assert found.completeness_error is not None
        assert found.completeness_error.max() < 1e-6
        grid = tuple(found.heatmap.shape[1:])
        expected = torch.zeros_like(found.heatmap.double())
        for stage in stages:
            times = grid[0] // stage.shape[3]
            of_stage = stage[:, target].sum(1)
            expected += of_stage.repeat_interleave(times, 1).repeat_interleave(times, 2) / times**2
        # What belongs to no patch is shared among those of the finest grid, and there among those of each block.
        difference = found.heatmap.double() - expected
        assert difference.sum((1, 2)).abs().max() < 1e-6
        torch.testing.assert_close(found.heatmap.double(), expected, rtol=1e-4, atol=1e-6)


def test_it_answers_where_nothing_is_asked() -> None:
    model = _model("plain")
    assert explain(model, _images(model)).method == "patch_sum"
    assert explain(torch.nn.Sequential(model), _images(model)).method == "patch_sum"


@torch.no_grad()
def test_no_patch_says_anything_else_when_another_one_changes() -> None:
    """Its own features, and so the values that it offers; how much of them is heard the attention decides."""
    model = _model("plain")
    images = _images(model, 1)
    other = images.clone()
    other[..., 8:16, 16:24] += 1.0  # patch (1, 2)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attention.key_value.register_forward_hook(lambda *given: seen.append(given[2]))
    model(images)
    model(other)
    blocks = len(model.blocks)
    for before, after in zip(seen[:blocks], seen[blocks:], strict=True):
        changed = (before != after).any(-1).view(4, 4)
        assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "pvt_v2_b0"])
def test_models_whose_patches_attend_are_refused(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    with pytest.raises(UnsupportedModelError, match=r"its output is no sum over patches: in '.*guided_relevance"):
        explain(model, torch.randn(2, 3, 224, 224), 1, method="patch_sum")


def test_gradients_are_right() -> None:
    model = _model("pooled", img_size=16, embed_dim=6)
    images = _images(model, 1).requires_grad_()
    assert torch.autograd.gradcheck(model, (images,), atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_saved_copied_compiled_and_checkpointed_as_any_model(form: str) -> None:
    model = _model(form)
    images = _images(model)
    logits = model(images)
    another = _model(form)
    another.reset_classifier(4)
    another.double().load_state_dict(pickle.loads(pickle.dumps(model.state_dict())))
    for same in (another, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(same.eval()(images), logits)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(images), logits)
    assert torch.equal(explain(compiled, images, 1).heatmap, explain(model, images, 1).heatmap)

    parameters = list(model.parameters())
    plain = torch.autograd.grad(logits[:, 0].sum(), parameters, allow_unused=True)
    model.set_grad_checkpointing()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        again = model(images)
    whole: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: whole.append(tensor) or tensor, lambda tensor: tensor):
        another(images)
    assert len(kept) < len(whole)
    torch.testing.assert_close(torch.autograd.grad(again[:, 0].sum(), parameters, allow_unused=True), plain)


@pytest.mark.parametrize(
    "name", [f"hit_{size}_{form}" for size in ("tiny", "small", "base") for form in ("patch16_224", "patch8_224_pool")]
)
def test_timm_knows_it(name: str) -> None:
    model = timm.create_model(name, num_classes=5, img_size=64)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused, "DistributedDataParallel would stop"


def test_it_starts_from_a_vision_transformer() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, init_values=0.1)
    model = timm.create_model("hit_tiny_patch16_224", img_size=64, num_classes=5)
    before = copy.deepcopy(model.state_dict())
    taken = from_vision_transformer(vit.state_dict(), model)
    assert set(before) - set(taken) == set()
    block = vit.blocks[3]
    assert torch.equal(model.blocks[3].attention.query.weight, block.attn.qkv.weight[:192])
    assert torch.equal(model.blocks[3].attention.key_value.weight, block.attn.qkv.weight[192:])
    assert torch.allclose(model.blocks[3].mlp.fc2.weight, block.mlp.fc2.weight * 0.1)
    assert torch.equal(model.pos_embed.flatten(1, 2), vit.pos_embed[:, 1:])
    with pytest.raises(ValueError, match="state: none of its tensors fits"):
        from_vision_transformer({"other": torch.zeros(1)}, model)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"img_size: got \(36, 36\); expected multiples of 8"):
        HinderedTransformer(img_size=36, patch_size=8)
    with pytest.raises(ValueError, match="num_heads: got 5; expected a divisor of embed_dim, 12"):
        HinderedTransformer(embed_dim=12, num_heads=5)
    with pytest.raises(ValueError, match=r"depths: got \(\); expected one block or more"):
        HinderedTransformer(depths=())
    with pytest.raises(ValueError, match="hit: got features_only; expected none but depths, drop_rate, img_size"):
        timm.create_model("hit_tiny_patch16_224", img_size=64, features_only=True)
    with pytest.raises(ValueError, match="it has no classifier"):
        _model("plain", num_classes=0).patch_terms(torch.zeros(1, 3, 32, 32).double())
