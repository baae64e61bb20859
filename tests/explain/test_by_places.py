"""Maps of models whose tokens lie in windows, on several grids or side by side, against matrices over all tokens.

A, G and the pooled tokens come from a naive pass in float64; where tokens lie comes from the trace, which has tests of
its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.explain import Region, attention_step, explain
from lightning_attngrad.explain.forward_pass import forward_pass
from tests.explain.test_against_references import assert_same_map
from tests.references import guided
from tests.references import placed as reference
from tests.references.placed import Placed
from tests.references.recorded_attention import RecordedCall
from tests.zoo import randomise

TARGET = torch.tensor([1, 2])


class Towers(nn.Module):
    """Two ViTs of different patches that only the classifier joins, and a third that nothing comes from."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.teacher = (_vit(patch) for patch in (8, 16, 8))
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        self.teacher(images)
        return self.head(torch.cat([self.fine(images), self.coarse(images)], dim=1))


class ClassAttention(nn.Module):
    """Patches alone, and then a class token that reads them twice (CaiT, without its mixed heads)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _vit(8, class_token=False, global_pool="")
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.projections = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.head = nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        patches, token = self.body(images), self.token.expand(len(images), -1, -1)
        for projection in self.projections:
            query, key, value = (
                part.unflatten(-1, (2, 16)).transpose(1, 2)
                for part in projection(F.layer_norm(torch.cat([token, patches], dim=1), (32,))).chunk(3, dim=-1)
            )
            read = F.scaled_dot_product_attention(query[:, :, :1], key, value)
            token = token + read.transpose(1, 2).flatten(2)
        return self.head(token[:, 0])


def _vit(patch: int, **options: object) -> nn.Module:
    settings = {"patch_size": patch, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, **{**settings, **options})
    return model


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=3, **options)


MODELS: dict[str, tuple[tuple[int, int], Callable[[], nn.Module]]] = {
    "swin": (
        (48, 72),
        _timm(
            "swin_tiny_patch4_window7_224",
            img_size=(48, 72),
            window_size=3,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
    ),
    "pvt": ((64, 64), _timm("pvt_v2_b0", depths=(1, 1, 1, 1))),
    "hiera": ((64, 64), _timm("hiera_tiny_224", img_size=64, embed_dim=16, num_heads=1, stages=(1, 1, 1, 1))),
    "parallel": (
        (32, 32),
        _timm("vit_small_patch16_18x2_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2),
    ),
    "towers": ((32, 32), Towers),
    "class attention": ((32, 32), ClassAttention),
}


@cache
def model_of(name: str) -> nn.Module:
    return randomise(MODELS[name][1](), seed=3).eval()


def images_of(name: str) -> Tensor:
    return torch.randn(2, 3, *MODELS[name][0], generator=torch.Generator().manual_seed(1))


@cache
def placed_of(name: str) -> Placed:
    """The places of a model's calls, and A and G of the logit in float64."""
    with forward_pass(model_of(name), images_of(name)) as ran:
        places = ran.places
    exact = randomise(MODELS[name][1](), seed=3).eval().double()
    reading = guided.read(exact, images_of(name).double(), guided.logit(TARGET))
    attention = [matrix.reshape(call.shape) for matrix, call in zip(reading.attention, places.calls, strict=True)]
    gradients = [matrix.reshape(call.shape) for matrix, call in zip(reading.gradients, places.calls, strict=True)]
    unreached = frozenset(number for number, gradient in enumerate(gradients) if not gradient.any())
    pooled = {}
    for number, call in enumerate(places.calls):
        if number in unreached or any(
            number in places.calls[d].reads for d in range(len(places.calls)) if d not in unreached
        ):
            continue
        arrived = gradients[number].abs().sum(dim=(1, 3)) > 0  # (R, N)
        tokens = zip(
            call.queries.image[:, 0][arrived].tolist(), call.queries.place[:, 0][arrived].tolist(), strict=True
        )
        pooled[number] = [token for token in tokens if token[1] >= 0]
    return Placed(places, attention, gradients, pooled, unreached)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_guided(name: str) -> None:
    placed, names = placed_of(name), tuple(guided.CORRECTIONS)
    found = explain(model_of(name), images_of(name), TARGET, method="gradient_guided", correction=names)
    assert found.layer_names == tuple(placed.places.calls[number].name for number in placed.counting)
    assert found.layers is not None
    assert found.heatmap.shape[2:] == placed.map_grid
    for index, correction in enumerate(names):
        assert_same_map(found.token_scores[:, index], reference.guided_map(placed, correction))
    increments = reference.increments(placed, "positive")[..., placed.places.slots :]
    drawn = reference.drawn(increments.unflatten(-1, placed.map_grid), placed.places)
    assert_same_map(found.layers[:, 0], drawn)


@pytest.mark.parametrize("name", MODELS)
def test_rollout(name: str) -> None:
    found = explain(model_of(name), images_of(name), TARGET, method="rollout").token_scores
    assert_same_map(found, reference.rollout(placed_of(name)))
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("name", MODELS)
def test_raw_attention(name: str) -> None:
    found = explain(model_of(name), images_of(name), TARGET, method="raw_attention").token_scores
    assert_same_map(found, reference.raw_attention(placed_of(name)))


def test_rollout_of_calls_side_by_side_by_hand() -> None:
    """Two blocks of two calls each: residual and each call have a third; for each last one a half, and their mean."""
    one, two, three, four = (matrix.mean(dim=1) for matrix in placed_of("parallel").attention)
    row = torch.eye(17, dtype=torch.float64)[:1]
    last = [(row + row @ matrix) / 2 for matrix in (three, four)]
    whole = sum((of_last + of_last @ one + of_last @ two) / 3 for of_last in last) / 2
    found = explain(model_of("parallel"), images_of("parallel"), TARGET, method="rollout").token_scores
    assert_same_map(found, whole[:, 0])


@pytest.mark.parametrize("name", MODELS)
def test_region(name: str) -> None:
    placed = placed_of(name)
    height, width = MODELS[name][0]
    mask = torch.zeros(2, height, width)
    mask[0, : height // 2, : width // 4] = 1
    mask[1, height // 4 :, width // 2 :] = 1

    def phi(logits: Tensor, calls: list[RecordedCall]) -> Tensor:
        return sum(_share_inside(placed, number, calls[number].probabilities, mask) for number in placed.pooled) / len(
            placed.pooled
        )

    exact = randomise(MODELS[name][1](), seed=3).eval().double()
    reading = guided.read(exact, images_of(name).double(), phi)
    gradients = [
        matrix.reshape(call.shape) for matrix, call in zip(reading.gradients, placed.places.calls, strict=True)
    ]
    asked = Placed(placed.places, placed.attention, gradients, placed.pooled, placed.unreached)
    found = explain(model_of(name), images_of(name), TARGET, method="gradient_guided", objective=Region(mask))
    assert_same_map(found.token_scores, reference.guided_map(asked, "positive"))
    with torch.no_grad():
        expected = sum(_share_inside(placed, n, placed.attention[n], mask) for n in placed.pooled) / len(placed.pooled)
    torch.testing.assert_close(found.value.double(), expected, rtol=1e-4, atol=1e-6)


def _share_inside(placed: Placed, number: int, probabilities: Tensor, mask: Tensor) -> Tensor:
    """Φ of one last call, (B,): pooled rows of its attention, mean over heads, times the mask on its keys."""
    call, slots = placed.places.calls[number], placed.places.slots
    pooled = torch.zeros(call.shape[0], call.shape[2], dtype=torch.float64)
    inside = torch.zeros(call.shape[0], call.shape[3], dtype=torch.float64)
    assert call.keys.grid is not None
    cells = reference.means_of_tokens(mask.double(), call.keys.grid, placed.places).flatten(1)
    for row in range(call.shape[0]):
        for n in range(call.shape[2]):
            token = (int(call.queries.image[row, 0, n]), int(call.queries.place[row, 0, n]))
            alike = [other for other in placed.pooled[number] if other[0] == token[0]]
            pooled[row, n] = (token in alike) / len(alike)
        for m in range(call.shape[3]):
            image, key = int(call.keys.image[row, 0, m]), int(call.keys.place[row, 0, m])
            inside[row, m] = cells[image, key - slots] if key >= slots else 0
    by_row = torch.einsum("rn,rhnm,rm->r", pooled, probabilities.reshape(call.shape) / call.heads, inside)
    images = call.queries.image[:, 0].amax(dim=1)
    return torch.stack([by_row[images == image].sum() for image in range(placed.places.batch)])


@pytest.mark.parametrize("name", ["swin", "parallel", "towers"])
def test_the_attention_step_is_measured_by_image(name: str) -> None:
    """An image alone is redirected as it is beside another, and towards the class."""
    model, images = model_of(name), images_of(name)
    together = attention_step(model, images, TARGET, step_sizes=(0.05,))
    assert together.layer_names == tuple(placed_of(name).places.calls[n].name for n in placed_of(name).counting)
    gain = together.logit_change[0].gather(1, TARGET[:, None])
    assert bool((gain > 0).all())
    for index in range(2):
        alone = attention_step(model, images[index : index + 1], int(TARGET[index]), step_sizes=(0.05,))
        torch.testing.assert_close(alone.logits[0, 0], together.logits[0, index], rtol=1e-4, atol=1e-5)
