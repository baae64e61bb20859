from __future__ import annotations

from torch import nn

from lightning_attngrad.probe.attention_parts import attention_parts
from tests.integration.harness import tiny_vit


def test_the_outermost_parts_that_contain_attention() -> None:
    module = nn.Module()
    module.student, module.teacher, module.head = tiny_vit(), tiny_vit(), nn.Linear(4, 4)
    module.encoder = nn.TransformerEncoderLayer(8, 2)
    assert [(part.path, part.kind) for part in attention_parts(module)] == [
        ("student", "VisionTransformer"),
        ("teacher", "VisionTransformer"),
        ("encoder", "TransformerEncoderLayer"),
    ]


def test_a_part_that_takes_images_stands_for_what_it_is_in() -> None:
    wrapped = nn.ModuleDict({"inner": nn.ModuleDict({"vit": tiny_vit(), "other": nn.TransformerEncoderLayer(8, 2)})})
    module = nn.ModuleDict({"wrapped": wrapped})
    asked: list[str] = []

    def runs(part: nn.Module) -> bool:
        asked.append(type(part).__name__)
        return type(part).__name__ == "VisionTransformer"

    assert [str(part) for part in attention_parts(module, runs)] == [
        "'wrapped.inner.vit' (VisionTransformer, which takes the images)"
    ]
    assert [str(part) for part in attention_parts(module, lambda part: False)] == ["'wrapped' (ModuleDict)"]
    assert asked == ["VisionTransformer", "TransformerEncoderLayer"]  # containers cannot be run


def test_without_attention_there_is_none() -> None:
    assert attention_parts(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))) == []
