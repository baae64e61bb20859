"""What attacks are measured by, and how one that leaves a class is asked for another."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.rewriting_peers import _by_target, _Rivals
from benchmarks.rewriting_trial import PixelModel, Trial, measure

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def trial() -> Trial:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    pixels = torch.rand(5, 3, 8, 8, generator=generator)
    label = PixelModel(network, MEAN, STD)(pixels).argmax(1)
    return Trial("a test", network, MEAN, STD, pixels, label, (label + 1) % 4, 1.0, "")


def test_a_pixel_that_a_normalisation_rounded_has_not_changed() -> None:
    one = trial()
    there_and_back = one.model.normalise(one.pixels) * one.model.std + one.model.mean
    assert (there_and_back != one.pixels).any()
    rewritten = there_and_back.clone()
    rewritten[:, 0, 2, 3] = 1 - rewritten[:, 0, 2, 3]
    rewritten[:, 1:, 5, 5] = 0.0
    of_them = measure(Trial(**{**vars(one), "target": one.model(rewritten).argmax(1)}), rewritten, 1, 1, 0.0)
    assert of_them.l0.tolist() == [2.0] * 5
    assert measure(one, one.pixels, 1, 1, 0.0).l0.tolist() == [math.inf] * 5  # nothing is of its target yet


def test_the_lead_over_a_class_on_two_logits_is_the_target_s_margin() -> None:
    one = trial()
    logits = one.model(one.pixels)
    for target in range(4):
        pair = _Rivals(one.model, target)(one.pixels)
        others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1).amax(1)
        torch.testing.assert_close(pair[:, 1] - pair[:, 0], logits[:, target] - others)
        assert torch.equal(pair.argmax(1) == 1, logits.argmax(1) == target)


def test_an_attack_that_leaves_a_class_reaches_each_image_s_target() -> None:
    """One long step away from the first of two logits."""

    def leave(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        assert labels.tolist() == [0] * len(pixels)
        inputs = pixels.clone().requires_grad_()
        pair = model(inputs)
        step = torch.autograd.grad((pair[:, 1] - pair[:, 0]).sum(), inputs)[0]
        return (pixels + 0.5 * step.sign()).clamp(0, 1)

    one = trial()
    found = _by_target(leave)(one.model, one.pixels, one.target)
    assert torch.equal(one.model(found).argmax(1), one.target)
    assert len(one.target.unique()) > 1
