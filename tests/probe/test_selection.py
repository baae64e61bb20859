from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from lightning_attngrad.probe.selection import balanced_choice, candidate_indices, known_targets


class With(Dataset[int]):
    """A data set with the given attributes, that must not be read."""

    def __init__(self, length: int, **attributes: object) -> None:
        self.length = length
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        raise AssertionError("the data were read")


@given(
    targets=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    count=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_choice_is_balanced_distinct_and_repeatable(targets: list[int], count: int, seed: int) -> None:
    chosen = balanced_choice(targets, count, seed)
    assert chosen == balanced_choice(targets, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, len(targets))
    available, taken = Counter(targets), Counter(targets[position] for position in chosen)
    most = max(taken.values())
    # a class may be behind the largest by more than one only when it has nothing left
    assert all(taken[c] >= min(most - 1, available[c]) for c in available)


def test_another_seed_makes_another_choice() -> None:
    targets = np.arange(100) % 4
    assert len({tuple(balanced_choice(targets, 8, seed)) for seed in range(5)}) == 5
    assert len({tuple(candidate_indices(100, 8, seed)) for seed in range(5)}) == 5


def test_candidates_are_distinct_and_repeatable() -> None:
    assert candidate_indices(100, 8, 1) == candidate_indices(100, 8, 1)
    assert sorted(candidate_indices(5, 8, 1)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "dataset",
    [
        With(3, targets=[2, 0, 1]),
        With(3, targets=torch.tensor([2, 0, 1])),
        With(3, targets=[torch.tensor(2), torch.tensor(0), torch.tensor(1)]),
        With(3, labels=np.array([2, 0, 1], dtype=np.uint8)),
        With(3, samples=[("a.png", 2), ("b.png", 0), ("c.png", 1)]),
        With(3, targets="not targets", labels=(2, 0, 1)),
        TensorDataset(torch.rand(3, 1), torch.tensor([2, 0, 1])),
        Subset(With(5, targets=[9, 2, 9, 0, 1]), [1, 3, 4]),
        Subset(Subset(With(5, targets=[9, 2, 9, 0, 1]), [4, 3, 1]), [2, 1, 0]),
        Subset(With(5, targets=[9, 2, 9, 0, 1]), torch.tensor([1, 3, 4])),  # type: ignore[arg-type]
        ConcatDataset([With(1, targets=[2]), TensorDataset(torch.rand(2, 1), torch.tensor([0, 1]))]),
        With(3, dataset=With(3, targets=[2, 0, 1])),
    ],
)
def test_targets_are_known_without_reading(dataset: Dataset[object]) -> None:
    targets = known_targets(dataset)
    assert targets is not None
    assert targets.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    "dataset",
    [
        With(3),
        With(3, targets=[0.5, 0.1, 0.2]),
        With(3, targets=["a", "b", "c"]),
        With(3, targets=[0, 1]),
        With(3, labels=torch.rand(3, 2)),
        TensorDataset(torch.rand(3, 1)),
        Subset(With(5), [1, 2]),
        ConcatDataset([With(1, targets=[2]), With(2)]),
        With(3, dataset=With(4, targets=[2, 0, 1, 1])),  # another length: the wrapper reorders
    ],
)
def test_unknown_targets_are_none(dataset: Dataset[object]) -> None:
    assert known_targets(dataset) is None


def test_the_label_column_of_a_hugging_face_data_set_is_read_without_its_transform() -> None:
    class Column(list[int]):
        def __getitem__(self, places: Any) -> Any:
            return Column(super().__getitem__(places))

        def to_numpy(self) -> Any:
            return np.asarray(self)

    class HuggingFaceLike(With):
        def with_format(self, format_: object) -> dict[str, Column]:
            assert format_ == "arrow"
            return {"label": Column([2, 0, 1])}

    dataset = HuggingFaceLike(3, features={"image": None, "label": None})
    targets = known_targets(dataset)
    assert targets is not None
    assert targets.tolist() == [2, 0, 1]

    class Table:
        def __init__(self, *values: int) -> None:
            self.values = values

        def column(self, _: str | int) -> Column:
            return Column(self.values)

    shuffled = With(3, features={"label": None}, data=Table(0, 1, 2, 3), _indices=Table(2, 0, 1), with_format=None)
    targets = known_targets(shuffled)
    assert targets is not None
    assert targets.tolist() == [2, 0, 1]
