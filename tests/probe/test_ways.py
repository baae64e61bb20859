from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_attngrad.probe.samples import path_to
from lightning_attngrad.probe.ways import PLAIN_WAY, signature_in_words, takes_one_container, way_of_function, ways_of

IMAGES, OTHERS = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
LABELS, NUMBERS = torch.tensor([1, 0]), torch.rand(2, 5) + 1


def model_of(forward: Callable[..., Any]) -> nn.Module:
    model = nn.Module()
    model.forward = forward  # type: ignore[method-assign]
    return model


def words(forward: Callable[..., Any], batch: Any, target: Any = None) -> list[str]:
    return [way.words for way in ways_of(model_of(forward), batch, path_to(batch, IMAGES), target, 2)]


def one(x: Any) -> Any: ...
def two(x: Any, y1: Any) -> Any: ...
def optional(x: Any, more: Any = None) -> Any: ...
def three(a: Any, b: Any, c: Any) -> Any: ...
def of_label(image: Any, labels: Any) -> Any: ...
def named(image: Any, numbers: Any) -> Any: ...
def hf(input_ids: Any = None, pixel_values: Any = None, labels: Any = None) -> Any: ...
def anything(*args: Any, **kwargs: Any) -> Any: ...
def keywords(**kwargs: Any) -> Any: ...


@pytest.mark.parametrize(
    ("forward", "batch", "expected"),
    [
        (one, (IMAGES, LABELS), ["model(batch)"]),
        (one, {"image": IMAGES, "label": LABELS}, ["model(batch)"]),
        (one, ([IMAGES, OTHERS], LABELS), ["model(batch[0])", "model(batch)"]),
        (two, (IMAGES, OTHERS, LABELS), ["model(*batch[:2])"]),
        (two, (IMAGES, NUMBERS, LABELS), ["model(*batch[:2])"]),
        (two, (IMAGES, LABELS), []),  # labels are nobody's second argument
        (two, (IMAGES, torch.eye(2)), []),  # nor one-hot ones
        (two, (IMAGES, torch.ones(2, 5)), []),  # nor several an image
        (two, (IMAGES, torch.tensor([3.0, 1.0])), []),  # nor in floating-point clothes
        (two, (IMAGES, LABELS, NUMBERS), []),  # which of the two they are is not known
        (three, (IMAGES, OTHERS, NUMBERS, LABELS), ["model(*batch[:3])"]),
        (optional, (IMAGES, OTHERS), ["model(*batch[:2])", "model(batch)"]),
        (of_label, (IMAGES, NUMBERS), []),
        (of_label, {"image": IMAGES, "labels": NUMBERS}, []),
        (named, {"image": IMAGES, "numbers": NUMBERS}, ["model(image=batch['image'], numbers=batch['numbers'])"]),
        (named, {"photo": IMAGES, "numbers": NUMBERS}, ["model(images, numbers=batch['numbers'])"]),
        (
            hf,
            {"pixel_values": IMAGES, "input_ids": NUMBERS, "labels": LABELS},
            [
                "model(pixel_values=images)",
                "model(pixel_values=batch['pixel_values'], input_ids=batch['input_ids'])",
                "model(batch)",
            ],
        ),
        (keywords, {"pixel_values": IMAGES, "label_ids": LABELS}, ["model(pixel_values=images)"]),
        (anything, (IMAGES, OTHERS, LABELS), ["model(*batch[:2])", "model(batch)"]),
        (
            one,
            {"inputs": {"image": IMAGES}, "y": LABELS},
            ["model(batch['inputs'])", "model(batch)"],
        ),
        (one, IMAGES, []),  # there is nothing else
    ],
)
def test_what_a_signature_permits_plainest_first(forward: Any, batch: Any, expected: list[str]) -> None:
    assert words(forward, batch) == expected


def test_labels_are_where_the_user_says() -> None:
    batch = (IMAGES, LABELS, NUMBERS)
    assert words(two, batch, target=(2,)) == ["model(*batch[:2])"]
    assert words(named, {"image": IMAGES, "numbers": NUMBERS}, target=("numbers",)) == []


def test_where_the_images_are_not_in_the_batch_there_is_no_way() -> None:
    assert list(ways_of(model_of(one), {"image": OTHERS}, None, None, 2)) == []


def test_what_is_handed_over() -> None:
    seen: list[Any] = []
    model = nn.Module()

    def forward(image: Any, numbers: Any) -> int:
        seen.append((image, numbers))
        return 7

    model.forward = forward  # type: ignore[method-assign]
    for batch in ((IMAGES, NUMBERS, LABELS), {"image": IMAGES, "numbers": NUMBERS, "label": LABELS}):
        (way,) = ways_of(model, batch, path_to(batch, IMAGES), None, 2)
        assert way.needs_batch
        assert way.call(model, OTHERS, batch) == 7
    assert all(image is IMAGES and numbers is NUMBERS for image, numbers in seen)


class OfTensor(nn.Module):
    def forward(self, x: Tensor, flag: bool = False) -> Tensor:
        return x


class OfDict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Any: ...


class OfMapping(nn.Module):
    def forward(self, batch: Mapping[str, Any]) -> Any: ...


class OfEither(nn.Module):
    def forward(self, x: Tensor | list[Tensor]) -> Any: ...


class Unsaid(nn.Module):
    def forward(self, x):  # type: ignore[no-untyped-def]
        return x


@pytest.mark.parametrize(
    ("model", "expected"),
    [(OfTensor(), False), (OfDict(), True), (OfMapping(), True), (OfEither(), False), (Unsaid(), False)],
)
def test_annotations_of_containers(model: nn.Module, expected: bool) -> None:
    assert takes_one_container(model) is expected


def test_annotations_that_are_no_strings() -> None:
    def of_list(views: Any) -> Any: ...

    of_list.__annotations__["views"] = list[Tensor]
    assert takes_one_container(model_of(of_list))
    of_list.__annotations__["views"] = Tensor | list[Tensor]
    assert not takes_one_container(model_of(of_list))


def test_signatures_in_words() -> None:
    assert signature_in_words(OfTensor()) == "(x, flag=False)"
    assert signature_in_words(torch.compile(OfTensor(), backend="eager")) == "(x, flag=False)"


@pytest.mark.parametrize(
    ("function", "expected", "needs_batch"),
    [
        (lambda model, images: 0, "<lambda>(model, images)", False),
        (lambda model, images, scale=2: 0, "<lambda>(model, images)", False),
        (lambda *args: 0, "<lambda>(model, images)", False),
        (lambda model, images, batch: 0, "<lambda>(model, images, batch)", True),
        (lambda model, images, everything: 0, "<lambda>(model, images, batch)", True),
        (lambda model, images, *, batch: 0, "<lambda>(model, images, batch=batch)", True),
        (lambda model, images, batch=None: 0, "<lambda>(model, images, batch=batch)", True),
        (nn.Identity(), "Identity(model, images)", False),
    ],
)
def test_functions_of_the_user(function: Any, expected: str, needs_batch: bool) -> None:
    way = way_of_function(function)
    assert (way.words, way.needs_batch) == (expected, needs_batch)
    if not isinstance(function, nn.Module):
        assert way.call(nn.Module(), IMAGES, {}) == 0


def test_the_plain_way() -> None:
    assert PLAIN_WAY.call(nn.Identity(), IMAGES, None) is IMAGES
