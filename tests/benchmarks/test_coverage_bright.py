"""What the table of bright objects is made of: tokens that are replaced, and rows that are read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.coverage_bright import ONE_TOKEN, TAUGHT, every_method, read, report, summary
from benchmarks.one_token import Tokens
from tests.bright_objects import scenes
from tests.families import FAMILIES


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"])
def test_tokens_that_overlap_the_square_are_all_that_differs_from_black(name: str) -> None:
    """Of patches that do not overlap: without theirs the image is black, and with theirs alone it is itself."""
    family = FAMILIES[name]
    model, scene = family.build(), scenes(4, family.image_size, min(family.image_size) // 4, seed=0)
    black = torch.zeros_like(scene.images)
    tokens_of = Tokens(model, scene.images)
    with torch.no_grad():
        logits, tokens = tokens_of.read(scene.images)
        of_black, nothing = tokens_of.read(black)
        on_square = tokens_of.on_square(scene)
        without = tokens_of.replaced(scene.images, tokens, nothing, on_square)
        alone = tokens_of.replaced(scene.images, tokens, nothing, ~on_square)
    assert 0 < on_square.float().mean() < 0.5
    assert not torch.allclose(logits, of_black)
    torch.testing.assert_close(without, of_black)
    torch.testing.assert_close(alone, logits)


def test_rows_are_read_back_and_those_that_were_trained_on_count_in_place_of_the_first(tmp_path: Path) -> None:
    first, second = list(FAMILIES)[:2]
    plain = {**dict.fromkeys(every_method(), "0.50"), ONE_TOKEN: "0.30"}
    again = {**dict.fromkeys(every_method(), "1.00"), ONE_TOKEN: "1.00"}
    rows = {first: plain, first + TAUGHT: again, second: {**dict.fromkeys(every_method(), "0.90"), ONE_TOKEN: ""}}
    file = tmp_path / "table.md"
    file.write_text("\n".join(report(rows)) + "\n", encoding="utf-8")
    assert read(file) == rows
    lines = summary(rows)
    assert any(line.startswith("| `attn_lrp` | 2 | 0.95 |") for line in lines)
    assert any(first in line and "0.50" in line for line in lines)
