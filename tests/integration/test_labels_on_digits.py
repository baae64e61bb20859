"""A model of several labels, trained on pairs of real digits: its maps lie on the digit that they are of."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_attngrad as attngrad
from lightning_attngrad.demo.data import load_digits
from lightning_attngrad.measure.maps import Maps, explain_images
from lightning_attngrad.measure.rewriting import FrozenTargets, RewriteSettings, RewrittenPairs, rewrite_images
from lightning_attngrad.probe import Evaluation, Findings
from tests.callbacks.small_runs import listening, make_trainer

DIGITS, STEPS, BATCH, SIDE = 4, 600, 48, 16
LEFT, RIGHT = slice(0, SIDE // 4), slice(SIDE // 4, SIDE // 2)


def pairs(
    images: Tensor, targets: Tensor, count: int, seed: int, *, differ: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Two digits side by side on one canvas (N, 1, 16, 32), the labels (N, 4), and both digits (N, 2)."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = images[targets < DIGITS], targets[targets < DIGITS]
    places = torch.randint(len(images), (2 * count, 2), generator=generator)
    if differ:
        places = places[targets[places[:, 0]] != targets[places[:, 1]]]
    places = places[:count]
    small = F.interpolate(images, size=(SIDE, SIDE), mode="area")
    canvas = torch.cat([small[places[:, 0]], small[places[:, 1]]], dim=3)
    digits = targets[places]
    return canvas, F.one_hot(digits, DIGITS).amax(dim=1).float(), digits


class TwoDigits(pl.LightningModule):
    """Which of the digits 0 to 3 are on the canvas."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"img_size": (SIDE, 2 * SIDE), "patch_size": 4, "in_chans": 1, "num_heads": 4}
        self.net = VisionTransformer(embed_dim=48, depth=2, num_classes=DIGITS, **options)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        return F.binary_cross_entropy_with_logits(self(images), labels)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        self.log("val_right", ((self(images) > 0) == labels.bool()).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Keeps(attngrad.Monitor):
    """What the monitors find, with the maps of both digits of each image."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.evaluation = evaluation
        self.maps: Maps = explain_images(evaluation, self.question)
        frozen = FrozenTargets.choose(evaluation, "all", 0)
        self.frozen = frozen
        self.pairs: RewrittenPairs = rewrite_images(evaluation, RewriteSettings(steps=12), frozen)[0]
        return Findings({"right": float((self.pairs.predicted == self.pairs.own).float().mean())})


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Keeps, pl.Trainer, list[str]]:
    (images, targets), (held_out, of_held_out) = load_digits()
    training = TensorDataset(*pairs(images, targets, STEPS * BATCH, 1)[:2])
    validation = TensorDataset(*pairs(held_out, of_held_out, 64, 2, differ=True)[:2])
    torch.manual_seed(0)
    module = TwoDigits()
    watched = attngrad.AttentionMapMonitor(num_images=24)
    keeps = Keeps(probe=attngrad.ProbeImages(num_images=24, mean=0.0, std=1.0), name="kept", on_error="raise")
    keeps.question = watched.question  # type: ignore[attr-defined]
    trainer = make_trainer(keeps, max_epochs=1, num_sanity_val_steps=0)
    with listening() as messages:
        trainer.fit(module, DataLoader(training, batch_size=BATCH), DataLoader(validation, batch_size=32))
    assert float(trainer.callback_metrics["val_right"]) > 0.9
    return module.eval(), keeps, trainer, messages


def test_the_task_is_found_out_and_the_first_label_that_is_there_is_explained(trained: Any) -> None:
    _, keeps, _, messages = trained
    evaluation = keeps.evaluation
    assert messages == []
    assert evaluation.task.name == "multilabel"
    assert evaluation.targets.sum(dim=1).tolist() == [2] * len(evaluation.targets)
    assert evaluation.classes().tolist() == [row.nonzero()[0, 0] for row in evaluation.targets]


def test_the_map_of_each_label_lies_on_its_digit(trained: Any) -> None:
    """By the default method, of images that were not trained on and whose labels are all seen."""
    module, *_ = trained
    _, held_out = load_digits()
    images, labels, digits = pairs(*held_out, 120, 3, differ=True)
    seen = ((module(images) > 0) == labels.bool()).all(dim=1)
    assert int(seen.sum()) > 60
    images, digits = images[seen], digits[seen]
    for side, columns in enumerate((LEFT, RIGHT)):
        heatmap = attngrad.explain(module, images, digits[:, side], task="multilabel").heatmap.clamp_min(0)
        share = heatmap[..., columns].sum(dim=(1, 2)) / heatmap.sum(dim=(1, 2))
        assert float(share.mean()) >= 0.8
        assert float((share > 0.5).float().mean()) > 0.95


def test_rewriting_removes_one_label_and_leaves_the_other(trained: Any) -> None:
    module, keeps, *_ = trained
    pairs_, evaluation = keeps.pairs, keeps.evaluation
    there = evaluation.logits() > 0
    right = (there == evaluation.targets).all(dim=1)  # images of which both labels are seen
    off = (pairs_.target >= DIGITS) & right[pairs_.image]
    assert int(off.sum()) > 20
    assert bool(pairs_.success[off].all())
    assert pairs_.also_changed is not None
    left_alone = (pairs_.also_changed[off] == 0).float().mean()
    assert float(left_alone) > 0.8
    # by hand: the digit on the left is gone, that on the right is still seen
    _, held_out = load_digits()
    images, labels, digits = pairs(*held_out, 60, 3, differ=True)
    seen = ((module(images) > 0) == labels.bool()).all(dim=1)
    images, digits = images[seen], digits[seen]
    result = attngrad.rewrite(module, images, digits[:, 0], task="multilabel", mean=0.0, std=1.0)
    after = (module(result.images) > 0).gather(1, digits)
    assert not after[:, 0].any()
    assert float(after[:, 1].float().mean()) > 0.8
    assert torch.equal(result.target, digits[:, 0] + DIGITS)
