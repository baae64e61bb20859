"""Where relevance is measured: the same tensor in every spelling, precision and pass, found in the graph alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import CONSERVATIVE, AttentionTap
from lightning_attngrad.attention.embedding import NumberedOutputs
from lightning_attngrad.attention.rules import PLAIN, BackwardRules
from lightning_attngrad.explain import NoEmbeddingError, explain
from lightning_attngrad.state import held_still
from tests.embedded import number_of, relevance
from tests.other_models import post_norm_vit, vit_beside_colours
from tests.zoo import ZOO, randomise, zero_biases

WIDTH = 16


class Blocks(nn.Module):
    """A ViT with one thing about it that is unusual.

    Args:
        normalise: in front of each layer; (…, D) to the same.
        arrange: from the patches' convolution (B, D, h, w) to the tokens' form.
        tokens: from that form to (B, N, D), and back.
        add: of the residual path.
        residual: whether there is one.
    """

    def __init__(
        self,
        normalise: Callable[[Tensor], Tensor] = lambda x: F.layer_norm(x, (WIDTH,)),
        arrange: Callable[[Tensor], Tensor] = lambda x: x.flatten(2).mT,
        tokens: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = (lambda x: x, lambda x: x),
        add: Callable[[Tensor, Tensor], Tensor] = torch.add,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.normalise, self.arrange, self.tokens, self.add, self.residual = normalise, arrange, tokens, add, residual
        self.patches = nn.Conv2d(3, WIDTH, 8, 8)
        self.position = nn.Parameter(torch.empty(1, WIDTH, 4, 4))
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, images: Tensor) -> Tensor:
        forth, back = self.tokens
        x = self.arrange(self.patches(images) + self.position)
        for layer in self.qkv:
            query, key, value = layer(forth(self.normalise(x))).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
            read = back(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
            x = self.add(x, read) if self.residual else read
        return self.head(forth(x).mean(1))


class Float32Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), (WIDTH,)).type_as(x)


def _permuted_norm(x: Tensor) -> Tensor:  # of (B, D, h, w)
    return F.layer_norm(x.permute(0, 2, 3, 1), (WIDTH,)).permute(0, 3, 1, 2)


def _maps(x: Tensor) -> Tensor:
    return x


_MAP_TO_TOKENS = (lambda x: x.flatten(2).mT, lambda x: x.mT.unflatten(2, (4, 4)))
_LAST_TO_TOKENS = (lambda x: x.flatten(1, 2), lambda x: x.unflatten(1, (4, 4)))

UNUSUAL: dict[str, tuple[Callable[[], Blocks], tuple[int, ...]]] = {
    "plain": (Blocks, (2, 16, WIDTH)),
    "norm that casts": (lambda: Blocks(Float32Norm()), (2, 16, WIDTH)),
    "norm written out": (
        lambda: Blocks(lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)),
        (2, 16, WIDTH),
    ),
    "standardised": (
        lambda: Blocks(lambda x: (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)),
        (2, 16, WIDTH),
    ),
    "maps": (lambda: Blocks(_permuted_norm, _maps, _MAP_TO_TOKENS), (2, WIDTH, 4, 4)),
    "maps, channels last": (
        lambda: Blocks(arrange=lambda x: x.permute(0, 2, 3, 1), tokens=_LAST_TO_TOKENS),
        (2, 4, 4, WIDTH),
    ),
    "group norm": (lambda: Blocks(lambda x: F.group_norm(x, 4), _maps, _MAP_TO_TOKENS), (2, WIDTH, 4, 4)),
    "no norm": (lambda: Blocks(lambda x: x), (2, 16, WIDTH)),
    # The tokens are a view of the map with position, and both are overwritten: the map as it was is what all passes.
    "residual in place": (lambda: Blocks(add=lambda x, y: x.add_(y)), (2, WIDTH, 4, 4)),
    "no residual": (lambda: Blocks(residual=False), (2, 16, WIDTH)),
}


def _built(build: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> nn.Module:
    return zero_biases(randomise(build(), 0)).eval().to(dtype)


def _images(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("name", UNUSUAL)
def test_relevance_is_measured_where_all_of_it_passes(name: str) -> None:
    build, shape = UNUSUAL[name]
    embedding, found, logit = relevance(_built(build), _images())
    assert embedding.shape == shape
    torch.testing.assert_close(
        found.flatten(1).sum(1), logit, rtol=0, atol=1e-10 if name != "norm that casts" else 1e-5
    )


@pytest.mark.parametrize("name", [name for name in UNUSUAL if name != "no residual"])
def test_it_is_the_tokens_with_their_position(name: str) -> None:
    # Without one it is what is normalised, since nothing runs past that.
    build, _ = UNUSUAL[name]
    model = _built(build)
    embedding, _, _ = relevance(model, _images())
    expected = model.patches(_images()) + model.position
    expected = expected if name == "residual in place" else model.arrange(expected)
    torch.testing.assert_close(embedding, expected.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.parametrize("rules", [PLAIN, CONSERVATIVE])
def test_its_number_is_the_same_without_a_graph_and_under_rules(name: str, rules: BackwardRules) -> None:
    model, images = _built(UNUSUAL[name][0]), _images()
    with held_still(model):
        number = number_of(model, images)
        seen: list[Tensor] = []
        for graph in (True, False):
            with torch.set_grad_enabled(graph), AttentionTap(model, rules=rules) as tap:
                outputs: dict[int, Tensor] = {}

                class Noted(NumberedOutputs):
                    def __call__(self, output: object, outputs: dict[int, Tensor] = outputs) -> object:
                        given = super().__call__(output)
                        if isinstance(output, Tensor):
                            outputs.setdefault(self.last, output.detach().clone())
                        return given

                tap.numbered = Noted()
                model(images)
            seen.append(outputs[number])
    assert torch.equal(*seen)
    torch.testing.assert_close(seen[0], relevance(model, _images())[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["norm that casts", "plain"])
def test_in_bfloat16_it_is_the_residual_stream_itself_and_not_its_cast_copy(name: str) -> None:
    model, images = _built(UNUSUAL[name][0], torch.float32), _images(torch.float32)
    exact = relevance(model, images)[1].sum(-1)
    embedding, found, _ = relevance(model.bfloat16(), images.bfloat16())
    assert embedding.dtype == torch.bfloat16
    assert torch.corrcoef(torch.stack([found.float().sum(-1).flatten(), exact.flatten()]))[0, 1] > 0.98


def test_under_autocast_too() -> None:
    model, images = _built(UNUSUAL["norm that casts"][0], torch.float32), _images(torch.float32)
    exact = relevance(model, images)[1].sum(-1)
    with torch.autocast("cpu", torch.bfloat16):
        found = relevance(model, images)[1].float().sum(-1)
    assert torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.98


@pytest.mark.parametrize("name", ZOO)
def test_of_a_vit_it_is_what_enters_the_first_block(name: str) -> None:
    zoo = ZOO[name]
    model, images = zoo.build(torch.float64), zoo.images(dtype=torch.float64)
    entered: list[Tensor] = []
    block = model.get_submodule(zoo.first_block)
    handle = block.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0].detach().clone()))
    with held_still(model):
        number = number_of(model, images)
        entered.clear()
        with AttentionTap(model, start="embedding", embedding_number=number) as tap:
            model(images)
    handle.remove()
    assert tap.embedding is not None
    torch.testing.assert_close(tap.embedding.detach(), entered[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("swin_tiny_patch4_window7_224", {"img_size": 56}, (2, 14, 14, 96)),
        ("pvt_v2_b0", {}, (2, 256, 32)),
        ("levit_128s", {}, (2, 196, 128)),
        ("mixer_s32_224", {"img_size": 64}, (2, 4, 512)),  # and without attention
        ("convnext_atto", {}, (2, 16, 16, 40)),
        ("resnet18", {}, (2, 64, 32, 32)),
        ("poolformer_s12", {}, (2, 64, 16, 16)),
        ("fastvit_t8", {}, (2, 48, 32, 32)),  # several convolutions side by side read the image
    ],
)
def test_of_other_families(name: str, options: dict[str, int], shape: tuple[int, ...]) -> None:
    model = timm.create_model(name, num_classes=3, **options).eval()
    side = 224 if name.startswith("levit") else options.get("img_size", 64)
    images = torch.rand(2, 3, side, side)
    with held_still(model):
        number = number_of(model, images)
        with AttentionTap(model, start="embedding", embedding_number=number) as tap:
            model(images)
    assert tap.embedding is not None
    assert tuple(tap.embedding.shape) == shape


def test_a_post_norm_model_has_one() -> None:
    model, images = post_norm_vit().double(), _images()
    embedding, _, _ = relevance(model, images)
    expected = model.embed(images).flatten(2).mT + model.position
    torch.testing.assert_close(embedding, expected.detach(), rtol=0, atol=0)


def test_what_runs_past_the_tokens_leaves_none() -> None:
    model, images = vit_beside_colours(), _images(torch.float32)
    assert number_of(model, images) is None
    with pytest.raises(NoEmbeddingError, match="no one tensor through which all goes"):
        explain(model, images, 1, method="conservative")


def test_two_towers_have_none() -> None:
    model = timm.create_model("crossvit_tiny_240", num_classes=3).eval()
    with held_still(model):
        assert number_of(model, torch.rand(1, 3, 240, 240)) is None
