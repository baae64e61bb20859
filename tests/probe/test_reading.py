from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler, Subset

from lightning_attngrad.probe import ProbeInputError
from lightning_attngrad.probe.reading import read_batches
from tests.probe.runs import Images


def doubled(items: list[Any]) -> dict[str, Any]:
    return {"images": 2 * torch.stack([image for image, _ in items]), "count": len(items)}


def test_items_are_collated_with_the_loaders_own_function() -> None:
    (batch,) = read_batches(DataLoader(Images(), batch_size=2, collate_fn=doubled), [3, 6, 9])
    assert batch["count"] == 3
    assert torch.allclose(batch["images"].mean(dim=(1, 2, 3)), torch.tensor([0.5, 1.0, 1.5]), atol=1e-2)


def test_without_a_batch_size_each_item_is_a_batch() -> None:
    class Batches(Images):
        def __getitem__(self, index: int) -> Any:
            image, target = super().__getitem__(index)
            return image.expand(2, 3, 8, 8), torch.tensor([target] * 2)

    batches = read_batches(DataLoader(Batches(), batch_size=None), [3, 4])
    assert [targets.tolist() for _, targets in batches] == [[0, 0], [1, 1]]


def test_a_sampler_of_lists_reads_all_at_one_go() -> None:
    class Bulk(Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, indices: Any) -> Any:
            assert isinstance(indices, list)
            return torch.rand(len(indices), 3, 4, 4), torch.tensor(indices)

    dataset = Bulk()
    sampler = BatchSampler(SequentialSampler(range(8)), 4, drop_last=False)
    (batch,) = read_batches(DataLoader(dataset, batch_size=None, sampler=sampler), [5, 2])
    assert batch[1].tolist() == [5, 2]


def test_the_batched_reading_of_a_data_set_is_used() -> None:
    class Fetching(Images):
        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [(torch.zeros(3, 2, 2), 7) for _ in indices]

    (batch,) = read_batches(DataLoader(Fetching(), batch_size=2), [1, 2])
    assert batch[1].tolist() == [7, 7]


def test_an_item_that_cannot_be_read_is_reported_with_its_cause() -> None:
    class Broken(Images):
        def __getitem__(self, index: int) -> Any:
            raise OSError("no such file")

    with pytest.raises(ProbeInputError, match=r"items \[1\] of Broken .* OSError\('no such file'\)") as caught:
        read_batches(DataLoader(Broken(), batch_size=2), [1])
    assert isinstance(caught.value.__cause__, OSError)


def test_images_of_several_sizes_cannot_be_collated() -> None:
    class Sizes(Images):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(3, 8, 8 + index), 0

    with pytest.raises(ProbeInputError, match="all probe images must have one size"):
        read_batches(DataLoader(Sizes(), batch_size=1), [0, 1])


class Jitter:
    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image + float(self.generator.random())


class Private(Images):
    """Draws from generators of its own, counts, caches, and opens a handle at its first item."""

    def __init__(self) -> None:
        super().__init__()
        self.handle: object | None = None
        self.reads = 0
        self.cache: dict[int, Any] = {}
        self.python = random.Random(0)
        self.numpy = np.random.RandomState(0)
        self.torch = torch.Generator().manual_seed(0)
        self.transform = [Jitter()]

    def __getitem__(self, index: int) -> Any:
        self.handle = self.handle or object()
        self.reads += 1
        self.cache[index] = index
        image, target = super().__getitem__(index)
        return self.transform[0](image), target

    def draws(self) -> list[float]:
        drawn = [self.python.random(), float(self.numpy.rand()), float(torch.rand((), generator=self.torch))]
        return [*drawn, float(self.transform[0].generator.random())]


@pytest.mark.parametrize("fails", [False, True])
def test_a_data_set_with_a_state_of_its_own_keeps_it(fails: bool) -> None:
    class Drawing(Private):
        def __getitem__(self, index: int) -> Any:
            self.draws()
            item = super().__getitem__(index)
            if fails:
                raise OSError
            return item

    dataset, untouched = Drawing(), Drawing()
    try:
        read_batches(DataLoader(Subset(dataset, range(12)), batch_size=2), [1, 2])
    except ProbeInputError:
        assert fails
    assert (dataset.handle, dataset.reads, dataset.cache) == (None, 0, {})
    assert dataset.draws() == untouched.draws()
