"""Images in another layout than (B, C, H, W): refused before training with two lines, and these lines work."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import lightning_attngrad as attngrad
from lightning_attngrad.probe import ProbeInputError, split_batch
from tests.callbacks.small_runs import Classifier, Squares

Layout = tuple[Callable[[list[Tensor]], Any], Callable[[Any], Tensor], str]
#: What a batch of images is, what the module makes of it, and what is said.
LAYOUTS: dict[str, Layout] = {
    "channels last": (
        lambda images: torch.stack(images).permute(0, 2, 3, 1).contiguous(),
        lambda images: images.permute(0, 3, 1, 2),
        "with their channels last",
    ),
    "a list": (list, torch.stack, "a list, one by one"),
    "no channels": (
        lambda images: torch.stack(images)[:, 0],
        lambda images: images.unsqueeze(1).expand(-1, 3, -1, -1),
        "without an axis of channels",
    ),
}


class Another(Classifier):
    """Trains on such batches."""

    def __init__(self, taken: Callable[[Any], Tensor]) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.taken = taken

    def forward(self, images: Any) -> Tensor:
        return self.net(self.taken(images))  # type: ignore[no-any-return]


def loader(batched: Callable[[list[Tensor]], Any]) -> DataLoader[Any]:
    def collate(items: list[tuple[Tensor, int]]) -> Any:
        return batched([image for image, _ in items]), torch.tensor([label for _, label in items])

    return DataLoader(Squares(), batch_size=4, collate_fn=collate)


def run(layout: Layout, probe: attngrad.ProbeImages | None, **options: Any) -> attngrad.AttentionMapMonitor:
    monitor = attngrad.AttentionMapMonitor(probe=probe or attngrad.ProbeImages(num_images=2), figures=[], **options)
    trainer = pl.Trainer(
        callbacks=[monitor],
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Another(layout[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader(layout[0]), loader(layout[0]))
    assert len(module.losses) == 3  # training went on
    monitor.said = [str(one.message) for one in caught if "switched off" in str(one.message)]  # type: ignore[attr-defined]
    return monitor


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_is_refused_with_lines_that_work(name: str) -> None:
    (said,) = run(LAYOUTS[name], None).said  # type: ignore[attr-defined]
    assert LAYOUTS[name][2] in said
    line = re.search(r"(ProbeImages\(batch_adapter=.*\)), where", said)
    assert line is not None
    given = eval(line[1], {"torch": torch, "ProbeImages": lambda **o: attngrad.ProbeImages(num_images=2, **o)})
    monitor = run(LAYOUTS[name], given, on_error="raise")
    assert monitor.scalars["entropy"] > 0


def test_embedded_words_are_not_called_images() -> None:
    with pytest.raises(ProbeInputError, match=r"no images \(B, C, H, W\) found in dict\('tokens': float32\[2, 7, 16\]"):
        split_batch({"tokens": torch.rand(2, 7, 16)})
