"""For every message of refusal one model that earns it, and what the message has to say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.explain import explain
from tests.zoo import randomise

WIDTH, HEADS, CLASSES = 32, 2, 5
IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """A ViT of three blocks, whose attention the models below replace: all of it, or that of the middle one alone."""

    replaced = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 8, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.zeros(1, 25, WIDTH))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.attention = nn.ModuleList(self.other() if number in self.replaced else Attention() for number in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def other(self) -> nn.Module:
        return Attention()

    def tokens(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).mT
        return torch.cat([self.cls.expand(len(patches), -1, -1), patches], dim=1) + self.positions

    def encode(self, tokens: Tensor) -> Tensor:
        for norm, attention in zip(self.norms, self.attention, strict=True):
            tokens = tokens + attention(norm(tokens))
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.encode(self.tokens(images)))[:, 0])


class Attention(nn.Module):
    """Softmax attention, whose arithmetic the kinds below replace."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.qkv(tokens).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        return self.out(self.attend(query, key, value).transpose(1, 2).flatten(2))


def product(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1) @ value


# Attention that nothing sees ------------------------------------------------------------------------------------


@torch.library.custom_op("attngrad_refusals::attend", mutates_args=())
def kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return product(query, key, value)


@kernel.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.empty_like(query)


def _kernel_backward(context: Any, gradient: Tensor) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        given = [tensor.detach().requires_grad_() for tensor in context.saved_tensors]
        return torch.autograd.grad(product(*given), given, gradient)


kernel.register_autograd(_kernel_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class CustomKernel(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return kernel(query.contiguous(), key.contiguous(), value.contiguous())


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(query, key, value)
        return product(query, key, value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return _kernel_backward(ctx, gradient)


class OwnFunction(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return _Product.apply(query, key, value)


class Flex(Attention):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        return flex_attention(query, key, value)


class Linear(Attention):
    """Performer and its like: φ(Q) (φ(K)ᵀ V), φ = ReLU."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key = query.relu() + 0.1, key.relu() + 0.1
        read = query @ (key.mT @ value)
        return read / (query @ key.sum(-2, keepdim=True).mT)


class Efficient(Attention):
    """Efficient attention (arXiv 1812.01243): softmax of queries over channels, of keys over tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return query.softmax(-1) @ (key.softmax(-2).mT @ value)


class Separable(Attention):
    """MobileViTv2 (arXiv 2206.02680): one context for all tokens."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = query.mean(-1, keepdim=True).softmax(-2)
        return (scores * key).sum(-2, keepdim=True) * value.relu()


class Nystroem(Attention):
    """Nyströmformer (arXiv 2102.03902): three softmaxes through five landmarks, the middle one inverted."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        landmarks = [F.adaptive_avg_pool1d(x.flatten(0, 1).mT, 5).mT.view(*x.shape[:2], 5, -1) for x in (query, key)]
        scale = 1 / math.sqrt(query.shape[-1])
        first = (query @ landmarks[1].mT * scale).softmax(-1)
        middle = (landmarks[0] @ landmarks[1].mT * scale).softmax(-1)
        last = (landmarks[0] @ key.mT * scale).softmax(-1)
        return first @ torch.linalg.pinv(middle) @ (last @ value)


class TokenMixing(nn.Module):
    """MLP-Mixer: tokens mix by a matrix of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(25, 25)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mix(tokens.mT).mT


class Fourier(nn.Module):
    """FNet: tokens mix by a Fourier transform."""

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.fft.fft2(tokens).real


def with_middle(kind: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    class Model(Blocks):
        def other(self) -> nn.Module:
            return kind()

    return Model


def with_all(kind: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    class Model(Blocks):
        replaced = (0, 1, 2)

        def other(self) -> nn.Module:
            return kind()

    return Model


class Scripted(Blocks):
    """The middle block's attention is compiled by TorchScript: no function of it is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.attention[1] = torch.jit.trace(Attention(), torch.randn(2, 25, WIDTH))


# Tokens that are not the image's patches in their places ----------------------------------------------------------


class Pruned(Blocks):
    """The twelve patches with the largest norm stay: which, is up to the image."""

    def tokens(self, images: Tensor) -> Tensor:
        tokens = super().tokens(images)
        kept = tokens[:, 1:].norm(dim=-1).topk(12, dim=1).indices[..., None].expand(-1, -1, WIDTH)
        return torch.cat([tokens[:, :1], tokens[:, 1:].gather(1, kept)], dim=1)


class Weighing(Attention):
    """What EViT (arXiv 2202.07800) adds to a block: tokens that the class token hardly reads become one."""

    kept = 8

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        scores = query @ key.mT / math.sqrt(WIDTH)
        weights = scores.softmax(dim=-1)
        tokens = tokens + self.out(weights @ value)
        order = weights[:, 0, 1:].argsort(dim=1, descending=True)
        patches = tokens[:, 1:].gather(1, order.unsqueeze(-1).expand(-1, -1, WIDTH))
        fused = self.fuse(scores[:, 0, 1:].gather(1, order), weights[:, 0, 1:].gather(1, order), patches)
        return torch.cat([tokens[:, :1], patches[:, : self.kept], fused], dim=1)

    def fuse(self, scores: Tensor, weights: Tensor, patches: Tensor) -> Tensor:
        return (weights[:, self.kept :].unsqueeze(-1) * patches[:, self.kept :]).sum(dim=1, keepdim=True)


class WeighingAlike(Weighing):
    def fuse(self, scores: Tensor, weights: Tensor, patches: Tensor) -> Tensor:
        return patches.mean(dim=1, keepdim=True)


class WeighingAnew(Weighing):
    def fuse(self, scores: Tensor, weights: Tensor, patches: Tensor) -> Tensor:
        return scores[:, self.kept :].softmax(dim=-1).unsqueeze(1) @ patches[:, self.kept :]


class Fusing(Blocks):
    """The middle block fuses tokens."""

    def other(self) -> nn.Module:
        return Weighing()

    def encode(self, tokens: Tensor) -> Tensor:
        first, middle, last = self.attention
        tokens = middle(tokens + first(self.norms[0](tokens)))
        return tokens + last(self.norms[2](tokens))


class FusingByMean(Fusing):
    def other(self) -> nn.Module:
        return WeighingAlike()


class FusingBySoftmax(Fusing):
    def other(self) -> nn.Module:
        return WeighingAnew()


class Merging(Blocks):
    """ToMe (arXiv 2210.09461): between blocks every other token is given those of the rest that are most like it."""

    def encode(self, tokens: Tensor) -> Tensor:
        for number, (norm, attention) in enumerate(zip(self.norms, self.attention, strict=True)):
            tokens = tokens + attention(norm(tokens))
            if number == 0:
                tokens = self.merge(tokens)
        return tokens

    def merge(self, tokens: Tensor, number: int = 4) -> Tensor:
        first, kept = tokens[:, 1::2], tokens[:, ::2]  # the class token stays in front
        alike, best = (F.normalize(first, dim=-1) @ F.normalize(kept[:, 1:], dim=-1).mT).max(dim=-1)
        order = alike.argsort(dim=1, descending=True)
        gone, stays = (part.unsqueeze(-1).expand(-1, -1, WIDTH) for part in (order[:, :number], order[:, number:]))
        into = (best + 1).gather(1, order[:, :number]).unsqueeze(-1).expand(-1, -1, WIDTH)
        return torch.cat([self.into(kept, into, first.gather(1, gone)), first.gather(1, stays)], dim=1)

    def into(self, kept: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        return kept.scatter_reduce(1, index, tokens, "mean")


class MergingInPlace(Merging):
    def into(self, kept: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        return kept.clone().scatter_reduce_(1, index, tokens, "mean")


class DetachedBackbone(Blocks):
    """The head is trained on features that are cut off by hand."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.encode(self.tokens(images)).detach())[:, 0])


class NoAttention(nn.Module):
    """A convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


class TextTower(Blocks):
    """An image tower without attention, scored against sentences that a transformer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(CLASSES, 7, WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        image = self.embed(images).relu().mean((2, 3))
        return image @ self.encode_words().T

    def encode_words(self) -> Tensor:
        words = self.words
        for norm, attention in zip(self.norms, self.attention, strict=True):
            words = words + attention(norm(words))
        return self.norm(words).mean(1)


#: Model → what the message names, and what it advises.
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "custom kernel between two seen": (with_middle(CustomKernel), "attention.1"),
    "custom kernel in all layers": (with_all(CustomKernel), "attention"),
    "autograd.Function between two seen": (with_middle(OwnFunction), "attention.1"),
    "autograd.Function in all layers": (with_all(OwnFunction), "autograd.Function"),
    "flex_attention between two seen": (with_middle(Flex), "flex attention"),
    "linear attention between two seen": (with_middle(Linear), "attention.1"),
    "linear attention in all layers": (with_all(Linear), "attention"),
    "efficient attention between two seen": (with_middle(Efficient), "attention.1"),
    "separable attention between two seen": (with_middle(Separable), "attention.1"),
    "Nyström attention between two seen": (with_middle(Nystroem), "attention.1"),
    "token mixing between two seen": (with_middle(TokenMixing), "attention.1"),
    "Fourier mixing between two seen": (with_middle(Fourier), "attention.1"),
    "scripted attention between two seen": (Scripted, "attention.1"),
    "tokens fused into one, by the class token's weights": (
        Fusing,
        "'attention.1' tokens mix by fusing several into one",
    ),
    "tokens fused into one, by their mean": (FusingByMean, "'attention.1' tokens mix by fusing several into one"),
    "tokens fused into one, by a softmax of their own": (
        FusingBySoftmax,
        "'attention.1' tokens mix by fusing several into one",
    ),
    "tokens merged": (Merging, "in its own forward tokens mix by merging them with scatter_reduce"),
    "tokens merged in place": (MergingInPlace, "in its own forward tokens mix by merging them with scatter_reduce"),
    "a backbone that is detached": (DetachedBackbone, "detach"),
    "no attention": (NoAttention, "attention"),
    "attention over words alone": (TextTower, "image"),
}
#: Words that would be false of all of these.
NEVER_SAID = ("hierarchical", "CNN", "windows")


def refused(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(REFUSED[name][0](), seed=1).eval()


@pytest.mark.parametrize("method", ["gradient_guided", "rollout", "guided_relevance"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_for_its_reason(name: str, method: str) -> None:
    model, says = refused(name), REFUSED[name][1]
    with pytest.raises(ValueError) as refusal:
        explain(model, IMAGES, 0, method=method)
    said = str(refusal.value)
    assert said.startswith(("model:", type(model).__name__))
    assert says in said
    assert not any(word in said for word in NEVER_SAID)


# Drawn for the image's own tokens ---------------------------------------------------------------------------------


#: Which patches `Masked` kept, outside the model: what a forward pass writes into that is put back.
DRAWS: list[Tensor] = []


class Masked(Blocks):
    """A random half of the patches is left out, as a masked autoencoder does."""

    def tokens(self, images: Tensor) -> Tensor:
        tokens = super().tokens(images)
        kept = torch.rand(len(tokens), 24, device=tokens.device).argsort(dim=1)[:, :12]
        DRAWS.append(kept)
        patches = tokens[:, 1:].gather(1, kept[..., None].expand(-1, -1, WIDTH))
        return torch.cat([tokens[:, :1], patches], dim=1)


@pytest.mark.parametrize("method", ["gradient_guided", "rollout", "attn_lrp"])
def test_patches_left_out_at_random(method: str) -> None:
    """The map is that of the patches that this forward pass kept, in their places; the others have nothing."""
    model = randomise(Masked(), seed=1).eval()
    for draw in range(3):
        torch.manual_seed(draw)
        found = explain(model, IMAGES, 0, method=method).heatmap.flatten(1)
        kept = torch.zeros(2, 24, dtype=torch.bool).scatter(1, DRAWS[-1], True)
        assert (found[~kept] == 0).all()
        assert found[kept].ne(0).float().mean() > 0.5


class WithWords(Blocks):
    """Words stand behind the patches in one sequence: the map is that of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(1, 4, WIDTH))

    def tokens(self, images: Tensor) -> Tensor:
        tokens = super().tokens(images)
        return torch.cat([tokens, self.words.expand(len(tokens), -1, -1)], dim=1)


class BesideText(Blocks):
    """An image tower with attention, scored against sentences that a transformer reads: the map is the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Parameter(torch.zeros(CLASSES, 7, WIDTH))
        self.reader = nn.ModuleList([nn.LayerNorm(WIDTH), Attention()])

    def forward(self, images: Tensor) -> Tensor:
        image = self.norm(self.encode(self.tokens(images)))[:, 0]
        norm, attention = self.reader
        return image @ (self.words + attention(norm(self.words))).mean(1).T


class NoGradBackbone(Blocks):
    """A frozen backbone, run without a graph by its owner."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            tokens = self.encode(self.tokens(images))
        return self.head(self.norm(tokens)[:, 0])


@pytest.mark.parametrize("method", ["gradient_guided", "rollout", "raw_attention"])
@pytest.mark.parametrize("kind", [WithWords, BesideText, NoGradBackbone])
def test_drawn_for_the_image_s_own_tokens(kind: type[Blocks], method: str) -> None:
    torch.manual_seed(0)
    model = randomise(kind(), seed=1).eval()
    found = explain(model, IMAGES, 0, method=method)
    assert found.heatmap.shape == (2, 4, 6)
    assert torch.isfinite(found.heatmap).all()
    assert found.heatmap.flatten(1).gt(0).any(dim=1).all()


@pytest.mark.parametrize("method", ["gradient_guided", "rollout", "guided_relevance"])
def test_patches_left_out_by_what_they_hold_have_no_share(method: str) -> None:
    torch.manual_seed(0)
    model = randomise(Pruned(), seed=1).eval()
    found = explain(model, IMAGES, 0, method=method).heatmap.flatten(1)
    with torch.no_grad():
        kept = Blocks.tokens(model, IMAGES)[:, 1:].norm(dim=-1).topk(12, dim=1).indices
    assert (found.scatter(1, kept, 0.0) == 0).all()
    assert (found.gather(1, kept) > 0).sum(dim=1).ge(6).all()


def test_two_inputs_by_forward() -> None:
    torch.manual_seed(0)
    model = randomise(BesideText(), seed=1).eval()

    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, images: Tensor, scale: float) -> Tensor:
            return self.inner(images) * scale

    two = TwoInputs().eval()
    found = explain(two, IMAGES, 0, method="gradient_guided", forward=lambda images: two(images, scale=1.0))
    torch.testing.assert_close(found.heatmap, explain(model, IMAGES, 0, method="gradient_guided").heatmap)
