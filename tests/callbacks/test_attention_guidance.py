"""The callback trains as the two lines in a training step do, under every option of a Trainer; what it refuses."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

import lightning_attngrad as attngrad
from lightning_attngrad.attention import UnsupportedModelError
from lightning_attngrad.guidance import LinearWarmup, image_places, object_pairs
from tests.integration.harness import (
    TinyModule,
    bytes_of,
    differences,
    fit,
    process_flags,
    seed_everything,
    tiny_vit,
)

WEIGHT = 2.0
DROPOUT = {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2}


def centres(batch: dict[str, Any]) -> Tensor:
    """A quarter of each image, and of the first of each batch nothing."""
    masks = torch.zeros(len(batch["image"]), 32, 32)
    masks[1:, 8:24, 8:24] = 1
    return masks


def guidance(**options: Any) -> attngrad.AttentionGuidance:
    return attngrad.AttentionGuidance(**{"mask": centres, "weight": WEIGHT, "model": "backbone", **options})


class WithTwoLines(TinyModule):
    """What the documentation says to write."""

    layers: list[str] | None = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        pairs = object_pairs(image_places(self.backbone, batch["image"]), centres(batch))
        with attngrad.capture_attention(self.backbone, self.layers) as calls:
            loss = super().training_step(batch, batch_idx)
        pairs = {call.name: pairs[call.name] for call in calls}
        return loss + WEIGHT * attngrad.attention_guidance_loss(calls, pairs, largest=0.0).loss


def built(kind: type[TinyModule], **options: Any) -> TinyModule:
    seed_everything(0)
    return kind(tiny_vit(**{**DROPOUT, **options}))


def trained(module: TinyModule, *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    return fit(module, callbacks, **options)


def as_numbers(weights: dict[str, bytes]) -> Tensor:
    values = [torch.frombuffer(bytearray(value), dtype=torch.float32) for value in weights.values()]
    return torch.cat(values)


KINDS: dict[str, tuple[dict[str, Any], Callable[[nn.Module], object]]] = {
    "plain": ({}, lambda _: None),
    "bf16-mixed": ({"precision": "bf16-mixed"}, lambda _: None),
    "accumulated": ({"accumulate_grad_batches": 2}, lambda _: None),
    "clipped": ({"gradient_clip_val": 0.1}, lambda _: None),
    "checkpointed": ({}, lambda model: model.set_grad_checkpointing(True)),  # type: ignore[operator]
    "explicit": ({}, lambda model: [setattr(block.attn, "fused_attn", False) for block in model.blocks]),  # type: ignore[union-attr,arg-type]
    "checkpointed, explicit, bf16, accumulated": (
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
        lambda model: [
            model.set_grad_checkpointing(True),  # type: ignore[operator]
            *(setattr(block.attn, "fused_attn", False) for block in model.blocks),  # type: ignore[union-attr,arg-type]
        ],
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_it_trains_as_the_two_lines_do(name: str) -> None:
    options, change = KINDS[name]
    outcomes = []
    for kind, callbacks in ((TinyModule, [guidance()]), (WithTwoLines, []), (TinyModule, [])):
        module = built(kind)
        change(module.backbone)
        outcomes.append(trained(module, *callbacks, max_epochs=1, **options))
    with_callback, with_lines, unguided = (as_numbers(outcome["weights"]) for outcome in outcomes)
    # bf16 rounds sums of gradients; the steps of AdamW do not.
    apart, moved = (with_callback - with_lines).abs().max(), (with_lines - unguided).abs().max()
    assert moved > 2e-3
    assert apart < (0.1 if "bf16" in str(options) else 1e-3) * moved
    for part in ("random streams", "order", "hooks", "attributes", "flags", "process"):
        assert outcomes[0][part] == outcomes[2][part], part


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_without_weight_the_run_is_the_same_and_is_watched(precision: str) -> None:
    without = trained(built(TinyModule), precision=precision)
    watched = built(TinyModule)
    assert differences(without, trained(watched, guidance(weight=0), precision=precision)) == set()
    logged = watched.trainer.logged_metrics
    assert 0 < logged["attngrad/guidance/mass_inside"] < 1
    assert logged["attngrad/guidance/weight"] == 0


def test_what_it_logs(tmp_path: Any) -> None:
    module, logger = built(TinyModule), CSVLogger(tmp_path)
    weight = LinearWarmup(WEIGHT, steps=4)
    trained(module, guidance(weight=weight, layers=["blocks.1.attn"]), logger=logger, max_epochs=5)
    rows = [row for row in logger.experiment.metrics if "attngrad/guidance/loss" in row]
    rows += _read(tmp_path)
    assert len(rows) == 20
    masses = [float(row["attngrad/guidance/mass_inside"]) for row in rows]
    assert [float(row["attngrad/guidance/weight"]) for row in rows[:6]] == [0, 0.5, 1, 1.5, 2, 2]
    assert masses[-1] > masses[0] + 0.005
    for row in rows:
        both = float(row["attngrad/guidance/mass_inside"]) + float(row["attngrad/guidance/mass_outside"])
        assert both == pytest.approx(1, abs=1e-5)


def _read(folder: Any) -> list[dict[str, str]]:
    import csv

    (file,) = folder.rglob("metrics.csv")
    with file.open() as text:
        return [row for row in csv.DictReader(text) if row.get("attngrad/guidance/loss")]


def test_the_loss_that_others_see_is_the_step_s_own() -> None:
    seen: dict[str, list[bytes]] = {}

    class Sees(pl.Callback):
        def __init__(self, key: str) -> None:
            self.key = key

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
            seen.setdefault(self.key, []).append(bytes_of(loss))

    trained(built(TinyModule), Sees("without"), max_steps=1)
    trained(built(TinyModule), guidance(), Sees("with"), max_steps=1)
    assert seen["with"] == seen["without"]


def test_two_of_them_add_up() -> None:
    both = built(TinyModule)
    trained(
        both,
        guidance(weight=1.0, layers=["blocks.0.attn"], name="first"),
        guidance(weight=1.0, layers=["blocks.1.attn"], name="second"),
        max_epochs=1,
    )
    one = built(TinyModule)
    trained(one, guidance(weight=2.0), max_epochs=1)  # the mean over both layers
    for name, value in both.state_dict().items():
        assert torch.allclose(value.float(), one.state_dict()[name].float(), atol=1e-5), name
    assert {"attngrad/first/loss", "attngrad/second/loss"} <= set(both.trainer.logged_metrics)


def test_a_step_without_a_loss_is_passed_over() -> None:
    class Skips(TinyModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx % 2 else loss

    flags = process_flags()
    trained(built(Skips), guidance())
    assert process_flags() == flags


def test_an_error_in_the_step_leaves_nothing_behind() -> None:
    class Breaks(TinyModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            super().training_step(batch, batch_idx)
            raise ZeroDivisionError

    flags = process_flags()
    with pytest.raises(ZeroDivisionError):
        trained(built(Breaks), guidance())
    assert process_flags() == flags


# What it refuses ------------------------------------------------------------------------------------------------


class Manual(TinyModule):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.automatic_optimization = False


class RunsTwice(TinyModule):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + self(batch["image"].flip(-1)).sum()


class OnBothHalves(TinyModule):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        twice = {"image": batch["image"].repeat(2, 1, 1, 1), "label": batch["label"].repeat(2)}
        return super().training_step({**batch, **twice}, batch_idx)


class Lbfgs(TinyModule):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=2)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        (Manual, {}, "optimizes manually"),
        (RunsTwice, {}, "'blocks.0.attn#2' attends more than once in a training step"),
        (OnBothHalves, {}, r"is \(8, 2, 17, 17\) in the training step and \(4, 2, 17, 17\)"),
        (Lbfgs, {}, "more than once a batch"),
        (TinyModule, {"patch_drop_rate": 0.5}, "patch_drop_rate=0"),
    ],
)
def test_runs_that_it_cannot_guide(kind: type[TinyModule], options: dict[str, Any], says: str) -> None:
    flags = process_flags()
    with pytest.raises((ValueError, RuntimeError), match=says):
        trained(built(kind, **options), guidance())
    assert process_flags() == flags


def test_models_that_it_cannot_guide() -> None:
    compiled = built(TinyModule)
    compiled.backbone._compiled_call_impl = compiled.backbone.forward
    with pytest.raises(ValueError, match="is compiled"):
        trained(compiled, guidance())
    frozen = built(TinyModule)
    frozen.backbone.requires_grad_(False)
    frozen.stem.requires_grad_(False)
    frozen.backbone.head.requires_grad_(True)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no gradient leads to the attention"):
        trained(frozen, guidance())
    without = built(TinyModule)
    without.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(UnsupportedModelError):
        trained(without, guidance())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": ["blocks.7.attn"]}, r"layers: got \['blocks.7.attn'\]; the layers of VisionTransformer"),
        ({"mask": "mask"}, "mask"),
        ({"mask": lambda batch: centres(batch)[:, ::2]}, "expected 32 × 32"),
        ({"mask": lambda batch: 3 * centres(batch)}, "expected bool, 0 and 1"),
        ({"model": "spine"}, "has no attribute 'spine'"),
    ],
)
def test_settings_that_do_not_fit_the_run(options: dict[str, Any], says: str) -> None:
    flags = process_flags()
    with pytest.raises(ValueError, match=says):
        trained(built(TinyModule), guidance(**options))
    assert process_flags() == flags


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mask": None}, "mask: got None"),
        ({"weight": -1}, "weight: got -1"),
        ({"layers": "blocks.0.attn"}, "layers: got 'blocks.0.attn'"),
        ({"largest": -0.5}, "largest: got -0.5"),
        ({"name": "a b"}, "name: got 'a b'"),
    ],
)
def test_wrong_arguments_raise_at_construction(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        guidance(**options)


def test_twins_are_refused() -> None:
    with pytest.raises(ValueError, match="are called 'guidance'"):
        trained(built(TinyModule), guidance(), guidance(layers=["blocks.0.attn"]))


def test_it_can_be_copied_to_another_process() -> None:
    module, callback = built(TinyModule), guidance(mask="mask")
    callback.mask = centres
    trained(module, callback, max_steps=1)
    again = pickle.loads(pickle.dumps(callback))
    trained(built(TinyModule), again, max_steps=1)
    assert again.weight == WEIGHT


def test_batches_without_masks_train_unguided_where_a_function_says_so() -> None:
    def sometimes(batch: dict[str, Any]) -> Tensor | None:
        return centres(batch) if next(count) % 2 else None

    def empty(batch: dict[str, Any]) -> Tensor:
        return centres(batch) * (next(count) % 2)

    weights = []
    for mask in (sometimes, empty):
        count = iter(range(100))
        weights.append(trained(built(TinyModule), guidance(mask=mask), max_epochs=1)["weights"])
    assert weights[0] == weights[1]
    unguided = trained(built(TinyModule), max_epochs=1)["weights"]
    assert (as_numbers(weights[0]) - as_numbers(unguided)).abs().max() > 2e-3


def test_a_key_that_leads_nowhere_says_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"which leads nowhere .*mask=lambda batch: batch.get\('mask'\)"):
        trained(built(TinyModule), guidance(mask="mask"))


def test_an_epoch_in_which_no_mask_held_anything_is_said_and_is_the_unguided_one() -> None:
    with pytest.warns(UserWarning, match="no mask of epoch 0 held anything"):
        outcome = trained(built(TinyModule), guidance(mask=lambda batch: 0 * centres(batch)), max_epochs=1, quiet=False)
    assert outcome["weights"] == trained(built(TinyModule), max_epochs=1)["weights"]


def test_one_mask_in_an_epoch_is_enough() -> None:
    steps = iter(range(100))
    some = guidance(mask=lambda batch: centres(batch) * (next(steps) == 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(built(TinyModule), some, max_epochs=1, quiet=False)
    assert next(steps) > 3  # with batches before and behind it, whose masks are empty
    assert not [one for one in caught if "held anything" in str(one.message)]
