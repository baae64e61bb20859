from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad import explain
from lightning_attngrad.attention import AttentionTap, KnownPlaces, UnsupportedModelError, known_places
from lightning_attngrad.state import differentiable, held_still
from tests.attention.test_tracing import Blocks, RandomOrder, images_of

TRACES: list[int] = []


@pytest.fixture(autouse=True)
def _counted(monkeypatch: pytest.MonkeyPatch) -> None:
    TRACES.clear()
    original = known_places.trace

    def counting(model: nn.Module, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        TRACES.append(len(images))
        return original(model, images, *args, **kwargs)

    monkeypatch.setattr(known_places, "trace", counting)


def answers(output: Any) -> Iterable[Tensor]:
    return [output]


def test_a_model_is_traced_once_for_each_size_of_its_images() -> None:
    model = Blocks()
    for batch, size in ((2, (32, 48)), (5, (32, 48)), (1, (32, 48)), (3, (32, 32)), (4, (32, 48))):
        explain(model, images_of(*size, batch), 1, method="gradient_guided")
    assert TRACES == [2, 2]


def test_another_model_is_traced_again_and_a_method_does_not_matter() -> None:
    model, images = Blocks(), images_of(32, 48, 3)
    for method in ("gradient_guided", "attn_lrp", "rollout"):
        explain(model, images, 1, method=method)
    explain(Blocks(), images, 1, method="rollout")
    assert len(TRACES) == 2


def test_tokens_that_are_chosen_are_traced_for_every_pass_and_drawn_alike() -> None:
    model, images = RandomOrder(), images_of(32, 48, 3)
    torch.manual_seed(5)
    expected = torch.rand(3, 24).argsort(dim=1)[:, :9]
    for _ in range(2):
        torch.manual_seed(5)
        heatmap = explain(model, images, 1, method="gradient_guided").heatmap.flatten(1)
        assert bool((heatmap.scatter(1, expected, 0.0) == 0).all())  # nothing where no token was kept
        assert bool(heatmap.gather(1, expected).ne(0).any())
    assert len(TRACES) >= 2


class ChangesItsMind(Blocks):
    """Turns its tokens round from the second epoch on."""

    def lay_out(self, images: Tensor) -> Tensor:
        tokens = super().lay_out(images)
        return tokens.flip(1) if self.turned else tokens


def test_a_pass_that_moves_tokens_otherwise_is_noticed() -> None:
    model, images = ChangesItsMind(turned=False), images_of(32, 48, 3)
    first = explain(model, images, 1, method="gradient_guided").heatmap
    model.turned = True
    torch.testing.assert_close(explain(model, images, 1, method="gradient_guided").heatmap, first)
    assert TRACES == [2, 3]


def test_places_do_not_keep_a_model_alive() -> None:
    model = Blocks()
    explain(model, images_of(32, 48), 1, method="gradient_guided")
    assert model in known_places._KNOWN
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_a_tap_that_saw_other_calls_is_not_the_same_pass() -> None:
    model, images = Blocks(), images_of(32, 48)
    with differentiable(), held_still(model):
        known = KnownPlaces(model, images, None, answers)
        tap = AttentionTap(model, start="attention")
        with tap:
            model(images)
        assert known.hold_for(tap)
        tap.calls.pop()
        assert not known.hold_for(tap)


class ChangesItsAttention(Blocks):
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.linear:
            return query.relu() @ (key.relu().mT @ value)
        return super().attend(layer, query, key, value)


def test_a_model_that_was_refused_is_read_once_it_has_been_changed() -> None:
    model, images = ChangesItsAttention(linear=True), images_of(32, 48)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match="no softmax attention"):
            explain(model, images, 1, method="gradient_guided")
    model.linear = False
    assert explain(model, images, 1, method="gradient_guided").heatmap.shape == (2, 4, 6)


def test_a_refusal_does_not_keep_a_model_alive() -> None:
    model = ChangesItsAttention(linear=True)
    with pytest.raises(UnsupportedModelError):
        explain(model, images_of(32, 48), 1, method="gradient_guided")
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
