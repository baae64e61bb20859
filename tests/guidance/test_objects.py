"""Masks become keys where the model's own tokens lie, whatever its layout."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.guidance import attention_guidance_loss, capture_attention, image_places, object_pairs
from tests.integration.harness import differences, flags_of, gradients_of, random_streams, tiny_vit


def square(batch: int, side: int, box: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(batch, side, side)
    top, left, bottom, right = box
    masks[:, top:bottom, left:right] = 1
    return masks


def test_of_a_class_token_the_keys_that_see_the_object_are_inside() -> None:
    model = tiny_vit(reg_tokens=2)
    masks = square(2, 32, (0, 0, 8, 9))  # the first patch, and the edge of the one beside it
    masks[1] = 0
    masks[1, 31, 31] = 1
    pairs = object_pairs(image_places(model, torch.rand(2, 3, 32, 32)), masks)
    assert list(pairs) == ["blocks.0.attn", "blocks.1.attn"]
    for pair in pairs.values():
        assert pair.asks is not None
        assert pair.outside is not None
        # The class token, two registers, and what lies on the object.
        assert pair.asks[0].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
        assert pair.asks[1].nonzero().flatten().tolist() == [0, 1, 2, 18]
        assert pair.inside[0, 0].nonzero().flatten().tolist() == [3, 4]
        assert pair.inside[1, 0].nonzero().flatten().tolist() == [3 + 15]
        assert not pair.outside[..., :3].any()  # they lie nowhere
        assert (pair.inside ^ pair.outside)[..., 3:].all()


def test_a_model_that_pools_its_tokens_has_all_of_them_guided() -> None:
    model = tiny_vit(class_token=False, global_pool="avg")
    pairs = object_pairs(image_places(model, torch.rand(1, 3, 32, 32)), square(1, 32, (8, 8, 16, 16)))
    assert pairs["blocks.0.attn"].asks is not None
    assert pairs["blocks.0.attn"].asks.all()
    assert pairs["blocks.0.attn"].inside.flatten().nonzero().tolist() == [[5]]


def test_of_an_overlapping_stem_a_key_sees_around_the_middle_of_what_it_reads() -> None:
    model = tiny_vit(class_token=False, global_pool="avg")
    model.patch_embed.proj = nn.Conv2d(3, model.embed_dim, 15, 8, 7)  # middles 0.5, 8.5, 16.5, 24.5
    masks = square(2, 32, (0, 5, 4, 12))
    masks[1] = square(1, 32, (0, 4, 4, 5))[0]  # of the cells that begin at 0 and at 4.5 half a pixel each
    inside = object_pairs(image_places(model, torch.rand(2, 3, 32, 32)), masks)["blocks.0.attn"].inside[:, 0]
    assert inside[0].nonzero().flatten().tolist() == [1]
    assert inside[1].nonzero().flatten().tolist() == [0, 1]


def test_windows_that_are_shifted_and_coarser_stages() -> None:
    """Each key of each window of each stage is inside where the object is: found by the pixels it can see."""
    model = SwinTransformer(
        img_size=32, patch_size=4, window_size=4, embed_dim=8, depths=(2, 1), num_heads=(2, 2), num_classes=3
    )
    images = torch.rand(2, 3, 32, 32)
    masks = square(2, 32, (0, 0, 12, 8))
    masks[1] = 0
    pairs = object_pairs(image_places(model, images), masks)
    with capture_attention(model) as calls:
        model(images)
    found = [call for call in calls if call.name in pairs]
    assert len(found) == 3
    for call, cells in zip(found, (6, 6, 2), strict=True):  # 3 × 2 patches of four pixels, then 2 × 1 of eight
        pair = pairs[call.name]
        assert pair.inside.sum() == cells
        owners = torch.arange(2) if pair.images is None else pair.images  # the last stage is one window an image
        of_first = pair.inside[owners == 0]
        assert of_first.sum() == cells
    loss = attention_guidance_loss(calls, pairs).loss
    loss.backward()
    assert float(loss) > 0
    assert model.layers[0].blocks[1].attn.qkv.weight.grad.abs().sum() > 0  # type: ignore[union-attr,operator]


def test_tracing_leaves_no_trace() -> None:
    model = tiny_vit(proj_drop_rate=0.1).train()
    model(torch.rand(2, 3, 32, 32)).sum().backward()

    def now() -> dict[str, object]:
        return {"flags": flags_of(model), "gradients": gradients_of(model), "random": random_streams()}

    before = now()
    first = image_places(model, torch.rand(2, 3, 32, 32, generator=torch.Generator()))
    assert differences(before, now()) == set()
    assert image_places(model, torch.rand(2, 3, 32, 32, generator=torch.Generator())) is first


def test_what_cannot_be_placed_is_refused() -> None:
    places = image_places(tiny_vit(), torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="for 2 images"):
        object_pairs(places, torch.ones(3, 32, 32))
    with pytest.raises(UnsupportedModelError):
        image_places(timm.create_model("test_resnet", num_classes=3), torch.rand(1, 3, 32, 32))
    compiled = nn.Sequential(tiny_vit())
    compiled._compiled_call_impl = lambda *_: None
    with pytest.raises(ValueError, match="is compiled"):
        image_places(compiled, torch.rand(1, 3, 32, 32))
