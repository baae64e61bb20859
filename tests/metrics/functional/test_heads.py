"""Head statistics against loops over all of A."""

from __future__ import annotations

import itertools
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.explain.forward_pass import forward_pass
from lightning_attngrad.metrics import AttentionHeadStatistics
from lightning_attngrad.metrics.functional import head_statistics
from lightning_attngrad.metrics.functional.heads import statistics_of_call
from tests.explain.placed_calls import LAYOUTS, calls_of
from tests.references.placed import Placed
from tests.references.recorded_attention import record_attention
from tests.zoo import ZOO, randomise


def _expected(attention: Tensor, prefix: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, distance and prefix mass, (B, H), one number at a time."""
    batch, heads, tokens, _ = attention.shape
    entropy, distance, prefix_mass = torch.zeros(3, batch, heads)
    for b in range(batch):
        for h in range(heads):
            rows = attention[b, h]
            entropy[b, h] = sum(
                -sum(float(a) * math.log(float(a)) for a in row if a > 0) / math.log(tokens) for row in rows
            ) / len(rows)
            travelled = []
            for i in range(prefix, tokens):
                here = divmod(i - prefix, columns)
                weights = rows[i, prefix:] / rows[i, prefix:].sum()
                travelled.append(sum(float(w) * math.dist(here, divmod(j, columns)) for j, w in enumerate(weights)))
            distance[b, h] = sum(travelled) / len(travelled)
            on_prefix = [sum(float(a) for a in rows[i, :prefix]) for i in range(prefix, tokens)]
            prefix_mass[b, h] = sum(on_prefix) / len(on_prefix)
    return entropy, distance, prefix_mass


@pytest.mark.parametrize("name", ["vit", "vit_unfused", "dinov2_registers", "siglip", "torchvision", "hf_vit_eager"])
@pytest.mark.parametrize("budget", [1, 10**8])
def test_equals_loops_over_the_whole_attention(name: str, budget: int) -> None:
    entry = ZOO[name]
    model, images = entry.build(), entry.images()
    statistics = head_statistics(model, images, memory_budget=budget)
    with record_attention() as record:
        model(images)
    recorded = [call.probabilities.detach() for call in record]
    recorded = [attention for attention in recorded if attention.shape[-1] == attention.shape[-2]]
    assert statistics.entropy.shape[:2] == (len(images), len(recorded))
    for layer, attention in enumerate(recorded):
        entropy, distance, prefix_mass = _expected(attention, entry.prefix, entry.grid[1])
        torch.testing.assert_close(statistics.entropy[:, layer], entropy, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(statistics.distance[:, layer], distance, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(statistics.prefix_mass[:, layer], prefix_mass, rtol=1e-4, atol=1e-5)


NORMS = {
    "vit": ".1.",
    "vit_unfused": ".1.",
    "dinov2_registers": ".1.",
    "siglip": ".1.",
    "torchvision": "_1.",
    "hf_vit": ".1.",
}


@pytest.mark.parametrize("name", NORMS)
def test_outliers_are_counted_where_tokens_enter_a_block(name: str) -> None:
    entry = ZOO[name]
    model, images = entry.build(), entry.images(batch=3)
    lengthened = {0: [2, 5], 1: [7], 2: []}  # by image: patches that are given long tokens

    def lengthen(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        tokens = args[0].clone()
        for image, patches in lengthened.items():
            for patch in patches:
                tokens[image, entry.prefix + patch] *= 30
        tokens[:, : entry.prefix] *= 100  # no patches
        return (tokens, *args[1:])

    entering: list[Tensor] = []
    model.get_submodule(entry.first_block).register_forward_pre_hook(lengthen)
    for number in ("0", "1"):
        norm = entry.last_norm.replace(NORMS[name], NORMS[name].replace("1", number))
        model.get_submodule(norm).register_forward_pre_hook(lambda _, args: entering.append(args[0].detach()))
    found = head_statistics(model, images).high_norm_share
    entering = entering[-2:]  # the passes before trace where patches lie
    patches = entry.grid[0] * entry.grid[1]
    torch.testing.assert_close(found[:, 0], torch.tensor([2, 1, 0]) / patches)
    assert found.shape == (3, len(entering))
    for layer, tokens in enumerate(entering):
        for image in range(3):
            lengths = [float(token.square().sum().sqrt()) for token in tokens[image, entry.prefix :]]
            middle = sorted(lengths)[(patches - 1) // 2]
            expected = sum(1 for length in lengths if length > 4 * middle) / patches
            assert float(found[image, layer]) == pytest.approx(expected)


def test_without_a_normalisation_in_front_there_is_no_share_of_outliers() -> None:
    """A block that normalises afterwards: before the first attention nothing is, before the second the first's sum."""

    class PostNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 16, 8, 8)
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=False)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, images: Tensor) -> Tensor:
            return self.layers(self.embed(images).flatten(2).mT).mean(1)

    statistics = head_statistics(PostNorm(), torch.rand(2, 3, 32, 32))
    assert statistics.high_norm_share.isnan().tolist() == [[True, False]] * 2
    assert (statistics.prefix_mass == 0).all()


def _by_places(placed: Placed, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Entropy, distance and prefix mass of one call, (B, H), one query at a time; padding left out."""
    call, slots = placed.places.calls[number], placed.places.slots
    grid, of_keys = call.queries.grid, call.keys.grid
    assert grid is not None
    assert of_keys is not None
    units = (grid[0] / of_keys[0], grid[1] / of_keys[1])
    found: dict[tuple[int, int], list[tuple[float, float | None, float | None]]] = {}
    for row, head, n in itertools.product(*map(range, call.shape[:3])):
        of_query, of_key = (min(head, tokens.place.shape[1] - 1) for tokens in (call.queries, call.keys))
        query, image = int(call.queries.place[row, of_query, n]), int(call.queries.image[row, of_query, n])
        if query < 0:
            continue
        weights = placed.attention[number][row, head, n].tolist()
        keys = [(key, w) for key, w in zip(call.keys.place[row, of_key].tolist(), weights, strict=True) if key >= 0]
        whole = sum(w for _, w in keys)
        entropy = -sum(w / whole * math.log(w / whole) for _, w in keys) / math.log(max(len(keys), 2))
        distance = prefix_mass = None
        if query >= slots:
            here = [part + 0.5 for part in divmod(query - slots, grid[1])]
            patches = [(divmod(key - slots, of_keys[1]), w) for key, w in keys if key >= slots]
            places = [
                ([(part + 0.5) * unit for part, unit in zip(there, units, strict=True)], w) for there, w in patches
            ]
            distance = sum(w * math.dist(here, there) for there, w in places) / sum(w for _, w in patches)
            prefix_mass = 1 - sum(w for _, w in patches) / whole
        found.setdefault((image, head), []).append((entropy, distance, prefix_mass))
    means = torch.zeros(3, placed.places.batch, call.shape[1])
    for (image, head), numbers in found.items():
        for index, of_kind in enumerate(zip(*numbers, strict=True)):
            known = [number for number in of_kind if number is not None]
            means[index, image, head] = sum(known) / len(known)
    return means[0], means[1], means[2]


BETWEEN_PATCHES = [
    (name, number)
    for name, layout in LAYOUTS.items()
    for number, call in enumerate(layout().places.calls)
    if call.queries.grid is not None and call.keys.grid is not None
]


@pytest.mark.parametrize(("layout", "number"), BETWEEN_PATCHES)
@pytest.mark.parametrize("budget", [1, 700, 10**8])
def test_in_windows_and_on_several_grids_it_equals_loops_over_places(layout: str, number: int, budget: int) -> None:
    placed = LAYOUTS[layout]()
    call, places = calls_of(placed)[number], placed.places.calls[number]
    found = statistics_of_call(call, places, placed.places.slots, placed.places.batch, budget)
    entropy, distance, prefix_mass = _by_places(placed, number)
    torch.testing.assert_close(found.entropy, entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.distance, distance, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.prefix_mass, prefix_mass, rtol=1e-4, atol=1e-5)


def test_layers_with_fewer_heads_have_nan_in_place_of_those_that_they_have_not() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=(48, 72),
        window_size=3,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=3,
    )
    images = torch.rand(2, 3, 48, 72, generator=torch.Generator().manual_seed(0))
    found = head_statistics(randomise(model, seed=0).eval(), images)
    assert found.layer_names == tuple(f"layers.{stage}.blocks.{block}.attn" for stage in (0, 1) for block in (0, 1))
    for statistics in (found.entropy, found.distance, found.prefix_mass):
        assert statistics.shape == (2, 4, 4)
        assert statistics.isnan()[0].tolist() == [[False, False, True, True]] * 2 + [[False] * 4] * 2
        assert bool((statistics.nanmean(dim=2) >= 0).all())
    assert float(found.distance.nan_to_num().amax()) < math.hypot(2, 2)  # patches of a window of 3×3
    assert float(found.entropy.nan_to_num().amax()) <= 1
    assert found.high_norm_share.shape == (2, 4)
    metric = AttentionHeadStatistics(layers=4, heads=4)
    metric.update(found.entropy, found.distance, found.prefix_mass, found.high_norm_share)
    means = metric.compute()
    torch.testing.assert_close(means["distance"], found.distance.mean(dim=0), equal_nan=True)
    metric.plot()


def test_without_attention_between_patches_there_is_nothing_to_say() -> None:
    model = timm.create_model("xcit_nano_12_p16_224", img_size=32, num_classes=3)  # patches attend by their channels
    with pytest.raises(UnsupportedModelError, match=r"in none of its .* do patches attend to patches"):
        head_statistics(model, torch.rand(2, 3, 32, 32))


def test_uniform_attention_has_known_numbers() -> None:
    entry = ZOO["vit"]
    model = entry.build()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features == 3 * module.in_features:
            nn.init.zeros_(module.weight[: 2 * module.in_features])  # queries and keys: all scores alike
            nn.init.zeros_(module.bias)
    statistics = head_statistics(model, entry.images())
    places = torch.cartesian_prod(*(torch.arange(float(side)) for side in entry.grid))
    torch.testing.assert_close(statistics.entropy, torch.ones_like(statistics.entropy))
    torch.testing.assert_close(
        statistics.distance, torch.full_like(statistics.distance, float(torch.cdist(places, places).mean()))
    )


def test_the_check_of_places_keeps_no_activations() -> None:
    """The pass has a graph, which says what comes from what; of what a backward pass would need it keeps nothing."""
    model, images = ZOO["vit_deep"].build(), ZOO["vit_deep"].images(batch=8)

    def alive_after_the_forward(backward: bool) -> int:
        alive: list[int] = []

        def forward(batch: Tensor) -> Tensor:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                logits = model(batch)
            events = profiled.profiler.kineto_results.events()
            alive.append(sum(event.nbytes() for event in events if event.name() == "[memory]"))
            return logits

        with forward_pass(model, images, forward=forward, backward=backward) as ran:
            assert ran.tap.calls
        return alive[-1]  # the passes before trace where patches lie

    assert alive_after_the_forward(backward=False) < 0.6 * alive_after_the_forward(backward=True)


def test_no_graph_is_made_and_the_model_is_left_alone() -> None:
    entry = ZOO["vit"]
    model = entry.build().train()
    statistics = head_statistics(model, entry.images())
    assert not statistics.entropy.requires_grad
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
