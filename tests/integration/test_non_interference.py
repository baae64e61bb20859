"""A run with the monitor is, bit for bit, the run without it; and take the isolation away and it is not."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, default_collate

from lightning_attngrad.callbacks import base, together
from lightning_attngrad.explain import forward_pass
from lightning_attngrad.metrics.functional import faithfulness
from lightning_attngrad.probe import Evaluation, Findings, evaluation, isolation, probe_set, reading
from lightning_attngrad.rewrite import quality, rewriting
from lightning_attngrad.state import module as module_state
from tests.integration import harness
from tests.integration.harness import (
    Steps,
    TinyModule,
    WatchedMonitor,
    differences,
    evaluate,
    fit,
    seed_everything,
    tiny_vit,
)
from tests.other_models import ViTBesideColours, tiny_resnet
from tests.probe_options import with_probe

PRECISIONS = ("32-true", "bf16-mixed")
DROPOUT = {"proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "pos_drop_rate": 0.1, "drop_path_rate": 0.2}


def plain() -> TinyModule:
    return TinyModule()


def dropping() -> TinyModule:
    return TinyModule(tiny_vit(**DROPOUT))


def frozen() -> TinyModule:
    """Only the head and the stem learn; the backbone stands in evaluation mode, as its dropout shows."""
    module = dropping()
    module.backbone.requires_grad_(False).eval()
    module.backbone.head.requires_grad_(True)
    return module


def checkpointed() -> TinyModule:
    module = dropping()
    module.backbone.set_grad_checkpointing(True)
    return module


def compiled() -> TinyModule:
    module = TinyModule(tiny_vit(depth=1))  # compiling is what takes the time
    module.backbone = torch.compile(module.backbone, backend="eager")
    return module


def compiled_in_place() -> TinyModule:
    module = TinyModule(tiny_vit(depth=1))
    module.backbone.compile(backend="eager")
    return module


@dataclasses.dataclass(frozen=True)
class Variant:
    """A kind of training: what is trained, with which options, and which callbacks stand around the monitor."""

    build: Callable[[], TinyModule] = plain
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    before: Callable[[], list[pl.Callback]] = list
    after: Callable[[], list[pl.Callback]] = list


VARIANTS = {
    "plain": Variant(),
    "dropout and drop path": Variant(dropping, {"num_sanity_val_steps": 2}),
    "frozen backbone": Variant(frozen),
    # A validation after every batch: every other evaluation finds half of an accumulated gradient in .grad.
    "gradient accumulation": Variant(options={"accumulate_grad_batches": 2, "val_check_interval": 1}),
    "gradient checkpointing": Variant(checkpointed),
    "compiled": Variant(compiled),
    "compiled in place": Variant(compiled_in_place),
    "a method stands in": Variant(lambda: TinyModule(ViTBesideColours(harness.CLASSES))),
    "no attention": Variant(lambda: TinyModule(tiny_resnet(harness.CLASSES))),
    "weight averaging before": Variant(before=lambda: [EMAWeightAveraging(decay=0.5)]),
    "weight averaging after": Variant(dropping, after=lambda: [WeightAveraging()]),
}
#: When the monitor evaluates in a fit.
CADENCES: dict[str, dict[str, Any]] = {"epochs": {}, "steps": {"every_n_steps": 1}}


@pytest.fixture(autouse=True)
def no_graphs_from_before() -> Iterator[None]:
    """The number of compilations is compared, so each test starts without any."""
    yield
    torch.compiler.reset()


def life(
    variant: Variant, monitor: Callable[[], list[pl.Callback]], precision: str, folder: Path | None = None
) -> dict[str, Any]:
    """Fit, then validate and test with Trainers of their own; a fingerprint of each.

    With a folder the fit saves checkpoints there, some in the midst of an epoch and some at its end.
    """
    seed_everything(0)
    module = variant.build()
    if variant.build in (compiled, compiled_in_place):
        torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    around = [*variant.before(), *monitor(), *variant.after()]
    saving = [] if folder is None else [ModelCheckpoint(folder, every_n_train_steps=3), ModelCheckpoint(folder / "end")]
    options = {**variant.options, "enable_checkpointing": folder is not None}
    stages = {"fit": fit(module, [*around, *saving], precision=precision, **options)}
    for stage in ("validate", "test"):
        around = [*variant.before(), *monitor(), *variant.after()]
        stages[stage] = evaluate(stage, module, around, precision=precision)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    return {f"{stage}: {part}": value for stage, parts in stages.items() for part, value in parts.items()} | {
        "compiled graphs": graphs
    }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_fit_validate_and_test_are_bit_identical(name: str, precision: str) -> None:
    variant = VARIANTS[name]
    without = life(variant, list, precision)
    assert (without["compiled graphs"] > 0) == name.startswith("compiled")
    assert without["fit: steps"], "the run did not train"
    for cadence, options in CADENCES.items():
        monitors: list[WatchedMonitor] = []

        def monitor(options: dict[str, Any] = options, monitors: list[WatchedMonitor] = monitors) -> list[pl.Callback]:
            monitors.append(WatchedMonitor(**options))
            return [monitors[-1]]

        with_monitor = life(variant, monitor, precision)
        assert differences(without, with_monitor) == set(), f"cadence: {cadence}"
        fitting, validating, testing = monitors
        validations = 4 if "val_check_interval" in variant.options else 1
        steps = 4 if "accumulate_grad_batches" in variant.options else 8
        expected = 1 + (2 * validations if cadence == "epochs" else steps)
        assert len(fitting.explained) == expected, fitting.labels
        assert (validating.labels, testing.labels) == (["validate"], ["test"])
        for watched in monitors:
            assert all(torch.tensor(value).isfinite() for value in watched.scalars.values())


#: Cheap, and sure of the normalisation: the pictures are noise around grey.
REWRITING: dict[str, Any] = {"num_images": 2, "steps": 2, "mean": 0.5, "std": 0.05, "on_error": "raise"}


class WatchedRewriting(harness.attngrad.RewriteRobustnessMonitor):
    """The monitor as it is, drawing nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({**REWRITING, "long_every": None, **options}))
        self.labels: list[str] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.labels.append(evaluation.label)
        return Findings(super().evaluate(evaluation).scalars, dict)


class WatchedAudit(harness.attngrad.CheckpointAudit):
    """The audit as it is."""

    def __init__(self) -> None:
        super().__init__(**with_probe(REWRITING))
        self.labels: list[str] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.labels.append(evaluation.label)
        return super().evaluate(evaluation)


class WatchedDrift(harness.attngrad.AttentionDriftMonitor):
    """The monitor as it is, drawing nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({"num_images": 2, "on_error": "raise", **options}))
        self.labels: list[str] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.labels.append(evaluation.label)
        return Findings(super().evaluate(evaluation).scalars, dict)


class WatchedFaithfulness(harness.attngrad.FaithfulnessMonitor):
    """The monitor as it is, drawing nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**with_probe({"num_images": 2, "steps": 2, "on_error": "raise", **options}))
        self.labels: list[str] = []

    def evaluate(self, evaluation: Evaluation) -> Findings:
        self.labels.append(evaluation.label)
        return Findings(super().evaluate(evaluation).scalars, dict)


class DriftFromACheckpoint(WatchedDrift):
    """Compares with other weights than the model's own, which are run in their place."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        redrawn = {
            name: value + 0.1 if value.is_floating_point() else value for name, value in pl_module.state_dict().items()
        }
        with tempfile.NamedTemporaryFile(suffix=".ckpt") as file:
            torch.save({"state_dict": redrawn}, file.name)
            self.reference = file.name
            super().setup(trainer, pl_module, stage)


COMPANIES: dict[str, Callable[[], list[pl.Callback]]] = {
    "by steps": lambda: [
        WatchedRewriting(every_n_steps=1),
        WatchedDrift(every_n_steps=1),
        WatchedFaithfulness(every_n_steps=1, replacement="blur"),
        WatchedAudit(),
    ],
    "all at once": lambda: [
        WatchedMonitor(),
        WatchedDrift(),
        WatchedRewriting(),
        WatchedFaithfulness(every_n_epochs=1),
        WatchedAudit(),
    ],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_runs_that_rewrite_and_save_are_bit_identical(name: str, tmp_path: Path) -> None:
    """Beside a run that saves as well, but evaluates nothing."""
    variant = VARIANTS[name]
    without = life(variant, list, "bf16-mixed", tmp_path / "without")
    assert list((tmp_path / "without").rglob("*.ckpt"))
    assert not list((tmp_path / "without").rglob("*.json"))
    for company, make in COMPANIES.items():
        made: list[list[Any]] = []

        def callbacks(make: Callable[[], list[pl.Callback]] = make, made: list[list[Any]] = made) -> list[pl.Callback]:
            made.append(make())
            return made[-1]

        folder = tmp_path / company
        assert differences(without, life(variant, callbacks, "bf16-mixed", folder)) == set(), company
        assert len(list(folder.rglob("*.json"))) == len(list(folder.rglob("*.ckpt"))) == 2
        for stage, watched in zip(("fit", "validate", "test"), made, strict=True):
            for callback in watched:
                saves_nothing = stage == "test" and isinstance(callback, WatchedAudit)  # there is nothing to be saved
                assert callback.labels if stage == "fit" else callback.labels == ([] if saves_nothing else [stage])
                assert not callback._off


@pytest.mark.parametrize(
    "alone", [WatchedRewriting, WatchedDrift, DriftFromACheckpoint, WatchedFaithfulness, WatchedAudit]
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_alone_is_bit_identical(alone: Callable[[], pl.Callback], precision: str, tmp_path: Path) -> None:
    variant = VARIANTS["dropout and drop path"]
    without = life(variant, list, precision, tmp_path / "without")
    assert differences(without, life(variant, lambda: [alone()], precision, tmp_path / "with")) == set()


def boxes(batch: Any) -> Tensor:
    """Of each image a quarter."""
    masks = torch.zeros(len(batch["image"]), 32, 32)
    masks[:, 4:20, 4:20] = 1
    return masks


#: Variants whose attention cannot be guided, and why.
NOT_GUIDED = {"compiled": "is compiled", "compiled in place": "is compiled", "no attention": "attention"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", VARIANTS)
def test_guidance_of_no_weight_is_bit_identical(name: str, precision: str) -> None:
    variant = VARIANTS[name]
    guidance: list[pl.Callback] = [harness.attngrad.AttentionGuidance(boxes, weight=0)]
    if name in NOT_GUIDED:
        with pytest.raises(ValueError, match=NOT_GUIDED[name]):
            life(variant, lambda: guidance, precision)
        return
    assert differences(life(variant, list, precision), life(variant, lambda: guidance, precision)) == set()


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_an_evaluation_of_untrained_weights_is_bit_identical(stage: str, inference_mode: bool) -> None:
    outcomes = []
    for callbacks in ([], [WatchedMonitor()]):
        seed_everything(0)
        module = dropping()  # in train mode: nothing has called eval() yet
        outcomes.append(evaluate(stage, module, callbacks, inference_mode=inference_mode))
        assert module.training
    assert differences(*outcomes) == set()


def test_a_run_that_logs_and_draws_is_bit_identical(tmp_path: Any) -> None:
    """The whole monitor: figures, TensorBoard and checkpoints."""
    outcomes = []
    for name, monitors in (
        ("without", []),
        ("with", [harness.attngrad.AttentionMapMonitor(num_images=2, on_error="raise")]),
    ):
        seed_everything(0)
        logger = pl.loggers.TensorBoardLogger(tmp_path, name=name, version="run")
        outcomes.append(
            fit(dropping(), monitors, logger=logger, enable_checkpointing=True, default_root_dir=tmp_path, max_epochs=1)
        )
        logger.finalize("success")
        saved = list((tmp_path / name).rglob("*.ckpt"))
        assert len(saved) == 1
        outcomes[-1]["checkpoint"] = harness.plain(
            {
                key: value
                for key, value in torch.load(saved[0], weights_only=True).items()
                if key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "loops")
            }
        )
    assert differences(*outcomes) == set()


def fit_on_the_other_package(*callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    package = pytest.importorskip("pytorch_lightning")

    class OnTheOtherPackage(Steps, package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.build(tiny_vit(**DROPOUT))

    seed_everything(0)
    return fit(OnTheOtherPackage(), callbacks, package=package, **options)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_on_the_pytorch_lightning_package_is_bit_identical(precision: str) -> None:
    without, monitor = fit_on_the_other_package(precision=precision), WatchedMonitor()
    assert differences(without, fit_on_the_other_package(monitor, precision=precision)) == set()
    assert monitor.labels[-2:] == ["epoch 1", "epoch 2"]


def test_the_starting_weights_are_seen_on_the_pytorch_lightning_package() -> None:
    monitor = WatchedMonitor()
    fit_on_the_other_package(monitor)
    assert monitor.labels == ["start", "epoch 1", "epoch 2"]


class FailsHalfway(WatchedMonitor):
    """Raises when the model has run under the tap, with everything held still."""

    def evaluate(self, evaluation: Evaluation) -> Findings:
        def forward(images: Tensor) -> Any:
            torch.rand(1)
            evaluation.forward(images)
            raise ZeroDivisionError("half-way")

        return super().evaluate(dataclasses.replace(evaluation, forward=forward))


@pytest.mark.parametrize("name", ["frozen backbone", "gradient checkpointing", "compiled", "weight averaging before"])
def test_an_evaluation_that_fails_halfway_leaves_nothing_changed(name: str) -> None:
    variant = VARIANTS[name]
    without = life(variant, list, "bf16-mixed")
    assert differences(without, life(variant, lambda: [FailsHalfway(on_error="log")], "bf16-mixed")) == set()


# What modules and data sets keep for themselves --------------------------------------------------------------------


class Tracker:
    """A user's object: counts in attributes, in a list and in a tensor."""

    def __init__(self) -> None:
        self.calls, self.noted, self.sum = 0, [0], torch.zeros(())

    def step(self) -> float:
        self.calls += 1
        self.noted.append(self.calls)
        self.sum += 1
        return (0.618 * (self.calls + len(self.noted) + float(self.sum))) % 1


class Slotted:
    """The same without a ``__dict__``."""

    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = [0]

    def step(self) -> float:
        self.calls[0] += 1
        return 0.618 * self.calls[0] % 1


def counting() -> Callable[[], float]:
    calls = 0

    def step() -> float:
        nonlocal calls
        calls += 1
        return 0.618 * calls % 1

    return step


def _step_of_a_counter(stats: dict[str, list[int]]) -> float:
    stats["calls"][0] += 1
    return 0.618 * stats["calls"][0] % 1


#: What is kept, and the number that it gives each time that it is asked.
KEPT: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "torch generator": (
        lambda: torch.Generator().manual_seed(0),
        lambda draw: float(torch.rand((), generator=draw)),
    ),
    "numpy generator": (lambda: np.random.default_rng(0), lambda draw: float(draw.random())),
    "numpy random state": (lambda: np.random.RandomState(0), lambda draw: float(draw.rand())),
    "random.Random": (lambda: random.Random(0), lambda draw: draw.random()),
    "nested counter": (lambda: {"calls": [0]}, _step_of_a_counter),
    "plain object": (Tracker, lambda tracker: tracker.step()),
    "plain object in a list": (lambda: [{"tracker": Tracker()}], lambda kept: kept[0]["tracker"].step()),
    "slots": (Slotted, lambda slotted: slotted.step()),
    "closure": (counting, lambda step: step()),
}


class Keeping(TinyModule):
    """What it keeps decides over each pass, and over each training step once more."""

    def __init__(self, kept: Any, ask: Callable[[Any], float]) -> None:
        super().__init__()
        self.kept, self.ask = kept, ask

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * (1 + self.ask(self.kept)))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + self.ask(self.kept))


@pytest.mark.parametrize("name", KEPT)
def test_what_a_module_keeps_for_itself_is_as_it_was(name: str) -> None:
    make, ask = KEPT[name]

    def once(*monitors: pl.Callback) -> tuple[dict[str, Any], list[float]]:
        seed_everything(0)
        kept = make()
        outcome = fit(Keeping(kept, ask), monitors)
        return outcome, [ask(kept) for _ in range(3)]

    without, left = once()
    monitor = WatchedMonitor(every_n_steps=2)
    with_monitor, left_with_monitor = once(monitor)
    assert len(monitor.explained) == 5
    assert differences(without, with_monitor) == set()
    assert left == left_with_monitor


@pytest.mark.parametrize("company", COMPANIES)
def test_whoever_evaluates_it_is_as_it_was(company: str, tmp_path: Path) -> None:
    def build() -> TinyModule:
        kept = {name: make() for name, (make, _) in KEPT.items()}
        return Keeping(kept, lambda kept: sum(KEPT[name][1](part) for name, part in kept.items()) / len(kept))

    variant = Variant(build)
    without = life(variant, list, "32-true", tmp_path / "without")
    assert differences(without, life(variant, COMPANIES[company], "32-true", tmp_path / "with")) == set()


def test_what_a_hook_holds_on_to_is_as_it_was() -> None:
    def once(*monitors: pl.Callback) -> dict[str, Any]:
        seed_everything(0)
        module, step = TinyModule(), counting()
        module.stem.register_forward_hook(lambda module, inputs, output: output * (1 + step()))
        return fit(module, monitors)

    assert differences(once(), once(WatchedMonitor(every_n_steps=2))) == set()


class Augmented(harness.Pictures):
    """Changed at random by somebody else's object each time that it is read."""

    def __init__(self, length: int, seed: int, augment: Any) -> None:
        super().__init__(length, seed)
        self.helpers = {"augment": [augment]}

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = super().__getitem__(index)
        return {**item, "image": item["image"] * (1 + self.helpers["augment"][0]())}


class Augment:
    """Keeps what it asks, as augmentation libraries keep their generators."""

    def __init__(self, name: str) -> None:
        make, self.ask = KEPT[name]
        self.parts = [SimpleNamespace(kept=make())]

    def __call__(self) -> float:
        return self.ask(self.parts[0].kept)


@pytest.mark.parametrize("place", ["data set", "collate function"])
@pytest.mark.parametrize("name", KEPT)
def test_what_a_data_set_keeps_for_itself_is_as_it_was(name: str, place: str) -> None:
    def once(*monitors: pl.Callback) -> dict[str, Any]:
        seed_everything(0)
        augment = Augment(name)  # one for training and validation: what the probe draws, training misses

        def collate(items: list[dict[str, Any]]) -> Any:
            batch = default_collate(items)
            return {**batch, "image": batch["image"] * (1 + augment())}

        loaders = []
        for length in (harness.TRAINING_IMAGES, harness.VALIDATION_IMAGES):
            pictures = Augmented(length, 1, augment if place == "data set" else float)
            options = {} if place == "data set" else {"collate_fn": collate}
            loaders.append(DataLoader(pictures, batch_size=harness.BATCH, **options))
        return fit(TinyModule(), monitors, loaders=loaders)

    monitor = WatchedMonitor()
    assert differences(once(), once(monitor)) == set()
    assert monitor.explained


# Activation checkpointing in ways that have no flag ----------------------------------------------------------------


def checkpointed_by_hand(use_reentrant: bool) -> TinyModule:
    class ByHand(TinyModule):
        def forward(self, images: Tensor) -> Tensor:
            self.forwards += 1
            self.brightness.update(images.detach().float().mean())
            tokens = self.backbone._pos_embed(self.backbone.patch_embed(self.stem(images)))
            for block in self.backbone.blocks:
                tokens = checkpoint(block, tokens, use_reentrant=use_reentrant)
            return self.backbone.forward_head(self.backbone.norm(tokens))  # type: ignore[no-any-return]

    return ByHand(tiny_vit(**DROPOUT))


def checkpointed_by_wrapper(implementation: CheckpointImpl) -> TinyModule:
    module = dropping()
    blocks = set(module.backbone.blocks)
    apply_activation_checkpointing(
        module,
        checkpoint_wrapper_fn=lambda block: checkpoint_wrapper(block, checkpoint_impl=implementation),
        check_fn=lambda part: part in blocks,
    )
    return module


CHECKPOINTED: dict[str, Callable[[], TinyModule]] = {
    "by hand": lambda: checkpointed_by_hand(use_reentrant=False),
    "by hand, reentrant": lambda: checkpointed_by_hand(use_reentrant=True),
    "by wrapper": lambda: checkpointed_by_wrapper(CheckpointImpl.NO_REENTRANT),
    "by wrapper, reentrant": lambda: checkpointed_by_wrapper(CheckpointImpl.REENTRANT),
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_runs_checkpointed_in_other_ways_are_bit_identical(name: str, tmp_path: Path) -> None:
    variant = Variant(CHECKPOINTED[name])
    without = life(variant, list, "bf16-mixed", tmp_path / "without")
    for company, make in COMPANIES.items():
        assert differences(without, life(variant, make, "bf16-mixed", tmp_path / company)) == set(), company


# What is explained is what is trained -----------------------------------------------------------------------------


class Remembering(pl.Callback):
    """Keeps the weights that the last optimizer step made."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.raw = {name: value.clone() for name, value in pl_module.state_dict().items()}


@torch.no_grad()
def logits_of(module: nn.Module, images: Tensor) -> Tensor:
    training = [part.training for part in module.modules()]
    logits = module.eval()(images).float()
    for part, flag in zip(module.modules(), training, strict=True):
        part.training = flag
    return logits


@pytest.mark.parametrize("first", ["averaging", "monitor"])
def test_the_averaged_weights_are_explained_where_the_run_validates_with_them(first: str) -> None:
    seed_everything(0)
    module, monitor, averaging, remembering = dropping(), WatchedMonitor(), EMAWeightAveraging(decay=0.7), Remembering()
    order = [averaging, monitor] if first == "averaging" else [monitor, averaging]
    fit(module, [remembering, *order])
    label, images, explanation = monitor.explained[-1]
    assert label == "epoch 2 (averaged weights)"
    averaged = logits_of(module, images)  # the last averaged weights are left in the module
    module.load_state_dict(remembering.raw)
    raw = logits_of(module, images)
    torch.testing.assert_close(explanation.logits, averaged, rtol=0, atol=1e-5)
    assert (averaged - raw).abs().max() > 1e-3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_model_is_explained_in_the_precision_of_the_run(precision: str) -> None:
    seed_everything(0)
    module, monitor = TinyModule(), WatchedMonitor()
    fit(module, [monitor], precision=precision, limit_train_batches=2, max_epochs=1)
    _, images, explanation = monitor.explained[-1]
    context = torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    with context:
        expected = logits_of(module, images.to(dtype))
    torch.testing.assert_close(explanation.logits, expected, rtol=0, atol=1e-6)
    if precision == "bf16-mixed":
        assert (logits_of(module, images) - expected).abs().max() > 1e-4


# The proof of the proof -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_gradients(*_: Any, **__: Any) -> Iterator[None]:
    """What a callback does that does not think of isolation: gradients are possible, and that is all."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextlib.contextmanager
def nothing(*_: Any, **__: Any) -> Iterator[None]:
    yield


@contextlib.contextmanager
def evaluated_for_good(model: nn.Module) -> Iterator[None]:
    """``model.eval()``, and gradient checkpointing off, never put back."""
    model.eval()
    for part in model.modules():
        if getattr(part, "grad_checkpointing", False):
            part.grad_checkpointing = False
    yield


@contextlib.contextmanager
def trained_again(model: nn.Module) -> Iterator[None]:
    """The usual ``eval(); …; train()``."""
    with held_still(model):
        yield
    model.train()


held_still = forward_pass.held_still


def holding_still_by(substitute: Any) -> list[tuple[Any, str, Any]]:
    """Another way to hold a model still, wherever that is done."""
    places = (together, evaluation, forward_pass, rewriting, quality, faithfulness)
    return [(place, "held_still", substitute) for place in places]


#: What is taken away → what is then no longer the same, at the least.
MUTATIONS: dict[str, tuple[list[tuple[Any, str, Any]], set[str]]] = {
    "everything": (
        [
            (together, "isolated", only_gradients),
            (probe_set, "isolated", only_gradients),
            (reading, "isolated", only_gradients),
            (base, "seeded_rng", nothing),
            *holding_still_by(evaluated_for_good),
        ],
        {"weights", "buffers", "optimizer", "flags", "random streams", "steps", "metrics"},
    ),
    "random streams": (
        [(isolation, "seeded_rng", nothing), (base, "seeded_rng", nothing)],
        {"weights", "optimizer", "random streams", "steps", "metrics"},
    ),
    "flags never put back": (
        [(isolation, "untouched", nothing), *holding_still_by(evaluated_for_good)],
        {"weights", "buffers", "optimizer", "flags", "steps"},
    ),
    "flags put back by train()": (
        [(isolation, "untouched", nothing), *holding_still_by(trained_again)],
        {"weights", "buffers", "optimizer", "flags", "steps"},
    ),
}


@pytest.mark.parametrize("removed", MUTATIONS)
def test_without_the_isolation_the_run_is_disturbed(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, expected = MUTATIONS[removed]

    def frozen_and_checkpointed() -> TinyModule:
        seed_everything(0)
        module = checkpointed()
        module.backbone.blocks[0].requires_grad_(False).eval()
        return module

    without = fit(frozen_and_checkpointed())
    assert differences(without, fit(frozen_and_checkpointed(), [WatchedMonitor()])) == set()
    for place, name, substitute in patches:
        monkeypatch.setattr(place, name, substitute)
    broken = differences(without, fit(frozen_and_checkpointed(), [WatchedMonitor()]))
    assert expected <= broken, f"missing: {expected - broken}; broken: {sorted(broken)}"


@pytest.mark.parametrize("alone", [WatchedRewriting, WatchedFaithfulness, WatchedAudit])
def test_without_the_isolation_a_run_that_rewrites_is_disturbed(
    alone: Callable[[], pl.Callback], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def once(name: str, *callbacks: pl.Callback) -> dict[str, Any]:
        seed_everything(0)
        module = checkpointed()
        module.backbone.blocks[0].requires_grad_(False).eval()
        checkpoint = ModelCheckpoint(tmp_path / name, every_n_train_steps=3)
        return fit(module, [*callbacks, checkpoint], enable_checkpointing=True)

    without = once("without")
    assert differences(without, once("isolated", alone())) == set()
    for place, name, substitute in MUTATIONS["everything"][0]:
        monkeypatch.setattr(place, name, substitute)
    broken = differences(without, once("disturbed", alone()))
    expected = MUTATIONS["everything"][1]
    assert expected <= broken, f"missing: {expected - broken}; broken: {sorted(broken)}"


def test_without_either_keeper_of_buffers_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of the two alone is enough, as both save everything: the evaluation, and each explain() in it.
    def once(monitors: list[pl.Callback]) -> dict[str, Any]:
        seed_everything(0)
        return fit(checkpointed(), monitors)

    class Forgetful(module_state.Belongings):
        """Lends no copies and puts nothing back."""

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

    without = once([])
    with monkeypatch.context() as patch:
        patch.setattr(isolation, "untouched", nothing)
        assert differences(without, once([WatchedMonitor()])) == set()
    with monkeypatch.context() as patch:
        for place, name, substitute in holding_still_by(evaluated_for_good):
            patch.setattr(place, name, substitute)
        assert differences(without, once([WatchedMonitor()])) <= {"flags", "steps"}
    monkeypatch.setattr(module_state, "Belongings", Forgetful)
    assert {"buffers", "saved state"} <= differences(without, once([WatchedMonitor()]))
