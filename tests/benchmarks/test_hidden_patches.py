"""Copies that are used to hidden patches: a tiny network on images whose class any one patch tells."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks import hidden_patches
from tests.benchmarks.test_faithfulness import CLASSES, GRID, SIDE, small_network


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The class is in the brightness of a stripe of each patch, on a background of noise."""
    label = torch.randint(CLASSES, (count,), generator=generator)
    images = 0.3 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    for index, number in enumerate(label.tolist()):
        images[index, :, :, number::8] += 2
    return images, label


def test_hidden_patches_have_the_mean_colour_and_the_others_stay() -> None:
    images = torch.randn(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    share = torch.tensor([0.0, 1.0, 0.5, 0.5, 0.5, 0.5]).view(-1, 1, 1)
    found = hidden_patches.hide(images, share, GRID, torch.Generator().manual_seed(1))
    mean = images.mean(dim=(-2, -1), keepdim=True)
    assert torch.equal(found[0], images[0])
    torch.testing.assert_close(found[1], mean[1].expand_as(found[1]))
    gone = (found == mean).all(dim=1).view(6, 4, 8, 4, 8)  # rows, pixels, columns, pixels
    per_patch = gone.float().mean(dim=(2, 4))
    assert set(per_patch.unique().tolist()) == {0.0, 1.0}  # whole patches
    assert 0.3 < per_patch[2:].mean() < 0.7


def test_a_copy_gets_used_to_hidden_patches_and_frozen_parameters_stay(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(2)
    network = small_network()
    hidden = batch(100, generator)
    monkeypatch.setattr(hidden_patches, "STEPS", 40)
    used = copy.deepcopy(network)
    hidden_patches.accustom(used, lambda: batch(16, generator), GRID, 3e-3, frozen=("pos_embed", "blocks.0."))
    before, after = (hidden_patches.accuracy(one, *hidden, GRID) for one in (network, used))
    assert after > before + 0.2
    for name, parameter in used.named_parameters():
        assert parameter.requires_grad
        assert parameter.grad is None
        stays = name.startswith(("pos_embed", "blocks.0."))
        assert torch.equal(parameter, network.get_parameter(name)) == stays, name
    assert not used.training
