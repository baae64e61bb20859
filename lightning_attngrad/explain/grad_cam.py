"""Grad-CAM (Selvaraju et al., arXiv 1610.02391) on any stage of a transformer or of another network."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attngrad.attention import TensorPlaces, UnsupportedModelError
from lightning_attngrad.attention.feature_maps import Features
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

    By default the map is the normalised tokens in front of the last self-attention: behind it a class-token model has
    no gradient at the patches, so this is the last place at which grad-CAM says anything. Tokens (B, N, D) and maps
    (B, h, w, D) and (B, D, h, w) are read alike. Warns of maps that the ReLU leaves empty.
    """
    read = _features(forward, options.layer)
    places = _places_of(read, forward, options.layer)
    features = read.tensor
    tokens, grid = places.tokens, places.tokens.grid
    assert grid is not None
    assert places.channel_axis is not None
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
    scores = scatter_tokens(weighted.reshape(1, 1, 1, -1), tokens, forward.places.slots, forward.batch)
    reached = gradients.ne(0).any(dim=1).to(dtype)
    reached = reached.new_zeros(forward.batch).index_add_(0, image, reached)
    zero_gradient = reached == 0
    _warn_of_empty(scores[..., forward.places.slots :], zero_gradient)
    return TokenScores(scores, zero_gradient, grid=grid)


def _warn_of_empty(patches: Tensor, zero_gradient: Tensor) -> None:
    empty = ~patches.flatten(1).ne(0).any(dim=1) & ~zero_gradient
    if bool(empty.any()):
        warnings.warn(
            f"grad_cam: the map of {numbers_of(empty)[1]} is zero everywhere: by their mean gradient its channels "
            "speak against the class at every place, and its ReLU leaves nothing. Another layer=, or another method, "
            "may say more",
            stacklevel=2,
        )


def _features(forward: ForwardPass, layer: str | None) -> Features:
    """What is read."""
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


def _places_of(features: Features, forward: ForwardPass, layer: str | None) -> TensorPlaces:
    places = forward.known.of_tensor(features.number)
    if places is not None and places.channel_axis is not None and places.tokens.grid is not None:
        return places
    where = "the tensor that grad_cam is read from" if layer is None else f"the output of {layer!r}"
    raise UnsupportedModelError(
        f"model: {where} has shape {tuple(features.tensor.shape)} for {forward.batch} images of "
        f"{forward.image_size[0]}×{forward.image_size[1]} pixels; which of its elements lie where on the image could "
        "not be followed. layer= names another module, one whose output has tokens or a map of them"
    )
