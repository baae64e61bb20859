"""What it costs to find where tokens lie, and what maps of hierarchical models cost: ``python -m benchmarks.tracing``.

Tracing is timed against plain forward passes of the same two images, what is left of it in a later map against that
map, and ``gradient_guided`` against its limit: a forward pass plus the gradient at the first attention output, with the
parameters held constant.
"""

from __future__ import annotations

import argparse
import datetime

import timm
import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved, ratio
from lightning_attngrad.attention import AttentionTap, KnownPlaces
from lightning_attngrad.attention.tracing import trace
from lightning_attngrad.explain import explain
from lightning_attngrad.state import differentiable, held_still

#: Most that a trace may cost in plain passes, what is left of it in a map, and a map in limits.
TRACE, AFTERWARDS, MAP = 10.0, 0.05, 1.35
MODELS = (
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "maxvit_tiny_rw_224",
    "pvt_v2_b0",
    "hiera_tiny_224",
    "levit_128s",
)


class Setting:
    """A model with seeded weights and a batch of images."""

    def __init__(self, name: str, batch: int) -> None:
        torch.manual_seed(0)
        self.model = timm.create_model(name, num_classes=10).eval()
        for module in self.model.modules():
            if isinstance(module, nn.Linear) and module.out_features == 10:
                nn.init.normal_(module.weight, std=0.02)
        self.images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def plain_pass(self) -> None:
        with torch.no_grad():
            self.model(self.images[:2])

    def trace(self) -> None:
        with held_still(self.model):
            trace(self.model, self.images[:2], self.model, answers=_logits)

    def map(self) -> None:
        explain(self.model, self.images, 1, method="gradient_guided")

    def known(self) -> None:
        """What a map still does for its places, when they are known: find them, and see that they hold."""
        KnownPlaces(self.model, self.images, None, _logits).hold_for(self.tap)

    def pass_under_a_tap(self) -> None:
        with differentiable(), held_still(self.model):
            self.tap = AttentionTap(self.model, start="attention")
            with self.tap:
                self.model(self.images)

    def limit(self) -> None:
        first: list[Tensor] = []
        name = KnownPlaces(self.model, self.images, None, _logits).places.calls[0].name
        projection = self.model.get_submodule(name).proj
        handle = projection.register_forward_pre_hook(lambda _, inputs: first.append(inputs[0].requires_grad_()))
        self.model.requires_grad_(False)
        try:
            torch.autograd.grad(self.model(self.images)[:, 1].sum(), first[:1])
        finally:
            handle.remove()
            self.model.requires_grad_(True)


def _logits(output: Tensor) -> list[Tensor]:
    return [output]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="of timm, at 224 pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, timm {timm.__version__}; "
        f"float32 on one thread, batch {options.batch}; medians of {options.rounds} interleaved rounds\n"
    )
    print(
        f"| model | trace / plain pass (≤ {TRACE:g}) | places, once known / map (≤ {AFTERWARDS:g}) | "
        f"gradient_guided / limit (≤ {MAP:g}) |\n|---|---|---|---|"
    )
    for name in options.models:
        setting = Setting(name, options.batch)
        setting.pass_under_a_tap()
        two = interleaved({"trace": setting.trace, "plain": setting.plain_pass}, options.rounds)
        calls = {"map": setting.map, "known": setting.known}
        if hasattr(_first_attention(setting), "proj"):
            calls["limit"] = setting.limit
        seconds = interleaved(calls, options.rounds)
        limit = f"{ratio(seconds, 'map', 'limit'):.2f}" if "limit" in seconds else "–"
        traced, left = ratio(two, "trace", "plain"), ratio(seconds, "known", "map")
        print(f"| {name} | {traced:.1f} | {left:.4f} | {limit} |", flush=True)


def _first_attention(setting: Setting) -> nn.Module:
    name = KnownPlaces(setting.model, setting.images, None, _logits).places.calls[0].name
    return setting.model.get_submodule(name)


if __name__ == "__main__":
    main()
