"""Faithfulness: whether the patches that a map calls relevant are those that the prediction depends on.

Patches are replaced in the order in which the map ranks them, and the probability of the target class is watched: most
relevant first (MoRF, "deletion") it should fall at once, least relevant first (LeRF) it should hold out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.explain import TASKS, UNSAID, Task, check_task, of_rows
from lightning_attngrad.explain.shown import Shown, counted
from lightning_attngrad.metrics.functional.precision import full_precision
from lightning_attngrad.state import held_still

Replacement = Literal["mean", "blur"]
REPLACEMENTS: tuple[Replacement, ...] = ("mean", "blur")


@dataclass(frozen=True, eq=False, repr=False)
class Faithfulness(Shown):
    """Probability of the target class while more and more patches are replaced, float32.

    Attributes:
        shares: (S + 1,) of the patches that are replaced, from 0 to 1, whole patches.
        morf: (B, S + 1) probability with so many replaced, most relevant first.
        lerf: (B, S + 1) least relevant first.

    Both curves begin at the image as it is and end at the one that is replaced everywhere. Images are NaN where the map
    is not finite; where the model's output is not, those points are.
    """

    shares: Tensor
    morf: Tensor
    lerf: Tensor

    @property
    def deletion(self) -> Tensor:
        """(B,) area under ``morf``, between 0 and 1; lower is better."""
        return area_under_curve(self.morf, self.shares)

    @property
    def insertion(self) -> Tensor:
        """(B,) area under the insertion curve, which is that under ``lerf``; higher is better.

        Insertion begins with the replaced image and puts patches back, most relevant first. With a share p of them back
        it sees the very image that LeRF sees with 1 − p replaced: the same curve, read from the other end.
        """
        return area_under_curve(self.lerf, self.shares)

    @property
    def insertion_curve(self) -> Tensor:
        """(B, S + 1) probability with the most relevant patches put back: ``lerf`` from the other end.

        The share that is back at each place is ``1 − shares.flip(0)``.
        """
        return self.lerf.flip(1)

    @property
    def srg(self) -> Tensor:
        """(B,) symmetric relevance gain: the area between ``lerf`` and ``morf``, in [−1, 1]; higher is better.

        A random order gains 0 on average, whatever the replacement does to the image; the reversed map gains the
        negative of what the map does.
        """
        return self.insertion - self.deletion

    def __repr__(self) -> str:
        gain = f"{float(self.srg.nanmean()):+.3f}".replace("-", "−")
        return f"Faithfulness({counted(len(self.morf), 'image')}, {len(self.shares)} points, SRG {gain})"

    def plot(self, *, replaced_by: str = "what was asked for", style: Any = None) -> Any:
        """Draw both curves, means and quartiles over the images.

        Args:
            replaced_by: in words, for the head of the figure.
            style: a :class:`lightning_attngrad.FigureStyle`.

        Returns:
            A ``matplotlib.figure.Figure``.
        """
        from lightning_attngrad.reporting.perturbation import PerturbationCurves, perturbation_curves  # noqa: PLC0415
        from lightning_attngrad.reporting.style import PLAIN  # noqa: PLC0415

        return perturbation_curves(
            {"mean of the images": PerturbationCurves(self.shares, self.morf, self.lerf)},
            replaced_by=replaced_by,
            title="Whether to believe the maps",
            style=PLAIN if style is None else style,
        )


def faithfulness_curves(
    model: nn.Module,
    images: Tensor,
    heatmap: Tensor,
    target: Tensor,
    *,
    steps: int = 16,
    replacement: Replacement = "mean",
    batch: int = 64,
    forward: Callable[[Tensor], Any] | None = None,
    area: tuple[int, int, int, int] | None = None,
    task: str | Task | None = None,
) -> Faithfulness:
    """Deletion (MoRF), LeRF and insertion curves, and with them the symmetric relevance gain.

    Takes ``2 · steps · B`` images through the model, ``batch`` of them at once, whatever the maps and the probabilities
    are: the image as it is, the one that is replaced everywhere, and ``steps − 1`` between them for each of the two
    orders. The model is held still meanwhile (evaluation mode, no compiled graphs) and every flag is put back.

    Of equally relevant patches the first in reading order counts as the more relevant.

    Args:
        model: any module from images to logits (B, C): a tensor, or an output with ``.logits``.
        images: (B, C, H, W), normalised as the model takes them.
        heatmap: (B, h, w), larger where a patch is more relevant. Where H or W is no multiple of h or w, a pixel
            belongs to the patch that its centre lies in.
        target: (B,) classes, ints.
        steps: S, into how many equal shares the patches are divided, rounded to whole patches.
        replacement: ``mean``, each channel's mean over this image, or ``blur``, the image under a Gaussian whose
            standard deviation is one patch, its weights beyond the edge dropped. Neither leaves detail inside a patch;
            the blurred image keeps coarse colours and so stays closer to what the model was trained on.
        batch: images that go through the model at once.
        forward: called instead of ``model(images)``, for keyword inputs or a precision context.
        area: top, left, bottom, right in pixels of the part of the images that the map covers, ``Explanation.area``;
            what lies around it stays as it is. None is the whole image.
        task: what the output means, see :func:`lightning_attngrad.explain`; it says what a probability is. Of a model
            of one output of which nothing is said the sigmoid is taken, as of one label.

    Returns:
        :class:`Faithfulness`.

    Raises:
        ValueError: for an argument that does not fit.

    Source:
        MoRF, and replacing region by region: Samek et al., arXiv 1509.06321. Deletion and insertion areas: Petsiuk et
        al., arXiv 1806.07421. LeRF − MoRF as symmetric relevance gain: Blücher et al., arXiv 2401.06654.

    Example:
        >>> dark_or_bright = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
        >>> with torch.no_grad():
        ...     _ = dark_or_bright[1].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
        >>> image = torch.zeros(1, 1, 4, 4)
        >>> image[..., :2, :2] = 1  # one bright patch of four
        >>> heatmap = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> result = faithfulness_curves(dark_or_bright, image, heatmap, torch.tensor([1]), steps=4)
        >>> result.shares, result.srg > 0
        (tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000]), tensor([True]))
    """
    check(images, heatmap, target, replacement, steps=steps, batch=batch)
    # Outside inference mode also where the caller is in it: results, and what a model caches, are normal tensors.
    with torch.inference_mode(mode=False), torch.no_grad(), held_still(model):
        return _curves(
            images,
            heatmap.to(images.device),
            target.to(images.device),
            steps,
            replacement,
            batch,
            forward or model,
            area,
            check_task(task),
        )


def _curves(
    images: Tensor,
    heatmap: Tensor,
    target: Tensor,
    steps: int,
    replacement: Replacement,
    batch: int,
    forward: Callable[[Tensor], Any],
    area: tuple[int, int, int, int] | None,
    task: Task,
) -> Faithfulness:
    patches = heatmap.shape[-2] * heatmap.shape[-1]
    inner = bounds_of_shares(patches, steps)[1:-1]
    begin = [0, 0, *(0 for _ in inner), *(patches - number for number in inner)]
    end = [0, patches, *inner, *(patches for _ in inner)]
    found = probabilities_without(images, heatmap, target, begin, end, replacement, batch, forward, area, task)
    whole, none, first, last = found.split([1, 1, len(inner), len(inner)], dim=1)
    return Faithfulness(
        shares=replaced_shares(patches, steps, images.device),
        morf=torch.cat([whole, first, none], dim=1),
        lerf=torch.cat([whole, last, none], dim=1),
    )


def probabilities_without(
    images: Tensor,
    heatmap: Tensor,
    target: Tensor,
    begin: Sequence[int],
    end: Sequence[int],
    replacement: Replacement,
    batch: int,
    forward: Callable[[Tensor], Any],
    area: tuple[int, int, int, int] | None,
    task: Task,
) -> Tensor:
    """Probability of the target class with some places of a map's ranking replaced, all variants of an image at once.

    Args:
        images: (B, C, H, W).
        heatmap: (B, h, w), which ranks the patches: place 0 is the most relevant.
        target: (B,) classes.
        begin: of each of V variants, from which place on patches are replaced.
        end: of each, up to which, itself left out.
        replacement: see :func:`faithfulness_curves`, as all that follow.
        batch: images that go through the model at once.
        forward: the model.
        area: of the images that the map covers; None is all.
        task: what the output means.

    Returns:
        (B, V) float32; NaN for images whose map is not finite, and where the model's output is not.
    """
    variants, patches = len(begin), heatmap.shape[-2] * heatmap.shape[-1]
    first, last = (torch.tensor(places, device=images.device) for places in (begin, end))
    area = (0, 0, images.shape[-2], images.shape[-1]) if area is None else area
    covered = images[..., area[0] : area[2], area[1] : area[3]]
    place = _place_of_pixels(heatmap, covered.shape[-2:])  # (B, 1, H, W)
    instead = replaced_everywhere(covered, replacement, heatmap.shape[-2:])
    if covered.shape != images.shape:
        around = (area[1], images.shape[-1] - area[3], area[0], images.shape[-2] - area[2])
        place = F.pad(place, around, value=patches)  # behind all that are replaced
        instead = F.pad(instead.expand_as(covered), around)
    found = torch.empty(len(images) * variants, dtype=torch.float32, device=images.device)
    for start in range(0, len(found), batch):
        number = torch.arange(start, min(start + batch, len(found)), device=images.device)
        image, variant = number // variants, number % variants
        places = place[image]
        gone = (places >= first[variant, None, None, None]) & (places < last[variant, None, None, None])
        shown = torch.where(gone, instead[image], images[image])  # (R, C, H, W)
        found[start : start + batch] = _probability(of_rows(forward, image)(shown), target[image], task)
    broken = ~heatmap.flatten(1).isfinite().all(dim=1)
    return found.view(len(images), variants).masked_fill(broken[:, None], torch.nan)


def replaced_shares(patches: int, steps: int, device: torch.device | None = None) -> Tensor:
    """Shares of the patches that are replaced at each point of a curve: even, but for rounding to whole patches.

    Args:
        patches: of the map.
        steps: S.
        device: of the result.

    Returns:
        (S + 1,) float32, from 0 to 1.

    Example:
        >>> replaced_shares(patches=9, steps=2) * 9
        tensor([0., 5., 9.])
    """
    return torch.tensor(bounds_of_shares(patches, steps), dtype=torch.float32, device=device) / patches


def bounds_of_shares(patches: int, steps: int) -> list[int]:
    """How many of the patches come before each of S + 1 bounds of S equal shares, rounded to whole patches."""
    return [(2 * step * patches + steps) // (2 * steps) for step in range(steps + 1)]  # halves rounded up


def area_under_curve(curve: Tensor, shares: Tensor) -> Tensor:
    """Area under a curve over the share of replaced patches, by the trapezoidal rule.

    Args:
        curve: (…, S + 1).
        shares: (S + 1,) rising from 0 to 1.

    Returns:
        (…).

    Example:
        >>> area_under_curve(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.2500])
    """
    return torch.trapezoid(curve, shares, dim=-1)


def replaced_everywhere(images: Tensor, replacement: Replacement, grid: tuple[int, int] | torch.Size) -> Tensor:
    """What stands in for patches, see :func:`faithfulness_curves`.

    Args:
        images: (B, C, H, W).
        replacement: ``mean`` or ``blur``.
        grid: h and w of the map.

    Returns:
        (B, C, H, W), or (B, C, 1, 1) for ``mean``, in the type of the images.
    """
    wide = images if images.dtype == torch.float64 else images.float()
    if replacement == "mean":
        return wide.mean(dim=(-2, -1), keepdim=True).to(images.dtype)
    down, across = (
        _gaussian(size, size / cells, wide) for size, cells in zip(images.shape[-2:], grid, strict=True)
    )  # (H, H) and (W, W)
    with full_precision(images.device):
        blurred: Tensor = down @ wide @ across.mT
    return blurred.to(images.dtype)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """Weights of the pixels of a line in each pixel of the blurred line: (size, size), rows sum to 1."""
    pixels = torch.arange(size, dtype=like.dtype, device=like.device)
    weights = (-0.5 * ((pixels[:, None] - pixels) / sigma).square()).exp()
    return weights / weights.sum(dim=1, keepdim=True)


def _place_of_pixels(heatmap: Tensor, size: torch.Size) -> Tensor:
    """Place in the ranking of the patch that each pixel belongs to: (B, 1, H, W) int32, 0 for the most relevant."""
    (height, width), (rows, columns) = size, heatmap.shape[-2:]
    flat = heatmap.flatten(1).nan_to_num()
    order = flat.argsort(dim=1, descending=True, stable=True)
    number = torch.arange(flat.shape[1], dtype=torch.int32, device=heatmap.device).expand_as(order)
    place = torch.empty_like(number).scatter_(1, order, number).view_as(heatmap)
    # The patch in which the centre of a pixel lies, in whole numbers: (i + ½) h / H.
    row, column = (
        (2 * torch.arange(pixels, device=heatmap.device) + 1) * cells // (2 * pixels)
        for pixels, cells in ((height, rows), (width, columns))
    )
    return place[:, row[:, None], column][:, None]


def _probability(output: Any, target: Tensor, task: Task) -> Tensor:
    """(R,) float32 of the target class."""
    scores = task.scores(output, len(target))
    if task is UNSAID and scores.shape[1] == 1:
        task = TASKS["multilabel"]
        scores = task.scores(output, len(target))
    task.check_target(target, scores.shape[1])
    return task.probabilities(scores.float()).gather(1, target[:, None].long())[:, 0]


def check(images: Tensor, heatmap: Tensor, target: Tensor, replacement: str, **counts: int) -> None:
    """Refuse what cannot be measured.

    Args:
        images: see :func:`faithfulness_curves`, as all.
        heatmap: of the images.
        target: classes.
        replacement: of patches.
        counts: by their names, numbers that have to be positive.

    Raises:
        ValueError: what was given, and what would do.
    """
    if images.dim() != 4 or not images.is_floating_point() or 0 in images.shape[1:]:
        raise ValueError(f"images: got {images.dtype} {tuple(images.shape)}; expected floats (B, C, H, W)")
    if heatmap.dim() != 3 or len(heatmap) != len(images) or 0 in heatmap.shape[1:] or not heatmap.is_floating_point():
        raise ValueError(
            f"heatmap: got {heatmap.dtype} {tuple(heatmap.shape)}; expected floats ({len(images)}, h, w), one map an "
            "image; of several panels give one"
        )
    if heatmap.shape[-2] > images.shape[-2] or heatmap.shape[-1] > images.shape[-1]:
        raise ValueError(
            f"heatmap: got {tuple(heatmap.shape[-2:])} patches of {tuple(images.shape[-2:])} pixels; expected one "
            "pixel or more a patch"
        )
    whole = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    if target.shape != (len(images),) or not whole:
        raise ValueError(
            f"target: got {target.dtype} {tuple(target.shape)}; expected ({len(images)},) ints, one class an image"
        )
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}; expected a positive int")
    if replacement not in REPLACEMENTS:
        raise ValueError(f"replacement: got {replacement!r}; expected one of {', '.join(REPLACEMENTS)}")
