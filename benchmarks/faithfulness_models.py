"""The models that maps are judged on, and their images: photographs with masks, and digits.

Each set of images falls into two halves. Methods are chosen on the one, and reported on the other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks import backbone, hidden_patches, swin
from benchmarks.rewriting_models import digits_network, kept, of_seed
from benchmarks.stamps import MEAN, STAMPS, STD, Scene, missing

Half = Literal["choose", "report"]

SIZE = 112
#: Class → folders of photographs below the stamps.
CLASSES = {
    "animal": ("animals/mammals", "animals/birds"),
    "food": ("food",),
    "plant": ("plants",),
    "thing": ("household", "hobbies", "sports"),
    "vehicle": ("vehicles", "military/vehicles"),
}
#: Every second stamp is for training; of the others, every second one belongs to either half.
REMAINDERS: dict[str, tuple[int, ...]] = {"train": (0, 2), "choose": (1,), "report": (3,)}
SEEDS: dict[str, int] = {"train": 0, "choose": 1, "report": 2}
PAIRS = 32
TRAINING_STEPS, BATCH = 140, 16
#: Largest learning rate while a copy gets used to hidden patches.
RATE_OF_HIDING = {"composites": 4e-5, "digits": 1e-3}
FROZEN = ("patch_embed.", "pos_embed", "cls_token", *(f"blocks.{index}." for index in range(8)))


@dataclass(frozen=True)
class Subject:
    """A model in evaluation mode, and images that it classifies correctly.

    Attributes:
        name: for the tables.
        network: from normalised images to logits.
        images: (N, C, H, W), normalised.
        label: (N,), the true class, which is also the predicted one.
        grid: rows and columns of patches.
        steps: in how many parts the patches are replaced.
        masks: (N, H, W) in [0, 1], the object; None where there is none.
        pairs: two objects an image: images (V, C, H, W), labels (V, 2), masks (V, 2, H, W).
        accuracy: of the network on all images of this half.
        about: the model and the images in one line.
    """

    name: str
    network: nn.Module
    images: Tensor
    label: Tensor
    grid: tuple[int, int]
    steps: int
    masks: Tensor | None
    pairs: tuple[Tensor, Tensor, Tensor] | None
    accuracy: float
    about: str


def photographs(
    cache: Path, half: Half, stamps: Path = STAMPS, seed: int = 0, *, used_to_hiding: bool = False
) -> Subject:
    """A pretrained ViT-S/14, fine-tuned on composites; judged on stamps and backgrounds that it has not seen.

    Args:
        cache: folder that keeps the weights.
        half: which half of the held-out stamps, one composite each.
        stamps: folder of Tux Paint's stamps.
        seed: of the composites that it is fine-tuned on.
        used_to_hiding: a copy that has seen hidden patches, see :mod:`benchmarks.hidden_patches`.

    Raises:
        FileNotFoundError: something has to be installed first; the message says what.
    """
    about = f"ViT-S/14, 22 M parameters, {(SIZE // 14) ** 2} patches"
    network = _fine_tuned(cache, stamps, seed)
    if not used_to_hiding:
        return on_composites("photographs", network, about, half, stamps)
    before = copy.deepcopy(network)
    _accustom_to_composites(_composites_file(cache, seed), network, stamps, seed, FROZEN)
    return on_composites("photographs, used to hidden patches", network, about, half, stamps, before)


def photographs_swin(
    cache: Path, half: Half, stamps: Path = STAMPS, seed: int = 0, *, used_to_hiding: bool = False
) -> Subject:
    """A Swin of four stages on the same images, judged on the same squares of 14 pixels; see :mod:`benchmarks.swin`.

    Args:
        cache: folder that keeps the weights.
        half: which half of the held-out stamps, one composite each.
        stamps: folder of Tux Paint's stamps.
        seed: of its first weights and of the composites that it and its teacher learn from.
        used_to_hiding: a copy that has seen hidden patches.

    Raises:
        FileNotFoundError: something has to be installed first; the message says what.
    """

    def train(network: nn.Module) -> None:
        swin.learn(network, _fine_tuned(cache, stamps, seed), scene(stamps, "train", seed), seed)

    torch.manual_seed(seed)
    file = of_seed(cache / f"swin-composites-{SIZE}.pt", seed)
    network = kept(file, swin.network(SIZE, len(CLASSES)), train)
    about = f"Swin, 11 M parameters, windows of 7×7, {(SIZE // 4) ** 2} patches at first and 16 at last"
    if not used_to_hiding:
        return on_composites("swin", network, about, half, stamps)
    before = copy.deepcopy(network)
    _accustom_to_composites(file, network, stamps, seed, ())
    return on_composites("swin, used to hidden patches", network, about, half, stamps, before)


def _fine_tuned(cache: Path, stamps: Path, seed: int) -> nn.Module:
    if (reason := missing(stamps)) is not None:
        raise FileNotFoundError(reason)

    def train(network: nn.Module) -> None:
        backbone.fine_tune(network, scene(stamps, "train", seed), TRAINING_STEPS, BATCH, FROZEN, seed)

    return kept(_composites_file(cache, seed), backbone.network(SIZE, len(CLASSES)), train)


def _composites_file(cache: Path, seed: int) -> Path:
    return of_seed(cache / f"composites-{SIZE}.pt", seed)


def _accustom_to_composites(file: Path, network: nn.Module, stamps: Path, seed: int, frozen: tuple[str, ...]) -> None:
    """Make a network of this file one that is used to hidden patches."""

    def train(network: nn.Module) -> None:
        composites, normalise = scene(stamps, "train", seed), _normalisation(MEAN, STD)

        def batch() -> tuple[Tensor, Tensor]:
            pixels, label = composites.batch(BATCH)
            return normalise(pixels), label

        hidden_patches.accustom(network, batch, (SIZE // 14, SIZE // 14), RATE_OF_HIDING["composites"], frozen, seed)

    kept(file.with_stem(f"{file.stem}-hidden"), network, train)


def on_composites(
    name: str, network: nn.Module, about: str, half: Half, stamps: Path, before: nn.Module | None = None
) -> Subject:
    """A network judged on a half of the held-out stamps, one composite each; what it was before hidden patches."""
    composites = scene(stamps, half)
    normalise = _normalisation(MEAN, STD)
    pixels, label, masks = composites.everything(1)
    paired, pair_labels, pair_masks = composites.pairs(PAIRS)
    images = normalise(pixels)
    right = _predicted(network, images) == label
    about = f"{about}, {len(CLASSES)} classes; cut-outs on photographs, {SIZE}×{SIZE} pixels"
    if before is not None:
        about = f"{about}; {_used_to(before, network, images, label, (SIZE // 14, SIZE // 14))}"
    return Subject(
        name,
        network,
        images[right],
        label[right],
        (SIZE // 14, SIZE // 14),
        8,
        masks[right],
        (normalise(paired), pair_labels, pair_masks),
        right.float().mean().item(),
        about,
    )


def digits(cache: Path, half: Half, count: int = 100, seed: int = 0, *, used_to_hiding: bool = False) -> Subject:
    """The demo's model and its validation images.

    Args:
        cache: folder that keeps the weights.
        half: the even or the odd ones of a shuffled order.
        count: images at most.
        seed: of the fine-tuning.
        used_to_hiding: a copy that has seen hidden patches.
    """
    about = "ViT of the demo, 0.17 M parameters, 10 classes; MNIST digits of 28×28 pixels, 196 patches"
    network, grid = digits_network(cache, seed), (14, 14)
    if not used_to_hiding:
        return on_digits(network, about, grid, half, count)
    before = copy.deepcopy(network)

    def train(network: nn.Module) -> None:
        from lightning_attngrad.demo.data import DIGIT_MEAN, DIGIT_STD, load_digits

        (pixels, labels), _ = load_digits()
        generator = torch.Generator().manual_seed(seed)

        def batch() -> tuple[Tensor, Tensor]:
            chosen = torch.randint(len(labels), (2 * BATCH,), generator=generator)
            return _normalisation((DIGIT_MEAN,), (DIGIT_STD,))(pixels[chosen]), labels[chosen]

        hidden_patches.accustom(network, batch, grid, RATE_OF_HIDING["digits"], seed=seed)

    kept(of_seed(cache / "digits-hidden.pt", seed), network, train)
    return on_digits(network, about, grid, half, count, before)


def on_digits(
    network: nn.Module,
    about: str,
    grid: tuple[int, int],
    half: Half,
    count: int = 100,
    before: nn.Module | None = None,
) -> Subject:
    """A network judged on the demo's validation images; patches are replaced in as many steps as there are rows."""
    from lightning_attngrad.demo.data import DIGIT_MEAN, DIGIT_STD, load_digits

    _, (pixels, labels) = load_digits()
    chosen = shuffled_half(len(labels), half)[:count]
    images, label = _normalisation((DIGIT_MEAN,), (DIGIT_STD,))(pixels[chosen]), labels[chosen]
    right = _predicted(network, images) == label
    if before is not None:
        about = f"{about}; {_used_to(before, network, images, label, grid)}"
    return Subject(
        "digits" if before is None else "digits, used to hidden patches",
        network,
        images[right],
        label[right],
        grid,
        grid[0],
        None,
        None,
        right.float().mean().item(),
        about,
    )


def _used_to(before: nn.Module, network: nn.Module, images: Tensor, label: Tensor, grid: tuple[int, int]) -> str:
    found = [hidden_patches.accuracy(one, images, label, grid) for one in (network, before)]
    return f"a copy used to hidden patches (accuracy with half of them hidden {found[0]:.2f}, before {found[1]:.2f})"


def shuffled_half(total: int, half: Half) -> Tensor:
    """Indices of every second image of a shuffled order that never changes."""
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    return order[0 if half == "choose" else 1 :: 2]


def scene(stamps: Path, part: str, seed: int = 0) -> Scene:
    """The composites of a part, "train" or a half; other composites of the same stamps with another seed."""
    return Scene(
        stamps,
        CLASSES,
        lambda number: number % 4 in REMAINDERS[part],
        held_out=part != "train",
        seed=SEEDS[part] + len(SEEDS) * seed,
        size=SIZE,
        scale=(0.5, 0.9),
    )


def _normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensor], Tensor]:
    of_channel, spread = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return lambda pixels: (pixels - of_channel) / spread


@torch.inference_mode()
def _predicted(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(part).argmax(dim=1) for part in images.split(32)])
