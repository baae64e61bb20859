"""Which tokens of a forward pass lie where on the image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_attngrad.attention.call import AttentionCall
from lightning_attngrad.attention.tap import AttentionTap

#: Class, distillation and register tokens in front of the patches: more than that is no plain ViT.
_MOST_PREFIX_TOKENS = 32

_SUPPORTED = (
    "Supported are plain Vision Transformers with one grid of patch tokens throughout: timm vit, deit3, beit, "
    "eva02, siglip, dinov2, dinov3, clip; torchvision vit_*; Hugging Face ViT and DINOv2"
)


class UnsupportedModelError(ValueError):
    """The model has no attention that can be read as one map over the image."""


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
    if not calls:
        raise UnsupportedModelError(
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
    return TokenLayout(prefix=tokens - grid[0] * grid[1], grid=grid)


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
    for height, width in reversed(conv_grids):
        if 0 <= tokens - height * width <= _MOST_PREFIX_TOKENS:
            return height, width
    # Patches cut by reshaping: the grid that has the image's proportions and leaves the fewest prefix tokens.
    for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 1) + 1):
        patches = tokens - prefix
        patch_area = image_size[0] * image_size[1] / patches
        side = round(patch_area**0.5)
        if side * side == patch_area and image_size[0] % side == 0 and image_size[1] % side == 0:
            return image_size[0] // side, image_size[1] // side
    return None
