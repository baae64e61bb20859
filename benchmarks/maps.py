"""Time and memory of the maps, against their limit and side by side with other libraries: Markdown tables.

The limit is a forward pass plus the gradient at the first attention output, with the parameters held constant: no map
that uses every layer's attention gradient can cost less while the model's own kernels run.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import timm
import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.leftovers import leftovers
from benchmarks.memory import memory_of
from benchmarks.timing import interleaved, ratio
from lightning_attngrad.explain import CORRECTIONS, explain

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A model and a batch, and what its map may cost.

    Attributes:
        model: timm name of a patch-16 ViT.
        image_size: height and width in pixels.
        batch: images.
        time: most that gradient_guided may take, in limits.
        memory: most that it may hold at its peak, in training steps.
        recursion_memory: how many times as much the published recursion has to hold at least.
        time_recursion: whether the published recursion, N³, is timed beside it.
    """

    model: str
    image_size: int
    batch: int
    time: float | None = None
    memory: float | None = None
    recursion_memory: float | None = None
    time_recursion: bool = True

    @property
    def title(self) -> str:
        """For the table."""
        tokens = (self.image_size // 16) ** 2 + 1
        return f"{tokens:,} tokens, {self.model.split('_patch')[0]}, batch {self.batch}"


CASES = {
    "197": Case("vit_base_patch16_224", 224, 8, time=1.05, memory=0.7),
    "785": Case("vit_base_patch16_224", 448, 1, time=1.15, memory=0.7),
    "785-tiny": Case("vit_tiny_patch16_224", 448, 4, time=1.15, memory=0.7),
    "3137": Case("vit_tiny_patch16_224", 896, 1, time=1.35, memory=1.0, recursion_memory=5.0, time_recursion=False),
    "quick": Case("vit_tiny_patch16_224", 224, 2),
}
#: Other tables, by name in ``--models``.
TABLES = ("batch", "peers")


class Setting:
    """A model with seeded weights and images, and everything that is measured on it."""

    def __init__(self, model: nn.Module, batch: int, image_size: int) -> None:
        self.model = model
        self.images = torch.randn(batch, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
        self.target = torch.arange(batch)

    @classmethod
    def of_timm(cls, name: str, image_size: int, batch: int) -> Setting:
        """A timm ViT whose head is not zero."""
        torch.manual_seed(0)
        model = timm.create_model(name, img_size=image_size).eval()
        nn.init.normal_(model.head.weight, std=0.02)
        return cls(model, batch, image_size)

    @classmethod
    def of_torchvision(cls, width: int, batch: int) -> Setting:
        """A ViT-B/16, or a narrower one: the architecture that all peers know."""
        from torchvision.models import VisionTransformer

        torch.manual_seed(0)
        model = VisionTransformer(224, 16, 12, width // 64, width, 4 * width).eval()
        nn.init.normal_(model.heads.head.weight, std=0.02)
        return cls(model, batch, 224)

    def objective(self) -> Tensor:
        """Sum over the batch of the target's logit, in the graph."""
        logits: Tensor = self.model(self.images)
        return logits.gather(1, self.target[:, None]).sum()

    def limit(self) -> None:
        """The limit: forward, and the gradient at the first attention output with the parameters held constant.

        A torchvision model is held constant by asking for no other gradient, its flags left alone: with the flags off
        torch computes its projections, of transposed tokens, by a slower product, and the limit would be none (1.3
        times as long, and longer than the published recursion).
        """
        first: list[Tensor] = []

        def begin_graph(layer: nn.Module, inputs: tuple[Tensor, ...], output: object = None) -> None:  # noqa: ARG001
            tensor = output[0] if isinstance(output, tuple) else inputs[0]
            first.append(tensor.requires_grad_())

        is_timm = isinstance(self.model, timm.models.VisionTransformer)
        if is_timm:
            handle = self.model.blocks[0].attn.proj.register_forward_pre_hook(begin_graph)
            self.model.requires_grad_(False)
        else:  # torchvision calls no module behind the attention itself: the graph begins one small product later
            handle = self.model.encoder.layers[0].self_attention.register_forward_hook(begin_graph)
        try:
            torch.autograd.grad(self.objective(), first)
        finally:
            handle.remove()
            self.model.requires_grad_(True)

    def training_step(self) -> None:
        """A plain forward and backward with the gradients of all parameters, held together as an optimizer has them."""
        torch.autograd.grad(self.objective(), list(self.model.parameters()), materialize_grads=True, allow_unused=True)

    def map(self, method: str = "gradient_guided", **options: object) -> object:
        """One of this library's maps."""
        return explain(self.model, self.images, self.target, method=method, **options)  # type: ignore[arg-type]

    def recursion(self) -> object:
        """The published matrix recursion: A and G of every layer kept, the whole N×N matrix carried."""
        from tests.references import guided
        from tests.zoo import ZooModel

        side = self.images.shape[-1] // 16
        facts = ZooModel("benchmark", lambda: self.model, prefix=1, grid=(side, side))
        return guided.guided_tokens(facts, guided.read(self.model, self.images, guided.logit(self.target)), "positive")


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, timm {timm.__version__}, "
        f"{peers.versions() or 'no peer installed'}; "
        f"float32 on {options.threads} thread(s); ratios: medians of {options.rounds} interleaved rounds"
    )
    for name in options.models:
        if name == "batch":
            print(*_batch_table(options.rounds), sep="\n")
        elif name == "peers":
            print(*_peer_table(options.rounds, narrow=options.quick), sep="\n")
        else:
            print(*(_brief_table if options.brief else _case_table)(CASES[name], options.rounds), sep="\n", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maps", description=__doc__)
    known = [*CASES, *TABLES]
    parser.add_argument("--models", nargs="+", choices=known, default=[name for name in known if name != "quick"])
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--quick", action="store_true", help="small models only, 3 rounds: a minute")
    parser.add_argument("--brief", action="store_true", help="only the two maps that the README speaks of")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds, --threads: expected a number above 0")
    if options.quick:
        options.models, options.rounds = ["quick", "peers"], 3
    return options


def _case_table(case: Case, rounds: int) -> Iterator[str]:
    setting = Setting.of_timm(case.model, case.image_size, case.batch)
    calls: dict[str, Call] = {
        "limit": setting.limit,
        "gradient_guided": setting.map,
        "gradient_guided, five corrections": partial(setting.map, correction=tuple(CORRECTIONS)),
        "guided_relevance": partial(setting.map, "guided_relevance"),
        "attn_lrp": partial(setting.map, "attn_lrp"),
        "grad_cam": partial(setting.map, "grad_cam"),
        "raw_attention": partial(setting.map, "raw_attention"),
        "rollout": partial(setting.map, "rollout"),
        "training step": setting.training_step,
    }
    if case.time_recursion:
        calls["published recursion"] = setting.recursion
    seconds = interleaved(calls, rounds)
    peak = {name: memory_of(call).peak for name, call in {**calls, "published recursion": setting.recursion}.items()}

    yield f"\n### {case.title}\n"
    yield "| | time / limit | peak memory / training step |\n|---|---|---|"
    for name, bytes_ in peak.items():
        time = f"{ratio(seconds, name, 'limit'):.2f}" if name in seconds else "not timed"
        yield f"| {name} | {time} | {bytes_ / peak['training step']:.2f} |"
    yield "\n| asked | limit | measured | |\n|---|---|---|---|"
    guided = ratio(seconds, "gradient_guided", "limit")
    yield _asked("gradient_guided / limit, time", case.time, guided)
    for other, most in (("guided_relevance", 1.25), ("gradient_guided, five corrections", 1.2)):
        yield _asked(f"{other} / gradient_guided, time", most, ratio(seconds, other, "gradient_guided"))
    yield _asked(
        "gradient_guided / training step, peak memory", case.memory, peak["gradient_guided"] / peak["training step"]
    )
    yield _asked(
        "published recursion / gradient_guided, peak memory",
        case.recursion_memory,
        peak["published recursion"] / peak["gradient_guided"],
        at_least=True,
    )


def _brief_table(case: Case, rounds: int) -> Iterator[str]:
    setting = Setting.of_timm(case.model, case.image_size, case.batch)
    calls: dict[str, Call] = {
        "limit": setting.limit,
        "gradient_guided": setting.map,
        "guided_relevance": partial(setting.map, "guided_relevance"),
        "training step": setting.training_step,
    }
    seconds = interleaved(calls, rounds)
    peak = {name: memory_of(call).peak for name, call in calls.items()}
    yield f"\n### {case.title}\n"
    yield "| | time / limit | time / training step | peak memory / training step |\n|---|---|---|---|"
    for name, bytes_ in peak.items():
        times = (f"{ratio(seconds, name, against):.2f}" for against in ("limit", "training step"))
        yield f"| {name} | {' | '.join(times)} | {bytes_ / peak['training step']:.2f} |"


def _batch_table(rounds: int) -> Iterator[str]:
    few, many = (Setting.of_timm("vit_tiny_patch16_224", 224, batch) for batch in (8, 32))
    calls: dict[str, Call] = {"8": few.map, "32": many.map}
    per_image = ratio(interleaved(calls, rounds), "32", "8") / 4
    yield "\n### Batch size: 197 tokens, vit_tiny\n\n| asked | limit | measured | |\n|---|---|---|---|"
    yield _asked("an image in a batch of 32 / in one of 8, time", 1.1, per_image)


def _asked(what: str, bound: float | None, measured: float, at_least: bool = False) -> str:
    if bound is None:
        return f"| {what} | – | {measured:.2f} | |"
    shown = round(measured, 2)
    met = shown >= bound if at_least else shown <= bound
    return f"| {what} | {'≥' if at_least else '≤'} {bound:.2f} | {measured:.2f} | {'met' if met else 'missed'} |"


def _peer_table(rounds: int, narrow: bool) -> Iterator[str]:
    width, batch = (192, 2) if narrow else (768, 4)
    setting = Setting.of_torchvision(width, batch)
    # A model in the middle of fine-tuning: in training mode, but for a frozen part.
    trained = Setting.of_torchvision(width, batch)
    trained.model.train()
    trained.model.encoder.layers[0].eval()
    calls, on_trained = _side_by_side(setting), _side_by_side(trained)
    absent = {name: call for name, call in calls.items() if isinstance(call, str)}
    present = {name: call for name, call in calls.items() if not isinstance(call, str)}
    patching = {name: call for name, call in present.items() if name in peers.PATCH_THE_PROCESS}

    seconds = interleaved({name: call for name, call in present.items() if name not in patching}, rounds)
    step = memory_of(present["training step"]).peak

    yield f"\n### Side by side: 197 tokens, torchvision ViT of width {width}, batch {batch}\n"
    yield "| | time / limit | peak memory / training step | leaves behind |\n|---|---|---|---|"
    for name, call in present.items():
        left = leftovers(on_trained[name], trained.model, trained.images)  # type: ignore[arg-type]
        if name in patching:  # the last ones, and only now: their first call is the one that patches
            seconds.update(interleaved({name: call}, rounds))
        peak = memory_of(call).peak
        trained.model.zero_grad(set_to_none=True)
        trained.model.train()
        trained.model.encoder.layers[0].eval()
        yield f"| {name} | {ratio(seconds, name, 'limit'):.2f} | {peak / step:.2f} | {left} |"
    for name, reason in absent.items():
        yield f"| {name} | {reason} | | |"
    if patching:
        yield f"\n{', '.join(patching)}: timed after the others, not between them, for its patches stay."


def _side_by_side(setting: Setting) -> dict[str, Call | str]:
    calls: dict[str, Call | str] = {"limit": setting.limit, "training step": setting.training_step}
    for method in ("gradient_guided", "guided_relevance", "attn_lrp", "grad_cam", "rollout"):
        calls[f"attngrad, {method}"] = partial(setting.map, method)
    calls["published recursion (tests/references)"] = setting.recursion
    for name in peers.PEERS:
        calls[name] = peers.set_up(name, setting.model, setting.images, setting.target)
    return calls


if __name__ == "__main__":
    main()
