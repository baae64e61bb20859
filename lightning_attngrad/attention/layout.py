"""Which tokens of a forward pass lie where on the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_attngrad.attention.call import AttentionCall, outside_autocast
from lightning_attngrad.attention.places import NoAttentionError, UnsupportedModelError
from lightning_attngrad.attention.tap import AttentionTap

#: Class, distillation and register tokens in front of the patches: more than that is no plain ViT.
_MOST_PREFIX_TOKENS = 32

#: No places of tokens: a patch that becomes part of several tokens, and one that becomes part of none.
_MIXED, _DROPPED = -1, -2

_SUPPORTED = (
    "Supported are plain Vision Transformers with one grid of patch tokens throughout: timm vit, deit3, beit, "
    "eva02, siglip, dinov2, dinov3, clip; torchvision vit_*; Hugging Face ViT and DINOv2"
)


@dataclass(frozen=True)
class TokenLayout:
    """Tokens ↔ image grid of a plain ViT.

    Attributes:
        prefix: class, distillation and register tokens in front of the patch tokens.
        grid: rows and columns of patch tokens.
    """

    prefix: int
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """All tokens, N = prefix + rows·columns."""
        return self.prefix + self.grid[0] * self.grid[1]

    def to_grid(self, scores: Tensor) -> Tensor:
        """Patch scores as a map: (…, N) → (…, h, w)."""
        patches: Tensor = scores[..., self.prefix :].unflatten(-1, self.grid)
        return patches


def infer_layout(tap: AttentionTap, model_name: str, images: Tensor) -> TokenLayout:
    """Read the layout off what a forward pass did, so that no model family needs to be known by name.

    Args:
        tap: after the forward pass.
        model_name: for messages.
        images: (B, C, H, W) that went in.

    Raises:
        UnsupportedModelError: for models without attention, and for hierarchical or windowed ones.
    """
    calls = tap.calls
    if tap.unread_softmaxes:
        raise UnsupportedModelError(
            f"{model_name}: the softmax in {tap.unread_softmaxes[0].name!r} is changed before it meets the values, so "
            f"its attention cannot be read. {_SUPPORTED}."
        )
    if not calls:
        raise NoAttentionError(
            f"{model_name} made no attention call: it is a CNN or another network without attention. {_SUPPORTED}."
        )
    body = calls[:-1] if len(calls) > 1 and not calls[-1].is_self_attention else calls
    tokens = body[0].shape[2]
    for call in body:
        _check_plain(call, model_name, images.shape[0], tokens)
    if calls[-1].shape[0] != images.shape[0]:
        raise UnsupportedModelError(_not_plain(model_name, calls[-1], images.shape[0], tokens))

    grid = _grid_of_tokens(tap.conv_grids, tokens, (images.shape[-2], images.shape[-1]))
    if grid is None:
        raise UnsupportedModelError(
            f"{model_name}: {tokens} tokens match no grid of patches on images of {images.shape[-2]}×"
            f"{images.shape[-1]} pixels (convolutions before the attention gave {tap.conv_grids}). {_SUPPORTED}."
        )
    layout = TokenLayout(prefix=tokens - grid[0] * grid[1], grid=grid)
    if calls[-1].shape[3] not in (tokens, tokens - layout.prefix):
        raise UnsupportedModelError(_not_plain(model_name, calls[-1], images.shape[0], tokens))
    return layout


def check_structure(tap: AttentionTap, layout: TokenLayout, model_name: str) -> None:
    """Refuse, rather than draw a wrong map of, a model in which more happens than the maps know of.

    Both are questions about the model and not about a method: they are asked of what the model computed, whatever
    rules change the way back.

    Args:
        tap: after a forward pass with a graph.
        layout: of its tokens.
        model_name: for messages.

    Raises:
        UnsupportedModelError: if patches do not lie in order behind the prefix tokens, or if the attention calls do
            not follow one upon the other.
    """
    for earlier, later in zip(tap.calls, tap.calls[1:], strict=False):
        if not later.follows:
            raise UnsupportedModelError(
                f"{model_name}: what {later.name!r} reads does not come from {earlier.name!r}. The model attends "
                "side by side (parallel branches, several views of an image, a teacher), and a map follows one "
                f"chain of layers. Give the part of the model that is one. {_SUPPORTED}."
            )
    with outside_autocast(tap.calls[0].tensor.device):
        places = _tokens_of_patches(tap, layout)
    if places is None:
        return
    astray = places != torch.arange(layout.prefix, layout.tokens, device=places.device)
    if tap.anchor_is_image:  # a model that resizes its images mixes pixels of neighbouring patches before it cuts them
        astray &= places != _MIXED
    if bool(astray.any()):
        raise UnsupportedModelError(
            f"{model_name}: its {layout.grid[0]}×{layout.grid[1]} patches do not lie in order behind "
            f"{layout.prefix} prefix tokens: a class token or prompts stand behind them, or patches are dropped, "
            f"shuffled or mixed before the first attention. {_SUPPORTED}."
        )


def _tokens_of_patches(tap: AttentionTap, layout: TokenLayout) -> Tensor | None:
    """Which token each patch becomes, (B, h·w), or `_MIXED` or `_DROPPED`; None where it cannot be told.

    Each token is given a number, and the gradient brings the number back to the patch that the token comes from: one
    digit at a time, since half precision keeps few. All that lies between is the position embedding and the like.
    """
    reader = tap.embedding
    if reader is None and tap.first_values is not None:
        reader = tap.first_values.transpose(1, 2).flatten(2)  # (B, N, D)
    anchor, tokens = tap.patch_anchor, layout.tokens
    if anchor is None or reader is None or reader.shape[1] != tokens or not reader.requires_grad:
        return None
    if anchor.shape[-2] % layout.grid[0] or anchor.shape[-1] % layout.grid[1]:
        return None
    # No plain sum over channels: behind a LayerNorm that would be zero.
    channels = torch.arange(reader.shape[2], device=reader.device, dtype=torch.float32).mul(1.7).cos()
    read = reader.float() @ channels  # (B, N)

    def brought_back(numbers: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((read * numbers).sum(), anchor, retain_graph=True, allow_unused=True)
        return _by_patch(torch.zeros_like(anchor) if gradient is None else gradient.float(), layout.grid)

    numbers = torch.arange(tokens, device=reader.device)
    once = brought_back(torch.ones_like(read[0]))
    size = once.square().sum(dim=-1)
    place, base = torch.zeros_like(size), 1
    mixed = torch.zeros_like(size, dtype=torch.bool)
    while base < tokens:
        digit = (brought_back((numbers // base % 16).float()) * once).sum(dim=-1) / size.clamp_min(1e-30)
        mixed |= (digit - digit.round()).abs() > 0.2
        place += digit.round() * base
        base *= 16
    return torch.where(size == 0, _DROPPED, torch.where(mixed, _MIXED, place)).long()


def _by_patch(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, C, H, W), an image or its grid of patches, to (B, h·w, C·H/h·W/w)."""
    cells: Tensor = values.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # (B, C, h, H/h, w, W/w)
    return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def _check_plain(call: AttentionCall, model_name: str, batch: int, tokens: int) -> None:
    if call.shape[0] != batch or call.shape[2] != tokens or call.shape[3] != tokens:
        raise UnsupportedModelError(_not_plain(model_name, call, batch, tokens))


def _not_plain(model_name: str, call: AttentionCall, batch: int, tokens: int) -> str:
    return (
        f"{model_name} is hierarchical or works in windows: {call.name!r} attends with "
        f"{call.shape[2]}×{call.shape[3]} tokens for a batch of {call.shape[0]}, where one grid would give "
        f"{tokens}×{tokens} for a batch of {batch}. {_SUPPORTED}; hierarchical models are not yet."
    )


def _grid_of_tokens(
    conv_grids: list[tuple[int, int]], tokens: int, image_size: tuple[int, int]
) -> tuple[int, int] | None:
    # The patch embedding is a convolution in nearly every model; its output is the grid, whatever resizing
    # or padding went before it.
    if conv_grids:
        height, width = conv_grids[-1]
        return (height, width) if height * width <= tokens else None
    # Patches cut by reshaping: the grid that has the image's proportions and leaves the fewest prefix tokens.
    for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 1) + 1):
        patches = tokens - prefix
        patch_area = image_size[0] * image_size[1] / patches
        side = round(patch_area**0.5)
        if side * side == patch_area and image_size[0] % side == 0 and image_size[1] % side == 0:
            return image_size[0] // side, image_size[1] // side
    return None
