"""Values described by plain ones: the same in every process, different where they differ, never by memory address."""

from __future__ import annotations

import enum
import functools
import json
import operator
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_attngrad.explain import plain


class Scale:
    """An object that is called: known by its class's code and its plain attributes."""

    def __init__(self, factor: float, keeper: object = None) -> None:
        self.factor, self.keeper = factor, keeper

    def __call__(self, output: Any) -> Any:
        return output[:, 0] * self.factor

    def by(self, output: Any) -> Any:
        return output[:, 1] * self.factor


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)

    def forward(self, output: Any) -> Any:
        return self.linear(output)[:, 0]


class Kind(str, enum.Enum):
    ONE = "one"


def closed_over(number: object) -> Callable[[Any], Any]:
    return lambda output: output[:, 0] * number


def with_default(output: Any, power: float = 2.0) -> Any:
    return output[:, 0] ** power


def with_set(output: Any) -> Any:
    return output[:, 0] if "b" in {"a", "b", "c", "d"} else None


def nested(output: Any) -> Any:
    return [number + 1 for number in (output,)]


def nested_other(output: Any) -> Any:
    return [number + 2 for number in (output,)]


DIFFERENT = [
    None,
    True,
    1,
    0.5,
    "text",
    b"text",
    [1, 2],
    {"a": 1},
    {7, 8},
    torch.zeros(2),
    torch.zeros(3),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.ones(2),
    np.zeros(2),
    np.ones(2),
    lambda output: output[:, 3],
    lambda output: output[:, 4],
    lambda output: output[:, 3].sin(),
    lambda output: output[:, 3].cos(),
    closed_over(1),
    closed_over(2),
    closed_over(torch.ones(2)),
    functools.partial(with_default, power=3.0),
    functools.partial(with_default, power=4.0),
    with_default,
    with_set,
    Scale(1.0),
    Scale(2.0),
    Scale(1.0).by,
    Scale(2.0).by,
    Head(3),
    Head(4),
    Scale,
    Head,
    operator.itemgetter(1),
    operator.itemgetter(2),
    torch.sum,
    torch.mean,
    len,
]


def test_what_differs_is_described_differently() -> None:
    described = [json.dumps(plain(value), sort_keys=True) for value in DIFFERENT]
    assert len(set(described)) == len(described)
    assert not any("0x" in text for text in described)


def test_names_of_functions_do_not_hide_their_code() -> None:
    first, second = plain(nested), plain(nested_other)
    assert (first["module"], first["name"]) == (__name__, "nested")
    assert first["code"] != second["code"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (closed_over(3), closed_over(3)),
        (functools.partial(with_default, power=3.0), functools.partial(with_default, power=3.0)),
        (
            Scale(1.0, keeper=object()),
            Scale(1.0, keeper=object()),
        ),  # what it knows is not what it computes
        (Scale(1.0).by, Scale(1.0).by),
        (Head(3), Head(3)),  # drawn anew: weights change while they train
        ((1, 2), [1, 2]),
        (np.float64(0.5), 0.5),
        (np.int64(3).item(), 3),
        (Kind.ONE, "one"),
        ({1, 2, 3}, {3, 2, 1}),
    ],
    ids=lambda value: str(value)[:12],
)
def test_what_asks_the_same_is_described_alike(one: object, other: object) -> None:
    assert plain(one) == plain(other)


def test_descriptions_are_made_of_the_plainest_types() -> None:
    def check(value: object) -> None:
        assert type(value) in (type(None), bool, int, float, str, list, dict)
        if isinstance(value, dict):
            assert all(type(key) is str for key in value)
            value = list(value.values())
        for item in value if isinstance(value, list) else []:
            check(item)

    for value in [*DIFFERENT, np.float64(0.5), np.float32(0.5), Kind.ONE]:
        check(plain(value))


def test_what_holds_itself_comes_to_an_end() -> None:
    held: list[object] = []
    held.append(held)
    assert plain(held) == [{"type": "builtins.list", "inside": "itself"}]
    recursive: Callable[[int], int] = lambda n: n and recursive(n - 1)  # noqa: E731
    assert "code" in plain(recursive)


def test_another_process_describes_alike() -> None:
    """Sets of strings come in another order there, and everything lies elsewhere in memory."""
    program = (
        "import json, sys; from tests.explain import test_plain as own; from lightning_attngrad.explain import plain\n"
        "print(json.dumps([plain(value) for value in own.DIFFERENT], sort_keys=True))"
    )
    texts = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
        )
        assert done.returncode == 0, done.stderr
        texts.append(done.stdout)
    assert texts[0] == texts[1]
    assert json.loads(texts[0]) == json.loads(json.dumps([plain(value) for value in DIFFERENT]))
