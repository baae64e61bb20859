"""Models of two views: the map lies on the view that is explained, and is of the tokens that the objective names."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_attngrad.explain import PixelClass, explain
from lightning_attngrad.explain.forward_pass import forward_pass
from tests.references import two_views as reference
from tests.two_views import PATCH, PATCHES, SIDE, Matcher, views

CROSS = ["cross.0.attention", "cross.1.attention"]


def matcher(**options: object) -> Matcher:
    torch.manual_seed(1)
    return Matcher(**options).eval()  # type: ignore[arg-type]


def of_b(model: Matcher, a: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda images: model(a, images)


def of_a(model: Matcher, b: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda images: model(images, b)


def centre(token: int) -> tuple[int, int]:
    """A pixel of the patch."""
    return token // SIDE * PATCH + PATCH // 2, token % SIDE * PATCH + PATCH // 2


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("encode", ["apart", "together"])
@pytest.mark.parametrize("explicit", [False, True])
def test_tokens_of_the_other_view_lie_nowhere_on_this_one(encode: str, explicit: bool, count: int) -> None:
    model, (a, b) = matcher(encode=encode, explicit=explicit), views(count)
    with forward_pass(model, b, forward=of_b(model, a)) as ran:
        calls = {call.name: call for call in ran.places.calls}
        for name in CROSS:
            call = calls[name]
            assert call.kind == "tokens"
            assert call.queries.grid is None
            assert bool((call.queries.place < ran.places.slots).all())
            assert (call.keys.place - ran.places.slots).squeeze(1).tolist() == [list(range(PATCHES))] * count
    with forward_pass(model, a, forward=of_a(model, b)) as ran:
        assert {call.name: call.kind for call in ran.places.calls if call.name in CROSS} == dict.fromkeys(
            CROSS, "elsewhere"
        )  # what they read is nothing of view a


def test_tokens_that_attend_both_ways_stay_apart() -> None:
    model, (a, b) = matcher(both_ways=True), views()
    with forward_pass(model, b, forward=of_b(model, a)) as ran:
        calls = {call.name: call for call in ran.places.calls if call.kind == "tokens"}
        # b asks a for the first time: what a has is nothing of b yet. The second time it is.
        assert sorted(calls) == ["cross.0.attention", "cross.1.attention", "cross.1.attention#2", "encoder.attention#2"]
        back = calls["cross.1.attention#2"]
        assert back.queries.grid == (SIDE, SIDE)
        assert back.keys.grid is None


@pytest.mark.parametrize("encode", ["apart", "together"])
@pytest.mark.parametrize("token", [0, 6, 15])
def test_raw_attention_is_the_row_of_the_token_that_is_asked(encode: str, token: int) -> None:
    model, (a, b) = matcher(encode=encode), views()
    objective = PixelClass(3, where=centre(token))
    found = explain(model, b, objective=objective, method="raw_attention", forward=of_b(model, a)).heatmap
    probabilities = reference.attention_and_gradients(model, a, b, lambda scores: scores[:, 3])[-1][0]
    assert torch.allclose(found.flatten(1), probabilities.mean(dim=1)[:, token].float(), atol=1e-6)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("token", [0, 6, 15])
def test_gradient_guided_is_that_of_matrices_over_the_tokens_of_both(explicit: bool, token: int) -> None:
    model, (a, b) = matcher(explicit=explicit), views(3)
    found = explain(
        model, b, objective=PixelClass(5, where=centre(token)), method="gradient_guided", forward=of_b(model, a)
    )
    expected = reference.map_of_view_b(
        model, a, b, lambda scores: scores[:, 5, token // SIDE, token % SIDE], token
    ).float()
    assert float((found.heatmap.flatten(1) - expected).abs().amax()) < 1e-5 * float(expected.abs().amax())
    assert found.layer_names == ("encoder.attention#2", *CROSS)


@pytest.mark.parametrize("encode", ["apart", "together"])
@pytest.mark.parametrize("method", ["attn_lrp", "conservative", "guided_relevance"])
def test_relevance_is_measured_at_the_embedding_of_the_view_that_is_explained(encode: str, method: str) -> None:
    model, (a, b) = matcher(encode=encode), views()
    for image, forward in ((a, of_a(model, b)), (b, of_b(model, a))):
        found = explain(model, image, objective=PixelClass(5, where=centre(6)), method=method, forward=forward)
        assert found.heatmap.shape == (2, SIDE, SIDE)
        assert not found.zero_gradient.any()
        assert bool((found.heatmap.flatten(1).abs().amax(dim=1) > 0).all())


def test_relevance_of_view_b_is_what_its_embedding_does() -> None:
    """With constant attention and normalisations, embedding × gradient: against the plain gradient of a linear twin."""
    model, (a, b) = matcher(), views()
    found = explain(model, b, objective=PixelClass(5, where=centre(6)), method="attn_lrp", forward=of_b(model, a))
    # Patches of b that no token of a can see do nothing, wherever a's patches lie.
    with torch.no_grad():
        model.cross[0].attention.value.weight.zero_()
        model.cross[1].attention.value.weight.zero_()
    blind = explain(model, b, objective=PixelClass(5, where=centre(6)), method="attn_lrp", forward=of_b(model, a))
    assert float(found.heatmap.abs().amax()) > 1e-4
    assert float(blind.heatmap.abs().amax()) < 1e-9
