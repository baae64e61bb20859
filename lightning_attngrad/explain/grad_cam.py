"""Grad-CAM (Selvaraju et al., arXiv 1610.02391) on any stage of a transformer or of another network."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attngrad.attention import EmbeddedPlaces, Grid, ImagePlaces, TokenPlaces, UnsupportedModelError
from lightning_attngrad.explain.forward_pass import ForwardPass, numbers_of
from lightning_attngrad.explain.objectives import Seeds
from lightning_attngrad.explain.placing import scatter_tokens
from lightning_attngrad.explain.registry import TokenScores, register_method


@dataclass(frozen=True)
class GradCamOptions:
    """Options of ``grad_cam``.

    Args:
        layer: name of the module whose output is read, as ``model.named_modules()`` has it. None is the normalised
            tokens in front of the last self-attention; without attention, the last map of features.

    Raises:
        ValueError: for anything but a name.
    """

    layer: str | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and (not isinstance(self.layer, str) or not self.layer):
            raise ValueError(f"layer: got {self.layer!r}; expected the name of a module, or None")


@register_method(
    "grad_cam",
    source="Selvaraju et al., arXiv 1610.02391",
    start="embedding",
    options=GradCamOptions,
    class_sensitive=True,
    follows_attention=False,
)
def grad_cam(forward: ForwardPass, seeds: Seeds, options: GradCamOptions) -> TokenScores:
    """Channels of a map of features, weighted by their mean gradient over the image, ReLU.

    By default the map is the normalised tokens in front of the last self-attention: behind it a class-token model has no
    gradient at the patches, so this is the last place at which grad-CAM says anything. Tokens (B, N, D) and maps
    (B, h, w, D) and (B, D, h, w) are read alike. Warns of maps that the ReLU leaves empty.
    """
    features = _features(forward, options.layer)
    places = _places_of(features, forward, options.layer)
    tokens, grid = places.tokens, places.tokens.grid
    assert grid is not None
    gradient = seeds.gradient_at(features)
    dtype = torch.promote_types(features.dtype, torch.float32)
    values = features.detach().to(dtype).movedim(places.channel_axis, -1).flatten(0, -2)  # (tokens, D)
    gradients = gradient.to(dtype).movedim(places.channel_axis, -1).flatten(0, -2)
    image, on_image = tokens.image.flatten(), tokens.place.flatten() >= forward.places.slots
    image = image.clamp_min(0)
    shares = on_image.to(dtype).unsqueeze(1)
    count = shares.new_zeros(forward.batch, 1).index_add_(0, image, shares)
    total = gradients.new_zeros(forward.batch, gradients.shape[1]).index_add_(0, image, gradients * shares)
    weighted = (values * (total / count)[image]).sum(dim=1).relu()
    scores = scatter_tokens(weighted.view(1, 1, 1, -1), tokens, forward.places.slots, forward.batch)
    reached = gradients.ne(0).any(dim=1).to(dtype)
    reached = reached.new_zeros(forward.batch).index_add_(0, image, reached)
    zero_gradient = reached == 0
    _warn_of_empty(scores[..., forward.places.slots :], zero_gradient)
    return TokenScores(scores, zero_gradient, grid=grid)


def _warn_of_empty(patches: Tensor, zero_gradient: Tensor) -> None:
    empty = ~patches.flatten(1).ne(0).any(dim=1) & ~zero_gradient
    if bool(empty.any()):
        warnings.warn(
            f"grad_cam: the map of {numbers_of(empty)[1]} is zero everywhere: by their mean gradient its channels speak "
            "against the class at every place, and its ReLU leaves nothing. Another layer=, or another method, may "
            "say more",
            stacklevel=2,
        )


def _features(forward: ForwardPass, layer: str | None) -> Tensor:
    """The tensor to read from."""
    if layer is not None:
        if not forward.layer_output:
            raise ValueError(f"layer: {layer!r} did not run in the forward pass, or gave no tensor; choose another")
        return forward.layer_output[0]
    features = forward.tap.features
    found = features.last_normalised if features.attends else features.last_map
    if found is None:
        raise ValueError(
            "model: no normalisation of the tokens was seen in front of its last attention, and grad_cam is read from "
            "its output. Say where else, layer='name of a module', use method='gradient_guided', or register the "
            "function that normalises with attention.backward_rule(function, normalisation=True)"
        )
    return found


def _places_of(features: Tensor, forward: ForwardPass, layer: str | None) -> EmbeddedPlaces:
    """Where its tokens lie.

    Those of a map are its rows and columns; tokens lie where as many do whose places were traced: those of the embedding
    in the same form, or what an attention call reads or asks for, one row an image.
    """
    embedding, known = forward.tap.embedding, forward.places
    if embedding is not None and known.embedding is not None and _same_form(embedding, features, known.embedding):
        return known.embedding
    if features.dim() == 4 and len(features) == forward.batch:
        axis = _channel_axis(features, forward.image_size)
        if axis is not None:
            grid = tuple(size for number, size in enumerate(features.shape[1:], -3) if number != axis)
            return EmbeddedPlaces(axis, _in_reading_order((grid[0], grid[1]), known, features.device))
    if features.dim() == 3 and len(features) == forward.batch:
        for call in reversed(known.calls):
            for tokens in (call.queries, call.keys):
                if tokens.place.shape == (forward.batch, 1, features.shape[1]) and tokens.grid is not None:
                    one_row = TokenPlaces(tokens.image.view(1, 1, -1), tokens.place.view(1, 1, -1), tokens.grid)
                    return EmbeddedPlaces(-1, one_row)
    where = "the tensor that grad_cam is read from" if layer is None else f"the output of {layer!r}"
    raise UnsupportedModelError(
        f"model: {where} has shape {tuple(features.shape)} for {forward.batch} images of "
        f"{forward.image_size[0]}×{forward.image_size[1]} pixels; which of its elements lie where is not known. Expected "
        "(B, tokens, D) with tokens that an attention reads, (B, h, w, D) or (B, D, h, w); layer= names another module"
    )


def _same_form(embedding: Tensor, features: Tensor, places: EmbeddedPlaces) -> bool:
    """Whether a tensor is shaped like the embedding, channels apart."""
    if embedding.dim() != features.dim():
        return False
    shapes = [list(tensor.shape) for tensor in (embedding, features)]
    for shape in shapes:
        del shape[places.channel_axis]
    return shapes[0] == shapes[1]


def _channel_axis(features: Tensor, image_size: Grid) -> int | None:
    """Which axis of (B, D, h, w) or (B, h, w, D) is D: the two others have the proportions of the image, nearly."""

    def distortion(grid: Grid) -> float:
        return abs(math.log(image_size[0] / grid[0]) - math.log(image_size[1] / grid[1]))

    _, first, second, third = features.shape
    last, front = distortion((first, second)), distortion((second, third))
    axis, grid, least = (-1, (first, second), last) if last < front else (-3, (second, third), front)
    # Rounding up and padding to whole windows move a side by a cell or so.
    return axis if least <= 1.5 / min(grid) and grid[0] <= image_size[0] and grid[1] <= image_size[1] else None


def _in_reading_order(grid: Grid, known: ImagePlaces, device: torch.device) -> TokenPlaces:
    """(1, 1, B·h·w): all images, row by row."""
    cells = grid[0] * grid[1]
    numbers = torch.arange(known.batch * cells, device=device)
    return TokenPlaces((numbers // cells).view(1, 1, -1), (known.slots + numbers % cells).view(1, 1, -1), grid)
