"""Where the object of an image is, as keys that the attention of a classifier should look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import (
    CallPlaces,
    Grid,
    ImagePlaces,
    KnownPlaces,
    TokenPlaces,
    UnsupportedModelError,
)
from lightning_attngrad.explain.forward_pass import answers_of
from lightning_attngrad.explain.placing import gather_tokens, in_cells, row_images, within_area
from lightning_attngrad.guidance.capture import check_eager
from lightning_attngrad.guidance.pairs import PlausiblePairs
from lightning_attngrad.state import differentiable, held_still

_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, ImagePlaces]] = WeakKeyDictionary()
#: Of a cell: less than this much of the object is rounding.
_NOTHING = 1e-4


def image_places(model: nn.Module, images: Tensor, *, forward: Callable[[Tensor], Any] | None = None) -> ImagePlaces:
    """Where the tokens of each attention call lie on images of this size, found once by tracing the model.

    The tracing runs the model once, held still and in evaluation mode, and leaves no trace in it; later calls for as
    many images of that size look the places up.

    Args:
        model: as :func:`capture_attention` is given it.
        images: (B, C, H, W), as the model takes them.
        forward: run instead of ``model(images)``; to be the same function each time.

    Raises:
        ValueError: for a compiled model.
        UnsupportedModelError: if tokens cannot be traced to the image, or are picked anew in each forward pass.
    """
    check_eager(model)
    key = (images.shape, images.device, getattr(forward, "__code__", type(forward)))
    known = _KNOWN.setdefault(model, {})
    if key in known:
        return known[key]
    with differentiable(), held_still(model):
        found = KnownPlaces(model, images.detach().clone(), forward, answers_of)
    if found.places.obstacle is not None:
        raise type(found.places.obstacle)(*found.places.obstacle.args)
    if found.chosen:
        raise UnsupportedModelError(
            f"{type(model).__name__}: it picks its tokens by what the images hold, or by chance, so that where they "
            "lie in a step of training cannot be known; guide layers before that, with masks of your own"
        )
    known[key] = found.places
    return found.places


def object_pairs(places: ImagePlaces, masks: Tensor) -> dict[str, PlausiblePairs]:
    """Which keys each attention call should read from: those that see some of the object.

    Guided are the queries that lie nowhere on the image, such as the class token, and those on the object: what these
    read from elsewhere would reach the class token through them. Where no query lies nowhere (a model that pools its
    tokens), all are guided. Inside are keys whose cell the object touches, outside the other keys on the image.
    Keys that lie nowhere are neither: how much a class token reads from itself is left to the model.

    An image whose mask is empty adds nothing to the loss.

    Args:
        places: as :func:`image_places` finds them.
        masks: (B, H, W), of the size of the images; a pixel belongs to the object from 0.5 on, or where True.

    Returns:
        Pairs by the name of the call, for :func:`attention_guidance_loss`; of all calls that the output depends on and
        that read tokens of the image.

    Raises:
        ValueError: for masks of another number than the images.
        UnsupportedModelError: if the heads of a call read from different tokens.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("test_vit", num_classes=3)
        >>> masks = torch.zeros(2, 160, 160, dtype=torch.bool)
        >>> masks[:, :80, :16] = True  # five patches
        >>> pairs = object_pairs(image_places(model, torch.rand(2, 3, 160, 160)), masks)
        >>> pairs["blocks.0.attn"].inside.sum(dim=-1).flatten(), pairs["blocks.0.attn"].asks.sum(dim=-1)
        (tensor([5, 5]), tensor([6, 6]))
    """
    if masks.dim() != 3 or len(masks) != places.batch:
        raise ValueError(f"masks: got {tuple(masks.shape)} for {places.batch} images; expected (B, H, W)")
    objects = within_area((masks >= 0.5) if masks.is_floating_point() else masks.bool(), places.area).float()
    return {
        call.name: _pairs(call, objects, places)
        for call in places.calls
        if call.counts and call.kind == "tokens" and call.keys.grid is not None
    }


def _pairs(call: CallPlaces, objects: Tensor, places: ImagePlaces) -> PlausiblePairs:
    if call.keys.place.shape[1] > 1:
        raise UnsupportedModelError(
            f"the heads of {call.name!r} read from different tokens, which guidance has no form for; leave it out of "
            "layers="
        )
    assert call.keys.grid is not None
    seen = _seen(objects, call.keys.grid, places)
    inside = _at_tokens(seen, call.keys, places.slots)  # (R, M)
    outside = _at_tokens(torch.ones_like(seen), call.keys, places.slots) & ~inside
    device = objects.device
    image, place = (each[:, 0].to(device) for each in (call.queries.image, call.queries.place))  # (R, N)
    asks = image >= 0  # padding asks for nothing
    nowhere = asks & (place < places.slots)  # (R, N)
    if bool(nowhere.any()):
        asks = nowhere
        if call.queries.grid is not None:
            seen = _seen(objects, call.queries.grid, places)
            asks = nowhere | _at_tokens(seen, call.queries, places.slots)
    images = None if call.keys.in_order else row_images(call.keys).to(device)
    return PlausiblePairs(inside.unsqueeze(1), outside.unsqueeze(1), None, asks, images, places.batch)


def _seen(objects: Tensor, grid: Grid, places: ImagePlaces) -> Tensor:
    """Which cells the objects (B, H, W) touch, (B, h·w)."""
    return in_cells(objects, grid, places).flatten(1) > _NOTHING


def _at_tokens(cells: Tensor, tokens: TokenPlaces, slots: int) -> Tensor:
    """What cells (B, h·w) are at the tokens of a call, (R, M) bool; False at tokens that lie nowhere."""
    state = F.pad(cells.float(), (slots, 0)).unsqueeze(1)  # (B, 1, S + h·w)
    return gather_tokens(state, tokens, slots)[:, 0, 0] > 0
