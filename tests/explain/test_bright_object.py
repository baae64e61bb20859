"""A bright square on black: the maximum of the map stands where it is, on images that are not square."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from torch import nn

from lightning_attngrad.explain import DEFAULT_METHOD, explain
from tests.bright_objects import scenes, trained
from tests.families import FAMILIES

#: Method where the default permits none, by family; the others are asked with the default.
ASKED = {
    "timm/vit_tiny_patch16_224": DEFAULT_METHOD,
    "timm/vit_medium_patch16_reg4_gap_256": DEFAULT_METHOD,
    "timm/jx_nest_tiny": DEFAULT_METHOD,
    "timm/test_resnet": "attn_lrp",
}


@cache
def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    family = FAMILIES[name]
    return trained(family.raw(), family.image_size, min(family.image_size) // 4, steps=400)


@pytest.mark.parametrize("name", ASKED)
def test_the_maximum_stands_where_the_object_is(name: str) -> None:
    family = FAMILIES[name]
    scene = scenes(16, family.image_size, min(family.image_size) // 4, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = explain(model_of(name), scene.images, scene.classes, method=ASKED[name]).heatmap
    assert scene.holds(maps).all()


def test_a_scene_holds_what_overlaps_its_square() -> None:
    scene = scenes(1, (32, 48), 8, seed=0)
    heatmap = torch.zeros(1, 32, 48)
    heatmap[0, scene.top[0] + 7, scene.left[0]] = 1
    assert scene.holds(heatmap).all()
    assert not scene.holds(heatmap.flip(1, 2)).any()
