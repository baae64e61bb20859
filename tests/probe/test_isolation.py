from __future__ import annotations

import copy
import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from lightning_attngrad.probe import ProbeForward, isolated
from tests.probe.runs import HOOKS, InHook, TinyModule, everything, fail, run


def take_gradients(trainer: Any, pl_module: Any) -> None:
    """A probe of the rough kind: random numbers, a forward, a gradient of the input and of every parameter."""
    with isolated(trainer, pl_module):
        random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002
        images = torch.rand(2, 3, 8, 8, requires_grad=True)
        logits = ProbeForward(trainer, pl_module)(images)
        gradients = torch.autograd.grad(logits.float().sum(), [images, *pl_module.net.parameters()])
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert gradients[0].abs().sum() > 0


CASES = [(stage, hook, mode) for stage, hooks in HOOKS.items() for hook in hooks for mode in (True, False)]


@pytest.mark.parametrize(("stage", "hook", "inference_mode"), CASES)
def test_gradients_in_every_hook_change_nothing(stage: str, hook: str, inference_mode: bool) -> None:
    outcomes = []
    for callbacks in ([], [InHook(hook, take_gradients)]):
        torch.manual_seed(0)
        module = TinyModule()
        run(stage, module, *callbacks, inference_mode=inference_mode, num_sanity_val_steps=1)
        outcomes.append(everything(module))
        assert not callbacks or callbacks[0].calls > 0
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("options", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_gradients_under_accumulation_and_mixed_precision_change_nothing(options: dict[str, Any]) -> None:
    outcomes = []
    for callbacks in ([], [InHook("on_train_batch_end", take_gradients)]):
        torch.manual_seed(0)
        module = TinyModule()
        run("fit", module, *callbacks, **options)
        outcomes.append(everything(module))
    assert outcomes[0] == outcomes[1]


def test_an_image_from_a_validation_hook_can_be_differentiated_after_a_clone_inside() -> None:
    class Probe(InHook):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            assert torch.is_inference_mode_enabled()
            with torch.inference_mode():
                images = batch[0] * 1.0
            assert images.is_inference()
            with isolated(trainer, pl_module):
                logits = ProbeForward(trainer, pl_module)(images)  # clones for itself
                gradient = torch.autograd.grad(logits.sum(), pl_module.net[0].weight)[0]
                assert gradient.abs().sum() > 0
            self.calls += 1

    probe = Probe("unused", take_gradients)
    run("validate", TinyModule(), probe)
    assert probe.calls > 0


def inside(body: Any, module: Any = None, stage: str = "fit", hook: str = "on_train_batch_end") -> Any:
    """Run ``body(trainer, pl_module)`` once in a hook of a run, and hand the module back."""
    module = TinyModule() if module is None else module
    probe = InHook(hook, body, only_once=True)
    run(stage, module, probe)
    assert probe.calls == 1
    return module


def test_every_module_evaluates_inside_and_gets_its_own_flag_back() -> None:
    def body(trainer: Any, pl_module: Any) -> None:
        pl_module.net[1].eval()  # a frozen block, as a user would have it
        flags = [module.training for module in pl_module.modules()]
        assert len(set(flags)) == 2
        with isolated(trainer, pl_module):
            assert not any(module.training for module in pl_module.modules())
        assert [module.training for module in pl_module.modules()] == flags

    inside(body)


def test_train_and_eval_of_the_user_are_not_called() -> None:
    class Loud(nn.Linear):
        def train(self, mode: bool = True) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            return super().train(mode)

    def body(trainer: Any, pl_module: Any) -> None:
        before = pl_module.net[6].calls
        with isolated(trainer, pl_module):
            assert pl_module.net[6].calls == before
        assert pl_module.net[6].calls == before

    module = TinyModule()
    module.net[6] = Loud(4, 3)
    inside(body, module)


@pytest.mark.parametrize("fails", [False, True])
def test_a_forward_that_logs_and_updates_a_metric_does_not_reach_the_results(fails: bool) -> None:
    class Logging(TinyModule):
        def __init__(self) -> None:
            super().__init__()
            self.metric = torchmetrics.MeanMetric()
            self.listed = torchmetrics.CatMetric()

        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            self.metric.update(logits.detach().mean())
            self.listed.update(logits.detach().mean())
            self.log("mean_logit", logits.mean(), on_step=False, on_epoch=True)
            if not self.trainer.training:
                self.log("metric", self.metric, on_step=False, on_epoch=True)
            return logits

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            self.log("count", float(len(self.listed.value)))

    def body(trainer: Any, pl_module: Any) -> None:
        try:
            with isolated(trainer, pl_module):
                pl_module(100 * torch.ones(2, 3, 8, 8))
                if fails:
                    fail()
        except ZeroDivisionError:
            pass

    for hook in ("on_validation_batch_end", "on_validation_end", "on_train_batch_end", "on_train_start"):
        outcomes = []
        for callbacks in ([], [InHook(hook, body)]):
            torch.manual_seed(0)
            module = Logging()
            run("fit", module, *callbacks)
            outcomes.append((everything(module), module.metric.update_count, module.listed.compute().tolist()))
        assert outcomes[0] == outcomes[1], hook


def test_probe_forward_uses_the_precision_of_the_run() -> None:
    seen: list[torch.dtype] = []

    def body(trainer: Any, pl_module: Any) -> None:
        with isolated(trainer, pl_module):
            images = torch.rand(2, 3, 8, 8)
            seen.append(pl_module(images).dtype)
            seen.append(ProbeForward(trainer, pl_module)(images).dtype)
            assert not torch.is_autocast_enabled("cpu")  # gradients are taken outside

    run("validate", TinyModule(), InHook("on_validation_start", body), precision="bf16-mixed")
    assert seen == [torch.float32, torch.bfloat16]


def test_probe_forward_converts_the_images_of_a_half_precision_run() -> None:
    seen: list[torch.dtype] = []

    class Head(TinyModule):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.dtype)
            return super().forward(images)

    def body(trainer: Any, pl_module: Any) -> None:
        seen.clear()
        with isolated(trainer, pl_module):
            ProbeForward(trainer, pl_module)(torch.rand(2, 3, 8, 8))
        assert seen == [torch.bfloat16]

    inside_trainer = InHook("on_validation_epoch_end", body)
    run("validate", Head(), inside_trainer, precision="bf16-true")
    assert inside_trainer.calls == 1


def test_a_seed_out_of_range_is_refused() -> None:
    def body(trainer: Any, pl_module: Any) -> None:
        with pytest.raises(ValueError, match="seed: got -1"), isolated(trainer, pl_module, seed=-1):
            pass

    inside(body)


def test_flags_changed_by_the_body_are_put_back() -> None:
    def body(trainer: Any, pl_module: Any) -> None:
        flash, benchmark = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cudnn.benchmark
        with isolated(trainer, pl_module):
            torch.backends.cuda.enable_flash_sdp(not flash)
            torch.backends.cudnn.benchmark = not benchmark
            torch.set_default_dtype(torch.float64)
        assert torch.backends.cuda.flash_sdp_enabled() == flash
        assert torch.backends.cudnn.benchmark == benchmark
        assert torch.get_default_dtype() == torch.float32

    inside(body)


def test_what_lightning_remembers_of_the_last_log_is_put_back() -> None:
    class Logging(TinyModule):
        def forward(self, images: Tensor) -> Tensor:
            self.log("mean", images.mean())
            return super().forward(images)

    def body(trainer: Any, pl_module: Any) -> None:
        connector = trainer._logger_connector
        before = (connector._current_fx, pl_module._current_fx_name, trainer._results)
        with isolated(trainer, pl_module):
            pl_module(torch.rand(2, 3, 8, 8))
            assert connector._current_fx != before[0]
        assert (connector._current_fx, pl_module._current_fx_name) == before[:2]
        assert trainer._results is before[2]

    inside(body, Logging(), hook="on_train_start")


def test_other_weights_are_run_in_the_place_of_the_models_own() -> None:
    class Explained(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            images = torch.rand(2, 3, 8, 8)
            before = {name: value.clone() for name, value in pl_module.state_dict().items()}
            other = copy.deepcopy(pl_module)
            with torch.no_grad():
                for value in other.state_dict().values():
                    value.copy_(value + 1)  # buffers as well
            weights = {name: value.clone() for name, value in other.state_dict().items()}
            with isolated(trainer, pl_module):
                found = ProbeForward(trainer, pl_module, weights)(images)
                own = ProbeForward(trainer, pl_module)(images)
            with isolated(trainer, other):
                expected = ProbeForward(trainer, other)(images)
            assert torch.equal(found, expected)
            assert not torch.equal(found, own)
            assert all(torch.equal(before[name], value) for name, value in pl_module.state_dict().items())
            self.seen = True

    explained = Explained()
    run("fit", TinyModule(), explained)
    assert explained.seen
