"""Models whose tokens lie in any order, and attend in any: the map stays where the image is, or is refused in words."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_attngrad import Region, attention_step, explain
from lightning_attngrad.explain import METHODS, UnsupportedModelError
from lightning_attngrad.metrics.functional import head_statistics
from tests.methods import OF_ANY_MODEL
from tests.references.recorded_attention import record_attention

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """A ViT of two blocks on a 4×4 grid, whose parts the models below replace."""

    width, heads = 32, 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, self.width, 8, 8)
        self.cls = nn.Parameter(torch.randn(1, 1, self.width))
        self.norms = nn.ModuleList(nn.LayerNorm(self.width) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(self.width, 3 * self.width) for _ in range(2))
        self.head = nn.Linear(self.width, 5)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)

    def tokens(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).mT
        return torch.cat([self.cls.expand(len(patches), -1, -1), patches], dim=1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def split(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv[layer](tokens).chunk(3, dim=-1)

    def block(self, layer: int, tokens: Tensor) -> Tensor:
        parts = self.split(layer, self.norms[layer](tokens))
        read = self.attend(*(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts))
        return tokens + read.transpose(1, 2).flatten(2)

    def pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        for layer in range(2):
            tokens = self.block(layer, tokens)
        return self.head(self.pool(tokens))


# Layouts ------------------------------------------------------------------------------------------------------


class ClassTokenBehind(Plain):
    def tokens(self, images: Tensor) -> Tensor:
        return super().tokens(images).roll(-1, dims=1)

    def pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, -1]


class PromptsBehind(Plain):
    def tokens(self, images: Tensor) -> Tensor:
        tokens = super().tokens(images)
        return torch.cat([tokens, torch.ones_like(tokens[:, :3])], dim=1)


class PatchesDropped(Plain):
    def tokens(self, images: Tensor) -> Tensor:
        tokens = super().tokens(images)
        return torch.cat([tokens[:, :9], torch.ones_like(tokens[:, :9])], dim=1)


class PatchesTooFew(Plain):
    def tokens(self, images: Tensor) -> Tensor:
        return super().tokens(images)[:, :10]


class PatchesShuffled(Plain):
    def tokens(self, images: Tensor) -> Tensor:
        tokens = super().tokens(images)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(1)) + 1
        return torch.cat([tokens[:, :1], tokens[:, order]], dim=1)


class PatchesMixed(Plain):
    def tokens(self, images: Tensor) -> Tensor:
        tokens = super().tokens(images)
        return tokens + tokens.roll(1, dims=1)


class SideBySide(Plain):
    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        return self.head(self.pool(self.block(0, tokens) + self.block(1, tokens)))


class TwoViews(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + super().forward(images.flip(-1))


class Detached(Plain):
    def pool(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0].detach()


class OwnCheckpoint(Plain):
    def block(self, layer: int, tokens: Tensor) -> Tensor:
        return checkpoint(super().block, layer, tokens, use_reentrant=False)


class ExplicitClassTokenBehind(ClassTokenBehind):
    """Explicit attention: under the rules that hold it constant, its probabilities are cut from the graph."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


class ExplicitSideBySide(SideBySide):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1) @ value


class JointProjection(Plain):
    """Side by side from one projection: what both read comes from one node of the graph, neither from the other."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        parts = (self.qkv[0](self.norms[0](tokens)) * 1.5).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        query, key, value = parts.chunk(3, dim=-1)
        read = self.attend(query, key, value) + self.attend(key, query, value)
        return self.head(self.pool(tokens + read.transpose(1, 2).flatten(2)))


class PostNormClassTokenBehind(ExplicitClassTokenBehind):
    """Nothing is normalised before the first attention: where patches lie is read off its values."""

    def block(self, layer: int, tokens: Tensor) -> Tensor:
        parts = self.split(layer, tokens)
        read = self.attend(*(part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts))
        return self.norms[layer](tokens + read.transpose(1, 2).flatten(2))


class Reshaped(Plain):
    """Patches cut by reshaping and projected, as vit-pytorch and NaFlex do: no convolution to begin at."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3 * 64, self.width)
        self.project.weight.data.copy_(self.embed.weight.data.flatten(1))
        self.project.bias.data.copy_(self.embed.bias.data)
        del self.embed
        self.embed = self.cut

    def cut(self, images: Tensor) -> Tensor:
        patches = images.unflatten(3, (4, 8)).unflatten(2, (4, 8)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return self.project(patches).mT


class ReshapedClassTokenBehind(Reshaped, ClassTokenBehind):
    pass


class ReshapedPatchesDropped(Reshaped, PatchesDropped):
    pass


class ReshapedPatchesShuffled(Reshaped, PatchesShuffled):
    pass


FOLLOWING_ATTENTION = [name for name in OF_ANY_MODEL if METHODS[name].follows_attention]
OTHER_ORDERS = [
    ClassTokenBehind,
    ExplicitClassTokenBehind,
    ReshapedClassTokenBehind,
    PatchesShuffled,
    ReshapedPatchesShuffled,
]


@pytest.mark.parametrize("model", OTHER_ORDERS)
@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_the_order_of_the_tokens_does_not_move_the_map(model: Callable[[], nn.Module], method: str) -> None:
    expected = explain(Plain(), IMAGES, 1, method=method)
    explanation = explain(model(), IMAGES, 1, method=method)
    size = float(expected.heatmap.abs().max())
    torch.testing.assert_close(explanation.heatmap, expected.heatmap, rtol=1e-4, atol=1e-5 * size)
    torch.testing.assert_close(explanation.token_scores, expected.token_scores, rtol=1e-4, atol=1e-5 * size)


class Turned(Plain):
    """The same tokens from behind to front."""

    def block(self, layer: int, tokens: Tensor) -> Tensor:
        return super().block(layer, tokens.flip(1)).flip(1)


class TurnedPromptsBehind(Turned, PromptsBehind):
    pass


class TurnedPatchesDropped(Turned, PatchesDropped):
    pass


class TurnedPatchesTooFew(Turned, PatchesTooFew):
    pass


@pytest.mark.parametrize(
    ("model", "turned"),
    [
        (PromptsBehind, TurnedPromptsBehind),
        (PatchesDropped, TurnedPatchesDropped),
        (PatchesTooFew, TurnedPatchesTooFew),
    ],
)
@pytest.mark.parametrize("method", FOLLOWING_ATTENTION)
def test_prompts_and_dropped_patches(
    model: Callable[[], nn.Module], turned: Callable[[], nn.Module], method: str
) -> None:
    explanation, other = (explain(one(), IMAGES, 1, method=method) for one in (model, turned))
    assert explanation.heatmap.shape == (2, 4, 4)
    size = float(other.heatmap.abs().max())
    torch.testing.assert_close(explanation.heatmap, other.heatmap, rtol=1e-4, atol=1e-5 * size)


def test_patches_that_were_dropped_have_no_share_in_the_map() -> None:
    heatmap = explain(PatchesTooFew(), IMAGES, 1, method="gradient_guided").heatmap.flatten(1)  # patches 0 … 8 are left
    assert bool((heatmap[:, 9:] == 0).all())
    assert bool((heatmap[:, :9] > 0).any())


def _supports(model: nn.Module) -> list[Tensor]:
    """``mean_h (A ⊙ G)₊`` of every attention call for class 1, (B, N, N), with everything kept."""
    with torch.enable_grad(), record_attention() as calls:
        logits = model(IMAGES)
    probabilities = [call.probabilities for call in calls]
    gradients = torch.autograd.grad(logits[:, 1].sum(), probabilities)
    return [(one * g).clamp_min(0).mean(dim=1).detach() for one, g in zip(probabilities, gradients, strict=True)]


@pytest.mark.parametrize("model", [SideBySide, ExplicitSideBySide, JointProjection])
def test_attention_side_by_side_adds_and_does_not_feed_the_other(model: Callable[[], nn.Module]) -> None:
    first, second = _supports(model())
    expected = (first + second)[:, 0]  # the class token's row of both; neither goes through the other
    explanation = explain(model(), IMAGES, 1, method="gradient_guided")
    torch.testing.assert_close(explanation.token_scores, expected, rtol=1e-4, atol=1e-6)


def test_timm_s_parallel_attention() -> None:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_small_patch16_18x2_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=3
    ).eval()
    supports = _supports(model)
    start, increments = torch.eye(17)[0].expand(2, 1, -1), torch.zeros(2, 1, 17)
    for first, second in zip(supports[-2::-2], supports[-1::-2], strict=True):
        increments = increments + (start + increments) @ (first + second)
    explanation = explain(model, IMAGES, 1, method="gradient_guided")
    size = float(explanation.heatmap.max())
    torch.testing.assert_close(explanation.token_scores, increments[:, 0], rtol=1e-4, atol=1e-5 * size)


def test_several_views_of_an_image_add_up_where_they_lie() -> None:
    views = [explain(Plain(), images, 1, method="gradient_guided").heatmap for images in (IMAGES, IMAGES.flip(-1))]
    explanation = explain(TwoViews(), IMAGES, 1, method="gradient_guided")
    torch.testing.assert_close(explanation.heatmap, views[0] + views[1].flip(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [*FOLLOWING_ATTENTION, "conservative", "attn_lrp"])
def test_features_that_are_detached_are_refused_in_words(method: str) -> None:
    with pytest.raises(ValueError, match="does not depend on the attention"):
        explain(Detached(), IMAGES, 1, method=method)


@pytest.mark.parametrize(
    "reads_places",
    [
        lambda model: head_statistics(model, IMAGES),
        lambda model: attention_step(model, IMAGES, 1),
        lambda model: explain(model, IMAGES, 1, method="gradient_guided", objective=Region(torch.ones(4, 4))),
        *(lambda model, method=method: explain(model, IMAGES, 1, method=method) for method in FOLLOWING_ATTENTION),
    ],
    ids=["head_statistics", "attention_step", "region", *FOLLOWING_ATTENTION],
)
def test_mixed_patches_are_refused_by_all_that_reads_attention_by_place(
    reads_places: Callable[[nn.Module], object],
) -> None:
    with pytest.raises(UnsupportedModelError, match="form no grid"):
        reads_places(PatchesMixed())


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_a_forward_that_checkpoints_by_itself_is_read(method: str) -> None:
    expected = explain(Plain(), IMAGES, 1, method=method)
    torch.testing.assert_close(explain(OwnCheckpoint(), IMAGES, 1, method=method).heatmap, expected.heatmap)


# Near misses that work ----------------------------------------------------------------------------------------


class SoftmaxKeptAside(Plain):
    """Keeps another copy of its probabilities, as people do to look at them later."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        probabilities = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        self.seen = probabilities.float()
        return probabilities @ value


class ValuesFirst(Plain):
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        probabilities = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        return torch.einsum("bhjd,bhij->bhid", value, probabilities)


class ReshapedInPlace(Reshaped):
    """Normalises its images in place: those that the graph begins at may not be written into."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mul_(2).div_(2))


@pytest.mark.parametrize("model", [SoftmaxKeptAside, ValuesFirst, Reshaped, ReshapedInPlace])
@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_other_spellings_give_the_same_map(model: Callable[[], nn.Module], method: str) -> None:
    expected = explain(Plain(), IMAGES, 1, method=method).token_scores
    torch.testing.assert_close(explain(model(), IMAGES, 1, method=method).token_scores, expected, rtol=1e-4, atol=1e-6)


class SoftmaxChanged(Plain):
    """Its attention is the matrix that multiplies the values, whatever became of the softmax."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        matrix = (query @ key.mT).softmax(-1).clamp(0.01)
        self.matrices.append(matrix)
        return matrix @ value

    def forward(self, images: Tensor) -> Tensor:
        self.matrices: list[Tensor] = []
        return super().forward(images)


def test_a_softmax_that_is_changed_before_it_meets_the_values() -> None:
    model = SoftmaxChanged()
    logits = model(IMAGES)
    attention = list(model.matrices)
    gradients = torch.autograd.grad(logits[:, 1].sum(), attention)
    increments = torch.zeros(2, 17)  # by the definition, METHODS: D ← D + (r + D)·mean_h (A ⊙ G)₊
    start = torch.eye(17)[0]
    for matrix, gradient in zip(reversed(attention), reversed(gradients), strict=True):
        support = (matrix * gradient).clamp_min(0).mean(dim=1)  # (B, N, N)
        increments = increments + ((start + increments).unsqueeze(1) @ support).squeeze(1)
    explanation = explain(model, IMAGES, 1, method="gradient_guided")
    torch.testing.assert_close(explanation.token_scores, increments.detach(), rtol=1e-4, atol=1e-6)
    for method in OF_ANY_MODEL:
        assert bool(torch.isfinite(explain(model, IMAGES, 1, method=method).heatmap).all())


def test_scores_of_a_softmax_that_is_changed_are_not_moved() -> None:
    with pytest.raises(ValueError, match="leave this layer out"):
        attention_step(SoftmaxChanged(), IMAGES, 1)


class ResizedThenReshaped(Reshaped):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(F.interpolate(images, size=(32, 32), mode="bilinear"))


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_pixels_mixed_by_resizing_are_no_patches_mixed(method: str) -> None:
    images = F.interpolate(IMAGES, size=(64, 64), mode="bicubic")
    images = images + torch.rand(images.shape, generator=torch.Generator().manual_seed(2))
    assert explain(ResizedThenReshaped(), images, 1, method=method).heatmap.shape == (2, 4, 4)
    small = F.interpolate(images, size=(24, 24), mode="bicubic")
    assert explain(ResizedThenReshaped(), small, 1, method=method).heatmap.shape == (2, 4, 4)


class WideQueryKeyNorm(Plain):
    """Queries and keys are normalised over the full width: these norms lie nearer to the attention than the block's."""

    def __init__(self) -> None:
        super().__init__()
        self.query_norm, self.key_norm = nn.LayerNorm(self.width), nn.LayerNorm(self.width)

    def split(self, layer: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = super().split(layer, tokens)
        return self.query_norm(query), self.key_norm(key), value


@pytest.mark.parametrize("method", ["conservative", "attn_lrp", "guided_relevance"])
def test_relevance_is_measured_at_the_block_s_input_not_at_the_keys(method: str) -> None:
    model = WideQueryKeyNorm()
    embedding = model.tokens(IMAGES).detach()
    explanation = explain(model, IMAGES, 1, method=method)
    seen: list[Tensor] = []
    model.norms[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    explain(model, IMAGES, 1, method=method)
    torch.testing.assert_close(seen[0].detach(), embedding)
    if method == "conservative":  # the biases of a tiny model hardly matter beside what a wrong embedding would give
        assert explanation.completeness_error is not None
        assert bool(torch.isfinite(explanation.completeness_error).all())
    assert explanation.token_scores.shape == (2, 17)


class SigmoidHead(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).sigmoid()


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_a_model_that_ends_in_a_sigmoid(method: str) -> None:
    model = SigmoidHead()
    with pytest.raises(ValueError, match=r"forward=lambda images: model\(images\)\.logit\(\)"):
        explain(model, IMAGES, 1, method=method)
    # By the line that the message gives.
    explanation = explain(model, IMAGES, 1, method=method, forward=lambda images: model(images).logit())
    assert bool(torch.isfinite(explanation.heatmap).all())
    assert not bool(explanation.zero_gradient.any())


class InPlace(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5).div_(0.25))


def test_a_model_that_normalises_in_place_does_not_reach_the_caller_s_images() -> None:
    images = IMAGES.clone()
    first = explain(InPlace(), images, 1)
    assert torch.equal(images, IMAGES)
    assert torch.equal(explain(InPlace(), images, 1).heatmap, first.heatmap)


class PoolsPatchesOnly(Plain):
    """Attentive probing that leaves the class token out."""

    def __init__(self) -> None:
        super().__init__()
        self.asker = nn.Parameter(torch.randn(1, self.heads, 1, self.width // self.heads))

    def pool(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, 1:].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        read = F.scaled_dot_product_attention(self.asker.expand(len(patches), -1, -1, -1), patches, patches)
        return read.transpose(1, 2).flatten(1)


@pytest.mark.parametrize("method", [name for name in OF_ANY_MODEL if name != "layernorm_statistics"])  # it has no norm
def test_attention_pooling_over_the_patches_only(method: str) -> None:
    explanation = explain(PoolsPatchesOnly(), IMAGES, 1, method=method)
    assert explanation.token_scores.shape == (2, 18)  # class token, query, patches
    assert bool(torch.isfinite(explanation.heatmap).all())
    assert float(explanation.heatmap.abs().sum()) > 0


class RunningCentre(Plain):
    """Writes a buffer under no_grad in every forward, as DINO's centre does; and keeps its last tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(5))
        self.last = torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        with torch.no_grad():
            self.centre.mul_(0.9).add_(0.1 * logits.mean(dim=0))
            self.last.add_(logits.mean())
        return logits - self.centre


def test_what_a_forward_writes_under_no_grad_is_not_written_and_gets_no_graph() -> None:
    model = RunningCentre()
    centre, last = model.centre, model.last
    explain(model, IMAGES, 1)
    assert model.centre is centre
    assert model.last is last
    assert torch.equal(centre, torch.zeros(5))
    assert torch.equal(last, torch.zeros(1))
    assert not centre.requires_grad
    copy.deepcopy(model)  # refuses tensors that hang on a graph


class SameBlockTwice(Plain):
    def forward(self, images: Tensor) -> Tensor:
        tokens = self.tokens(images)
        for layer in (0, 1, 0):
            tokens = self.block(layer, tokens)
        return self.head(self.pool(tokens))


def test_a_module_that_attends_several_times_has_a_name_for_each() -> None:
    model = nn.Sequential(SameBlockTwice())
    assert explain(model, IMAGES, method="gradient_guided").layer_names == ("0", "0#2", "0#3")


def test_rms_norm_keeps_the_model_s_own_values_in_half_precision() -> None:
    from lightning_attngrad.attention import ATTN_LRP, AttentionTap

    tokens = torch.full((1, 3, 8), 400.0, dtype=torch.float16) * torch.arange(1, 9).half() / 8
    norm = nn.RMSNorm(8).half()
    expected = norm(tokens)
    with AttentionTap(norm, rules=ATTN_LRP):
        assert torch.equal(norm(tokens), expected)
