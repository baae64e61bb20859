"""What an attack has to do, and what it did: a model with fixed images and targets, and an outcome that is verified."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Pixels may leave [0, 1] by so much: ``x + (clamp(x + δ) − x)`` is not exactly the clamped sum in float32.
PIXEL_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Trial:
    """A model in evaluation mode, correctly classified images, and a target class for each.

    Attributes:
        name: for the tables.
        network: from normalised images to logits.
        mean: of each channel, in pixels.
        std: likewise.
        pixels: (N, C, H, W) in [0, 1].
        label: (N,) the true class, which the network also predicts.
        target: (N,) another class, drawn once.
        accuracy: of the network on all validation images.
        about: the model and the images in one line.
    """

    name: str
    network: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixels: Tensor
    label: Tensor
    target: Tensor
    accuracy: float
    about: str

    @property
    def model(self) -> PixelModel:
        """The network with its normalisation inside, as the peers want it: norms are then in pixels."""
        return PixelModel(self.network, self.mean, self.std).eval()

    @property
    def images(self) -> Tensor:
        """The pixels as the network takes them (N, C, H, W)."""
        return self.model.normalise(self.pixels)

    @property
    def digest(self) -> str:
        """Of weights, pixels and targets: what is kept on disk belongs to one trial only."""
        digest = hashlib.sha256()
        for tensor in (*self.network.state_dict().values(), self.pixels, self.target):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class PixelModel(nn.Module):
    """Pixels (B, C, H, W) in [0, 1] → logits (B, K)."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def normalise(self, pixels: Tensor) -> Tensor:
        """As the network takes them."""
        return (pixels - self.mean) / self.std

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.network(self.normalise(pixels))
        return logits


Attack = Callable[[PixelModel, Tensor, Tensor], Tensor]
"""``attack(model, pixels, target) -> pixels``, all (N, C, H, W) in [0, 1]."""


def select(
    name: str,
    network: nn.Module,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]],
    validation: tuple[Tensor, Tensor],
    count: int,
    about: str,
) -> Trial:
    """Take ``count`` correctly classified validation images, and a random other class for each; always the same ones.

    Args:
        name: of the trial.
        network: from normalised images to logits.
        normalisation: mean and std of each channel.
        validation: pixels (V, C, H, W) in [0, 1] and labels (V,).
        count: images.
        about: the model and the images in one line.

    Raises:
        ValueError: if fewer images than that are classified correctly.
    """
    mean, std = normalisation
    network.eval().requires_grad_(False)  # only the image's gradient is wanted, and no attack shall pay for others
    model = PixelModel(network, mean, std).eval()
    pixels, label = validation
    with torch.no_grad():
        logits = torch.cat([model(chunk) for chunk in pixels.split(64)])  # (V, K)
    correct = logits.argmax(1) == label
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pixels), generator=generator)
    chosen = order[correct[order]][:count]
    if len(chosen) < count:
        raise ValueError(
            f"count: got {count}; expected at most {int(correct.sum())}, as many as {name} classifies well"
        )
    classes = logits.shape[1]
    shift = torch.randint(1, classes, (count,), generator=generator)
    target = (label[chosen] + shift) % classes
    accuracy = correct.float().mean().item()
    return Trial(name, network, mean, std, pixels[chosen], label[chosen], target, accuracy, about)


@dataclass(frozen=True)
class Outcome:
    """What an attack did, as found by a forward pass outside of it.

    Attributes:
        linf: (N,) largest change of a pixel; ∞ where the target is not the prediction or pixels leave [0, 1].
        l2: (N,) root of the sum of squared changes; ∞ likewise.
        l0: (N,) pixels that differ in any channel; ∞ likewise.
        gradients: backward passes an image, counted.
        forwards: forward passes an image, those of the gradients included.
        seconds: on the wall, once; a hint and no measurement.
        pixels: (N, C, H, W) what the attack returned.
    """

    linf: Tensor
    l2: Tensor
    l0: Tensor
    gradients: float
    forwards: float
    seconds: float
    pixels: Tensor

    def distance(self, norm: str) -> Tensor:
        """Per-image distance (N,) in the norm "linf", "l2" or "l0"."""
        return {"linf": self.linf, "l2": self.l2, "l0": self.l0}[norm]


def evaluate(attack: Attack, trial: Trial, seed: int = 0) -> Outcome:
    """Run an attack on a trial's images and measure what came out, by nothing that the attack says of itself."""
    torch.manual_seed(seed)
    with counting(trial.network) as count:
        began = time.perf_counter()
        rewritten = attack(trial.model, trial.pixels.clone(), trial.target.clone()).detach()
        seconds = time.perf_counter() - began
    return measure(trial, rewritten, count.backwards / len(rewritten), count.forwards / len(rewritten), seconds)


def measure(trial: Trial, rewritten: Tensor, gradients: float, forwards: float, seconds: float) -> Outcome:
    """Verify success and recompute the distances of rewritten pixels (N, C, H, W)."""
    trial.network.eval()
    with torch.no_grad():
        success = trial.model(rewritten).argmax(1) == trial.target
    flat = rewritten.flatten(1)
    success &= (flat.amin(1) >= -PIXEL_TOLERANCE) & (flat.amax(1) <= 1 + PIXEL_TOLERANCE)
    moved = (rewritten - trial.pixels).abs() > PIXEL_TOLERANCE  # there and back through a normalisation is a rounding
    l0 = moved.any(1).flatten(1).sum(1).float().where(success, math.inf)
    change = (rewritten - trial.pixels).double().flatten(1)
    linf = change.abs().amax(1).where(success, math.inf).float()
    l2 = change.square().sum(1).sqrt().where(success, math.inf).float()
    return Outcome(linf, l2, l0, gradients, forwards, seconds, rewritten)


def closest(outcomes: list[Outcome]) -> Outcome:
    """Of several runs, each image's closest in L∞; what they spent is added up."""
    linf = torch.stack([outcome.linf for outcome in outcomes])  # (R, N)
    run = linf.argmin(0)
    images = torch.arange(len(run))
    return Outcome(
        linf[run, images],
        torch.stack([outcome.l2 for outcome in outcomes])[run, images],
        torch.stack([outcome.l0 for outcome in outcomes])[run, images],
        sum(outcome.gradients for outcome in outcomes),
        sum(outcome.forwards for outcome in outcomes),
        sum(outcome.seconds for outcome in outcomes),
        torch.stack([outcome.pixels for outcome in outcomes])[run, images],
    )


@dataclass
class Count:
    """Images that went forwards and backwards."""

    forwards: int = 0
    backwards: int = 0


@contextmanager
def counting(network: nn.Module) -> Iterator[Count]:
    """Count each image that passes through a network, either way."""
    count = Count()

    def backward(gradient: Tensor) -> None:
        count.backwards += len(gradient)

    def forward(module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> None:  # noqa: ARG001
        count.forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(backward)

    handle = network.register_forward_hook(forward)
    try:
        yield count
    finally:
        handle.remove()
