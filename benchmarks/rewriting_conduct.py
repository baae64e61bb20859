"""What an attack does to a model in the middle of training: which mode it runs it in, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.leftovers import leftovers
from benchmarks.rewriting_trial import Attack, PixelModel, Trial

_IMAGES = 4


def conduct(attack: Attack, trial: Trial) -> tuple[str, str, str]:
    """Attack a model in training mode, one block of which is frozen in evaluation mode.

    Returns:
        The mode that the model ran in, whether torch's random state has moved, and what was left on the model.
    """
    model = PixelModel(trial.network, trial.mean, trial.std)
    pixels, target = trial.pixels[:_IMAGES], trial.target[:_IMAGES]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    try:
        model.requires_grad_(True)
        _as_in_training(model)
        attack(model, pixels, target)  # what a first call loads and keeps is not left by the attack
        model.zero_grad(set_to_none=True)
        _as_in_training(model)
        before = torch.get_rng_state()
        with _modes(trial.network) as modes:
            attack(model, pixels, target)
        moved = not torch.equal(before, torch.get_rng_state())
        model.zero_grad(set_to_none=True)
        _as_in_training(model)
        left = leftovers(lambda: attack(model, pixels, target), model, pixels)
    except RuntimeError as error:
        return "fails", "", str(error).splitlines()[0]
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    mode = "in training mode" if True in modes else "in evaluation mode"
    return mode, "moved" if moved else "as it was", left


def _as_in_training(model: PixelModel) -> None:
    model.train()
    model.network.get_submodule("blocks.0").eval()


@contextmanager
def _modes(network: nn.Module) -> Iterator[set[bool]]:
    """The modes that the network is run in."""
    seen: set[bool] = set()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
        seen.add(module.training)

    handle = network.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()
