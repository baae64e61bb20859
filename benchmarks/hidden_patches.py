"""A copy of a model that is used to hidden patches: fine-tuned shortly with some of them in the mean colour.

Faithfulness is measured by hiding patches, and a model that has never seen that answers partly to the sight of it.
Hesse et al. (*Benchmarking the Attribution Quality of Vision Models*, NeurIPS 2024, arXiv 2407.11910) fine-tune the
model under inspection on images with deleted patches, half of them without, and take maps **and** deletions of the
copy: the copy is the model that is explained. So here. They delete one patch of a coarse grid and correlate ranks
(IDSDS); the curves here hide any share, and so does the training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 80
UNTOUCHED = 0.5


def accustom(
    network: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    grid: tuple[int, int],
    rate: float,
    frozen: Sequence[str] = (),
    seed: int = 0,
) -> None:
    """Fine-tune a network, all but the parameters that begin with a ``frozen`` name.

    Args:
        network: from normalised images to logits.
        batch: gives normalised images (B, C, H, W) and labels (B,).
        grid: rows and columns of patches.
        rate: the largest learning rate, of one cycle.
        frozen: beginnings of names.
        seed: of the patches.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(tuple(frozen))))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=STEPS)
    network.train()
    for _ in range(STEPS):
        images, label = batch()
        share = torch.rand(len(images), 1, 1, generator=generator)
        touched = torch.rand(len(images), 1, 1, generator=generator) >= UNTOUCHED
        loss = F.cross_entropy(network(hide(images, share * touched, grid, generator)), label)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    network.zero_grad()
    network.requires_grad_()
    network.eval()


def hide(images: Tensor, share: Tensor | float, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Images with each patch in their mean colour by this chance, a number or one an image (B, 1, 1)."""
    gone = torch.rand(len(images), *grid, generator=generator) < share
    pixels = F.interpolate(gone[:, None].float(), images.shape[-2:], mode="nearest-exact") > 0
    return torch.where(pixels, images.mean(dim=(-2, -1), keepdim=True), images)


@torch.inference_mode()
def accuracy(network: nn.Module, images: Tensor, label: Tensor, grid: tuple[int, int]) -> float:
    """Of a network where half of the patches are hidden, the same for all networks."""
    shown = hide(images, 0.5, grid, torch.Generator().manual_seed(0))
    predicted = torch.cat([network(part).argmax(dim=1) for part in shown.split(32)])
    return (predicted == label).float().mean().item()
