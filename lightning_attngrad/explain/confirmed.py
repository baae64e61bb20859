"""``quality="best"``: of two maps of each image the one that the model itself confirms.

Maps of one backward pass follow the image as it is; integrated gradients follow it all the way from an image of one
colour. Which of them is right about patches that are taken away differs from model to model. It can be asked: patches
are taken away, and the objective is read again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import outside_autocast
from lightning_attngrad.attention.places import Area, Grid, carry
from lightning_attngrad.explain.explanation import Explanation
from lightning_attngrad.explain.forward_pass import ForwardPass, forward_pass
from lightning_attngrad.explain.objectives import Objective, QueryBox, QueryClass, Seeds, ValueObjective
from lightning_attngrad.explain.outputs import Task
from lightning_attngrad.explain.placing import within_area

#: Stands where an explanation names its method: it is by no one method.
BEST = "quality='best'"
#: The map that joins the default's: the two err on different images.
SECOND_METHOD = "attn_lrp"
#: Gradients on the way from the image's mean colour to the image, at the middles of so many equal parts.
STEPS = 4
#: Of the patches, how many are shown, or hidden, when a map is put to the test.
SHARES = (0.25, 0.75)

#: From images (B, C, H, W), and whether a backward pass follows, to a forward pass whose graph begins at them.
Run = Callable[[Tensor, bool], AbstractContextManager[ForwardPass]]
#: From that and the number of a panel to its objective.
Ask = Callable[[ForwardPass, int], Seeds]


def check_best(method: str | None, options: Mapping[str, Any], objective: Objective) -> None:
    """Refuse what does not go with ``quality="best"``.

    Raises:
        ValueError: saying what to write.
    """
    if method is not None or options:
        name, value = ("method", method) if method is not None else next(iter(options.items()))
        raise ValueError(
            f"{name}: got {value!r} beside quality='best', which compares maps of several methods and chooses; leave "
            f"{name}= out, or write quality='default'"
        )
    best_query = isinstance(objective, QueryClass | QueryBox) and objective.query is None  # another one in each copy
    if not isinstance(objective, ValueObjective) or best_query:
        raise ValueError(
            f"objective: got {objective!r} beside quality='best', which reads it again while patches are hidden: it "
            "has to be a function of the output alone, such as 'logit', 'margin', Contrast(against), QueryClass(class, "
            "query) or a function from the output to one number an image; or write quality='default'"
        )


def confirmed(
    model: nn.Module,
    images: Tensor,
    found: Sequence[Explanation],
    objective: Objective,
    *,
    forward: Callable[[Tensor], Any] | None,
    task: Task,
) -> Explanation:
    """An explanation with, for each image and panel, the better confirmed of two maps.

    One is integrated gradients, the other the mean of these and of the maps of ``found``; in it each counts as shares,
    divided by the sum of its absolute values. A map is confirmed as far as Φ is larger where the patches that it ranks
    highest are shown and the others hidden in the image's mean colour than the other way round: the mean of this over
    a quarter and three quarters of the patches.

    Args:
        model: of the images.
        images: (B, C, H, W).
        found: explanations of them by one backward pass each; the first goes on to say what the model makes of them.
        objective: Φ, which they explain.
        forward: called instead of ``model(images)``.
        task: what the model's output means.

    Returns:
        The first explanation with other maps, signed, whose absolute values sum to 1 (or to 0, where nothing is found);
        without ``layers`` and ``completeness_error``, for they account for the output of no one image.

    Source:
        Integrated gradients: arXiv 1703.01365. The test is two points of the symmetric relevance gain (Blücher et al.,
        arXiv 2401.06654), of Φ in place of a probability; to choose by it is our own.
    """
    first = found[0]
    run, ask = passes(model, objective, first.target, forward, task)
    shape = first.heatmap.shape
    grid = shape[-2], shape[-1]
    area = first.area
    colour = in_mean_colour(images, area)
    like = first.heatmap.reshape(len(images), -1, *grid)  # (B, P, h, w)
    along = shares(integrated_gradients(images, colour, like, area, run, ask))
    others = [shares(carry(one.heatmap, grid)).view_as(like) for one in found]
    maps = torch.stack([along, shares(torch.stack([along, *others]).sum(dim=0))])  # (2, B, P, h, w)
    gains = torch.stack([confirmation(images, colour, one, area, run, ask) for one in maps])  # (2, B, P)
    heatmap = torch.where((gains[0] >= gains[1])[..., None, None], maps[0], maps[1]).view(shape)
    slots = first.token_scores.shape[-1] - math.prod(grid)
    return replace(
        first,
        heatmap=heatmap,
        token_scores=F.pad(heatmap.flatten(-2), (slots, 0)),
        layers=None,
        layer_names=(),
        completeness_error=None,
        method=BEST,
    )


def passes(
    model: nn.Module,
    objective: Objective,
    target: Tensor | None,
    forward: Callable[[Tensor], Any] | None,
    task: Task,
) -> tuple[Run, Ask]:
    """Passes whose graph begins at the images, and what is asked of them: about classes (B,) or (B, P), or none."""
    classes = [target] if target is None or target.dim() == 1 else list(target.unbind(1))

    def run(images: Tensor, backward: bool) -> AbstractContextManager[ForwardPass]:
        return forward_pass(
            model, images, forward=forward, start="images", follows_attention=False, backward=backward, task=task
        )

    def ask(ran: ForwardPass, panel: int) -> Seeds:
        return replace(objective.seeds(ran, classes[panel]), retain_graph=panel + 1 < len(classes))

    return run, ask


def in_mean_colour(images: Tensor, area: Area) -> Tensor:
    """Images (B, C, H, W) with the mean of each channel over the part that a map covers in place of that part."""
    covered = within_area(images, area)
    wide = covered if covered.dtype == torch.float64 else covered.float()
    colour = wide.mean(dim=(-2, -1), keepdim=True).to(images.dtype)
    return torch.where(_inside(images, area), colour, images)


def integrated_gradients(images: Tensor, colour: Tensor, like: Tensor, area: Area, run: Run, ask: Ask) -> Tensor:
    """What Φ gains on the straight way from one image to another, patch by patch, (B, P, h, w) as ``like`` is.

    ``IG[p] = Σ_{pixels of p} (x − x') · mean_k ∂Φ/∂x (x' + (k + ½)/K · (x − x'))``, with K = :data:`STEPS`. As K
    grows, a map sums to Φ(x) − Φ(x').

    Args:
        images: x, (B, C, H, W).
        colour: x', likewise.
        like: (B, P, h, w), for its shape.
        area: that the map covers, in pixels.
        run: a forward pass.
        ask: objective of a panel.

    Source:
        Sundararajan, Taly and Yan, arXiv 1703.01365, eq. 3.
    """
    difference = images - colour
    found = torch.zeros_like(like)
    for step in range(STEPS):
        with run(colour + difference * ((step + 0.5) / STEPS), True) as ran:
            assert ran.images is not None
            for panel in range(like.shape[1]):
                seeds = ask(ran, panel)
                with outside_autocast(images.device):
                    gradient = seeds.gradient_at(ran.images)
                    dtype = torch.promote_types(gradient.dtype, torch.float32)
                    product = (gradient.to(dtype) * difference.to(dtype)).sum(dim=1)  # (B, H, W)
                    found[:, panel] += carry(within_area(product, area), _grid(like)).to(found.dtype) / STEPS
    return found


def confirmation(images: Tensor, colour: Tensor, maps: Tensor, area: Area, run: Run, ask: Ask) -> Tensor:
    """Φ where the patches that a map ranks highest are shown, over Φ where they are hidden; a mean, (B, P)."""
    gain = torch.zeros(maps.shape[:2], device=maps.device, dtype=torch.float32)
    for panel in range(maps.shape[1]):
        for shown, sign in tests(maps[:, panel], images, area):
            with run(torch.where(shown, images, colour), False) as ran:
                gain[:, panel] += sign * ask(ran, panel).value.detach().float() / len(SHARES)
    return gain


def tests(maps: Tensor, images: Tensor, area: Area) -> Iterator[tuple[Tensor, int]]:
    """Which pixels (B, 1, H, W) are shown, and the sign that Φ has then. Equal patches rank in reading order."""
    cells = math.prod(maps.shape[-2:])
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    number = torch.arange(cells, device=maps.device).expand_as(order)
    place = torch.empty_like(order).scatter_(1, order, number).view_as(maps)
    top, left, bottom, right = area
    enlarged = F.interpolate(place[:, None].float(), (bottom - top, right - left), mode="nearest-exact")
    around = (left, images.shape[-1] - right, top, images.shape[-2] - bottom)
    for share in SHARES:
        highest = F.pad(enlarged < share * cells, around, value=True)
        yield highest, 1
        yield F.pad(enlarged >= share * cells, around, value=True), -1


def shares(maps: Tensor) -> Tensor:
    """Maps (…, h, w) over the sum of their absolute values; zero where that is zero."""
    total = maps.abs().sum(dim=(-2, -1), keepdim=True)
    return torch.where(total == 0, 0.0, maps / total)


def _inside(images: Tensor, area: Area) -> Tensor:
    """(H, W) bool, the part that a map covers."""
    top, left, bottom, right = area
    inside = torch.zeros(images.shape[-2:], dtype=torch.bool, device=images.device)
    inside[top:bottom, left:right] = True
    return inside


def _grid(like: Tensor) -> Grid:
    return like.shape[-2], like.shape[-1]
