"""The Hindered Transformer (HiT, arXiv 2502.17196): a classifier whose logit is a sum over patches.

In each block the class token attends to the patches, and nothing else attends: no two patches ever mix, and the class
token is a running sum of what it has read. A patch is only ever updated by its own MLP. What a patch says is therefore
its own; how loudly it is heard is up to the attention, which compares it with all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.layers.weight_init import trunc_normal_
from timm.models import register_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True, eq=False)
class PatchTerms:
    """The terms that logits are the sum of.

    Attributes:
        logits: (B, C), as the model gives them.
        stages: for each stage its terms (B, C, L, h, w) of L blocks and h×w patches, in logits; all stages together sum
            to the logits over L, h and w.
    """

    logits: Tensor
    stages: tuple[Tensor, ...]


class HinderedTransformer(nn.Module):
    """A classifier of images (B, C, H, W) whose logits are sums over patches.

    Args:
        img_size: height and width, or one for both, in pixels.
        patch_size: of the square patches, in pixels.
        in_chans: channels of an image.
        num_classes: outputs; 0 gives the pooled features (B, D) instead.
        embed_dim: D, numbers of a token.
        depths: blocks of each stage; between stages the patches are pooled 2×2.
        num_heads: of the attention.
        mlp_ratio: hidden over outer width of the patches' MLPs.
        qkv_bias: whether queries, keys and values have biases.
        drop_rate: of the pooled features while training.

    Raises:
        ValueError: if the patches do not divide the images, pooling does not divide the patches, or a stage is empty.

    Source:
        arXiv 2502.17196.

    Example:
        >>> model = HinderedTransformer(img_size=32, patch_size=8, num_classes=3, embed_dim=16, num_heads=2).eval()
        >>> terms = model.patch_terms(torch.rand(2, 3, 32, 32))
        >>> terms.stages[0].shape  # class by class, block by block, patch by patch
        torch.Size([2, 3, 12, 4, 4])
        >>> bool(torch.allclose(terms.stages[0].sum((2, 3, 4)), terms.logits, atol=1e-5))
        True
    """

    #: The method that explains such a model exactly: what answers where none is asked for.
    explained_by = "patch_sum"

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 192,
        depths: Sequence[int] = (12,),
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else (img_size[0], img_size[1])
        if not depths or min(depths) < 1:
            raise ValueError(f"depths: got {tuple(depths)}; expected one block or more for each of one stage or more")
        cell = patch_size * 2 ** (len(depths) - 1)
        if any(side % cell for side in size):
            raise ValueError(
                f"img_size: got {size}; expected multiples of {cell}, the patch size times what {len(depths) - 1} "
                "poolings take together"
            )
        self.num_classes, self.num_features, self.embed_dim = num_classes, embed_dim, embed_dim
        self.patch_embed = PatchEmbed(size, patch_size, in_chans, embed_dim, output_fmt="NHWC")
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, size[0] // patch_size, size[1] // patch_size, embed_dim))
        last = sum(depths) - 1
        self.blocks = nn.ModuleList(
            HinderedBlock(embed_dim, num_heads, mlp_ratio, qkv_bias, is_last=number == last)
            for number in range(last + 1)
        )
        self.depths = tuple(depths)
        self.grad_checkpointing = False
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        self.apply(_initialise)

    def get_classifier(self) -> nn.Module:
        """The last linear map, as timm asks for it."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:  # noqa: ARG002
        """Another number of classes, with a classifier at random."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()
        self.head.apply(_initialise)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks are run again in the backward pass of training rather than kept, as timm names it."""
        self.grad_checkpointing = enable

    def forward_features(self, images: Tensor) -> Tensor:
        """The class token at the end, normalised, (B, D)."""
        patches = self.patch_embed(images) + self.pos_embed  # (B, h, w, D)
        token = self.cls_token.expand(len(images), -1, -1)  # (B, 1, D)
        for number, block in enumerate(self.blocks):
            if number in self._poolings:
                patches = F.avg_pool2d(patches.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            if self.grad_checkpointing and torch.is_grad_enabled():
                token, patches = checkpoint(block, token, patches, use_reentrant=False)
            else:
                token, patches = block(token, patches)
        features: Tensor = self.norm(token[:, 0])
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, C) of features (B, D)."""
        features = self.head_drop(features)
        logits: Tensor = features if pre_logits else self.head(features)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.forward_head(self.forward_features(images))

    def patch_terms(self, images: Tensor) -> PatchTerms:
        """What each patch adds to each logit in each block, for all classes from one forward pass (evaluation mode).

        The final normalisation is linear once the token's own mean and variance are taken as what they are. What
        belongs to no patch (the class token at the start, biases of projections, normalisation and classifier) is
        shared out equally.
        """
        if not self.num_classes:
            raise ValueError("model: it has no classifier (num_classes=0), so there are no logits to take apart")
        assert isinstance(self.head, nn.Linear)
        patches = self.patch_embed(images) + self.pos_embed
        token = self.cls_token.expand(len(images), -1, -1)
        spoken: list[Tensor] = []  # of each block (B, N, D): what the class token reads from each patch
        grids: list[tuple[int, int]] = []
        for number, block in enumerate(self.blocks):
            if number in self._poolings:
                patches = F.avg_pool2d(patches.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            assert isinstance(block, HinderedBlock)
            spoken.append(block.attention.read(block.norm_token(token), block.norm_patches(patches)))
            grids.append((patches.shape[1], patches.shape[2]))
            token, patches = block(token, patches)
        logits = self.forward_head(self.norm(token[:, 0]))
        token = token[:, 0]
        scale = (token.var(dim=1, unbiased=False, keepdim=True) + self.norm.eps).rsqrt()  # (B, 1)
        direction = self.head.weight * self.norm.weight  # (C, D)
        direction = direction - direction.mean(dim=1, keepdim=True)  # the mean of a token is taken off
        constant = self.norm.bias @ self.head.weight.T + self.head.bias  # (C,)
        shared = constant + scale * (self.cls_token[0, 0] @ direction.T)  # (B, C), over all blocks
        stages = []
        ends = [*self._poolings, len(self.blocks)]
        for begin, end in zip([0, *self._poolings], ends, strict=True):
            cells = math.prod(grids[begin])
            terms = torch.stack([block @ direction.T for block in spoken[begin:end]], dim=1)  # (B, L, N, C)
            terms = terms * scale[:, None, None] + shared[:, None, None] / (cells * len(self.blocks))
            stages.append(terms.permute(0, 3, 1, 2).unflatten(3, grids[begin]))
        return PatchTerms(logits, tuple(stages))

    @property
    def _poolings(self) -> tuple[int, ...]:
        """Numbers of the blocks in front of which patches are pooled."""
        return tuple(sum(self.depths[: stage + 1]) for stage in range(len(self.depths) - 1))


class HinderedBlock(nn.Module):
    """The class token reads the patches; each patch goes on by itself.

    Args:
        width: D.
        heads: of the attention.
        mlp_ratio: hidden over outer width of the MLP.
        qkv_bias: whether queries, keys and values have biases.
        is_last: whether nobody reads the patches after this block: they have no MLP then.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, *, is_last: bool) -> None:
        super().__init__()
        self.norm_token, self.norm_patches = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = ClassAttention(width, heads, qkv_bias)
        self.norm_mlp = nn.Identity() if is_last else nn.LayerNorm(width, eps=1e-6)
        self.mlp = None if is_last else Mlp(width, int(width * mlp_ratio))

    def forward(self, token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (B, 1, D) and patches (B, h, w, D), both a block further."""
        token = token + self.attention(self.norm_token(token), self.norm_patches(patches))
        if self.mlp is not None:
            patches = patches + self.mlp(self.norm_mlp(patches))
        return token, patches


class ClassAttention(nn.Module):
    """Attention of one query, the class token, to patches.

    Args:
        width: D.
        heads: H, which divides D.
        bias: whether queries, keys and values have biases.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"num_heads: got {heads}; expected a divisor of embed_dim, {width}")
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(width, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, token: Tensor, patches: Tensor) -> Tensor:
        """What the token (B, 1, D) reads from patches (B, h, w, D): (B, 1, D)."""
        query, key, value = self._split(token, patches)
        read = F.scaled_dot_product_attention(query, key, value)  # (B, H, 1, d)
        output: Tensor = self.proj(read.transpose(1, 2).flatten(2))
        return output

    def read(self, token: Tensor, patches: Tensor) -> Tensor:
        """The same, patch by patch: (B, N, D), whose sum over patches is :meth:`forward`."""
        query, key, value = self._split(token, patches)
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)  # (B, H, 1, N)
        by_patch = (weights.transpose(-1, -2) * value).transpose(1, 2).flatten(2)  # (B, N, D)
        read: Tensor = F.linear(by_patch, self.proj.weight) + self.proj.bias / by_patch.shape[1]
        return read

    def _split(self, token: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query (B, H, 1, d), keys and values (B, H, N, d)."""
        patches = patches.flatten(1, 2)
        query = self.query(token).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(patches).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


def from_vision_transformer(state: dict[str, Tensor], model: HinderedTransformer) -> list[str]:
    """Start from the weights of a timm ViT, where shapes agree.

    Patches and positions, the blocks' normalisations, attention and MLPs, the last normalisation and the classifier are
    taken; of queries, keys and values each from its part of ``qkv``. Positions of another grid are left out, and so is
    a scale of layers, which goes into the matrix behind which it stands.

    Args:
        state: ``state_dict()`` of a ViT.
        model: is filled in.

    Returns:
        The names of the model's parameters that were taken; others stay as they are.

    Raises:
        ValueError: if nothing fits.
    """
    own = model.state_dict()
    positions = tuple(own["pos_embed"].shape)
    given = [pair for name, value in state.items() for pair in _as_hindered(name, value, state, positions)]
    found = {name: tensor for name, tensor in given if name in own and own[name].shape == tensor.shape}
    if not found:
        raise ValueError(
            "state: none of its tensors fits this model; expected the state_dict of a timm VisionTransformer"
        )
    own.update(found)
    model.load_state_dict(own)
    return sorted(found)


def _as_hindered(
    name: str, value: Tensor, state: dict[str, Tensor], positions: tuple[int, ...]
) -> list[tuple[str, Tensor]]:
    """Names and tensors of a HiT that one tensor of a ViT gives."""
    kind = name.rpartition(".")[2]
    if name == "pos_embed":
        patches = value[:, -math.prod(positions[1:3]) :]
        return [(name, patches.reshape(positions))] if patches.numel() == math.prod(positions) else []
    if ".attn.qkv." in name:
        query, key_value = value.tensor_split([len(value) // 3])
        block = name.partition(".attn.")[0]
        return [(f"{block}.attention.query.{kind}", query), (f"{block}.attention.key_value.{kind}", key_value)]
    for old, new in ((".attn.proj.", ".attention.proj."), (".mlp.fc2.", ".mlp.fc2.")):
        if old in name:
            block = name.partition(old)[0]
            scale = state.get(f"{block}.ls{1 if 'attn' in old else 2}.gamma")
            if scale is not None:
                value = value * (scale[:, None] if value.dim() > 1 else scale)
            return [(f"{block}{new}{kind}", value)]
    if ".norm1." in name:  # one normalisation of all tokens serves both
        block = name.partition(".norm1.")[0]
        return [(f"{block}.norm_token.{kind}", value), (f"{block}.norm_patches.{kind}", value)]
    if ".norm2." in name:
        return [(name.replace(".norm2.", ".norm_mlp."), value)]
    return [(name, value)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_WIDTHS = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


#: What `timm.create_model` hands to every model, of its weights.
_OF_TIMM = {"pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "cache_dir"}


def _build(size: str, pooled: bool, pretrained: bool, options: dict[str, Any]) -> HinderedTransformer:
    if pretrained:
        raise RuntimeError("pretrained: there are no weights of this model here; start from a ViT's, see hindered.py")
    width, heads = _WIDTHS[size]
    form: dict[str, Any] = {"patch_size": 8, "depths": (4, 4, 4)} if pooled else {"patch_size": 16, "depths": (12,)}
    known = {"img_size", "in_chans", "num_classes", "drop_rate", "mlp_ratio", "qkv_bias", *form}
    if strange := sorted(name for name, value in options.items() if value and name not in known | _OF_TIMM):
        raise ValueError(f"hit: got {', '.join(strange)}; expected none but {', '.join(sorted(known))}")
    given = {name: value for name, value in options.items() if name in known and value is not None}
    model = HinderedTransformer(**{"embed_dim": width, "num_heads": heads, **form, **given})
    side = model.patch_embed.img_size
    model.pretrained_cfg = model.default_cfg = {  # type: ignore[assignment]  # timm's own attributes
        "input_size": (given.get("in_chans", 3), *side),
        "num_classes": model.num_classes,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "interpolation": "bicubic",
        "crop_pct": 0.9,
    }
    return model


@register_model
def hit_tiny_patch16_224(pretrained: bool = False, **options: Any) -> HinderedTransformer:
    """HiT, 12 blocks of 192 numbers, patches of 16 pixels."""
    return _build("tiny", False, pretrained, options)


@register_model
def hit_small_patch16_224(pretrained: bool = False, **options: Any) -> HinderedTransformer:
    """HiT, 12 blocks of 384 numbers, patches of 16 pixels."""
    return _build("small", False, pretrained, options)


@register_model
def hit_base_patch16_224(pretrained: bool = False, **options: Any) -> HinderedTransformer:
    """HiT, 12 blocks of 768 numbers, patches of 16 pixels."""
    return _build("base", False, pretrained, options)


@register_model
def hit_tiny_patch8_224_pool(pretrained: bool = False, **options: Any) -> HinderedTransformer:
    """HiT, 4-4-4 blocks of 192 numbers, patches of 8 pixels, pooled twice."""
    return _build("tiny", True, pretrained, options)


@register_model
def hit_small_patch8_224_pool(pretrained: bool = False, **options: Any) -> HinderedTransformer:
    """HiT, 4-4-4 blocks of 384 numbers, patches of 8 pixels, pooled twice."""
    return _build("small", True, pretrained, options)


@register_model
def hit_base_patch8_224_pool(pretrained: bool = False, **options: Any) -> HinderedTransformer:
    """HiT, 4-4-4 blocks of 768 numbers, patches of 8 pixels, pooled twice."""
    return _build("base", True, pretrained, options)
