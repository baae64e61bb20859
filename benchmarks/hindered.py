"""A Hindered Transformer beside a plain ViT of the same size, on digits and on photographs: Markdown tables.

What does a transformer pay for explaining itself? Both have the same width, depth and patches. On digits both start
from random weights and are trained alike. On photographs the ViT is a pretrained one, fine-tuned; the HiT starts from
its weights and learns its classes and its last features, for its patches have to do without each other.
"""

from __future__ import annotations

import argparse
import datetime
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import faithfulness_models
from benchmarks.faithfulness_methods import Row, ours
from benchmarks.faithfulness_models import CLASSES, SIZE, Half, Subject
from benchmarks.faithfulness_scores import interval, judge, mean
from benchmarks.rewriting_models import DEFAULT_CACHE, kept
from benchmarks.stamps import MEAN, STAMPS, STD, Scene
from benchmarks.timing import interleaved, ratio
from lightning_attngrad import rewrite
from lightning_attngrad.models import HinderedTransformer, from_vision_transformer

DIGITS: dict[str, Any] = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 96,
    "num_heads": 4,
}
DEPTH, EPOCHS, DIGITS_BATCH, DIGITS_RATE = 6, 20, 64, 1e-3
COMPOSITES, STEPS, BATCH, WARM_UP, RATE = 1536, 500, 16, 50, 3e-4
REWRITTEN, TIMED, ROUNDS = 24, 8, 7


def main() -> None:
    options = _parse()
    torch.set_num_threads(1)
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, timm {timm.__version__}; "
        f"float32 on one thread; the half of the images to {options.half}"
    )
    builders: dict[str, Callable[[], tuple[Subject, Subject, str]]] = {
        "digits": lambda: _digits(options.cache, options.half),
        "photographs": lambda: _photographs(options.cache, options.half, options.stamps),
    }
    for name in options.data:
        try:
            pair = builders[name]()
        except FileNotFoundError as error:
            print(f"\n### {name}\n\nleft out: {error}")
            continue
        print(*_table(name, *pair, options.cache), sep="\n", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hindered", description=__doc__)
    parser.add_argument("--data", nargs="+", choices=("digits", "photographs"), default=["digits", "photographs"])
    parser.add_argument("--half", choices=("choose", "report"), default="report", help="of the images")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder that keeps weights and scores")
    parser.add_argument("--stamps", type=Path, default=STAMPS, help="folder of Tux Paint's stamps")
    return parser.parse_args()


# The two of a kind ------------------------------------------------------------------------------------------------


def _digits(cache: Path, half: Half) -> tuple[Subject, Subject, str]:
    vit = timm.models.VisionTransformer(**DIGITS, depth=DEPTH)
    hit = HinderedTransformer(**DIGITS, depths=(DEPTH,))
    first, second = (
        faithfulness_models.on_digits(
            kept(cache / f"hindered-digits-{kind}.pt", network, _train_on_digits), kind, (7, 7), half
        )
        for kind, network in (("vit", vit), ("hit", hit))
    )
    about = (
        f"{DEPTH} blocks of {DIGITS['embed_dim']} numbers, 49 patches of 4 pixels; {EPOCHS} epochs from random weights"
    )
    return first, second, about


def _train_on_digits(network: nn.Module) -> None:
    from lightning_attngrad.demo.data import DIGIT_MEAN, DIGIT_STD, load_digits

    torch.manual_seed(0)
    (pixels, labels), _ = load_digits()
    images = (pixels - torch.tensor(DIGIT_MEAN)) / torch.tensor(DIGIT_STD)
    steps = EPOCHS * len(images) // DIGITS_BATCH
    optimizer = torch.optim.AdamW(network.parameters(), lr=DIGITS_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, DIGITS_RATE, total_steps=steps)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (DIGITS_BATCH,))
        down, across = torch.randint(-2, 3, (2,)).tolist()
        loss = F.cross_entropy(network(images[chosen].roll((down, across), (2, 3))), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.zero_grad()


def _photographs(cache: Path, half: Half, stamps: Path) -> tuple[Subject, Subject, str]:
    vit = faithfulness_models.photographs(cache, half, stamps)
    teacher = vit.network

    def learn(network: nn.Module) -> None:
        assert isinstance(network, HinderedTransformer)
        from_vision_transformer(teacher.state_dict(), network)
        _learn_from(network, teacher, faithfulness_models.scene(stamps, "train"))

    hit = HinderedTransformer(SIZE, 14, num_classes=len(CLASSES), embed_dim=384, num_heads=6)
    network = kept(cache / f"hindered-composites-{SIZE}.pt", hit, learn)
    about = (
        f"12 blocks of 384 numbers, {(SIZE // 14) ** 2} patches of 14 pixels; the ViT pretrained and fine-tuned for "
        f"{faithfulness_models.TRAINING_STEPS} steps, the HiT started from it and trained for {STEPS}"
    )
    return vit, faithfulness_models.on_composites("hindered", network, "HiT", half, stamps), about


def _learn_from(network: HinderedTransformer, teacher: nn.Module, scene: Scene) -> None:
    """Fit the network to labels, and to the teacher's probabilities and last features."""
    torch.manual_seed(0)
    mean_, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    made: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    with torch.inference_mode():
        for _ in range(COMPOSITES // 32):
            pixels, labels = scene.batch(32)
            features = teacher.forward_features((pixels - mean_) / std)  # type: ignore[operator]
            logits = teacher.forward_head(features)  # type: ignore[operator]
            made.append((pixels, labels, features[:, 0], logits))
    pixels, labels, features, logits = (torch.cat(parts).clone() for parts in zip(*made, strict=True))
    spread = features.var()
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / STEPS)) / 2
    )
    network.train()
    for _ in range(STEPS):
        chosen = torch.randint(len(pixels), (BATCH,))
        images = (pixels[chosen] - mean_) / std
        images = images.flip(-1) if torch.rand(()) < 0.5 else images
        found = network.forward_features(images)
        scores = network.forward_head(found)
        loss = F.mse_loss(found, features[chosen]) / spread + F.cross_entropy(scores, labels[chosen]) / 2
        loss = loss + F.kl_div(scores.log_softmax(1), logits[chosen].softmax(1), reduction="batchmean") / 2
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.zero_grad()


# What is asked of them --------------------------------------------------------------------------------------------


def _table(name: str, vit: Subject, hit: Subject, about: str, cache: Path) -> list[str]:
    lines = [f"\n### {name}\n", f"{about}.\n"]
    heads = ["", "ViT", "HiT", "HiT − ViT, or HiT / ViT"]
    lines += [f"| {' | '.join(heads)} |", "|---|---|---|---|"]
    networks = (vit.network, hit.network)
    sizes = [sum(parameter.numel() for parameter in network.parameters()) / 1e6 for network in networks]
    lines.append(_line("parameters, M", sizes, f"{sizes[1] / sizes[0]:.2f}", digits=2))
    accuracies = [vit.accuracy, hit.accuracy]
    lines.append(_line("accuracy", accuracies, f"{accuracies[1] - accuracies[0]:+.3f}", digits=3))
    for what, times in _times(vit, hit).items():
        lines.append(f"| {what} | 1 | | {times:.2f} |")
    first, second = _both_right(vit, hit)
    by_default = Row("the default method", ours())
    scores = [judge(one, by_default, cache) for one in (first, second)]
    for what in ("srg_mean", "srg_blur", "class sensitivity", "mask AP", "pointing"):
        if what in scores[0]:
            lines.append(_compared(what, scores[0][what], scores[1][what]))
    for norm, unit in (("linf", 255.0), ("l2", 1.0)):
        found = [_distances(one, norm) * unit for one in (first, second)]
        medians = [statistics.median(values.tolist()) for values in found]
        rewritten = [int(values.isfinite().sum()) for values in found]
        what = f"rewriting, median {'L∞ in n/255' if norm == 'linf' else 'L2 in pixels of 0 … 1'}"
        what += f" ({rewritten[0]} and {rewritten[1]} of {len(found[0])} rewritten)"
        lines.append(_line(what, medians, f"× {medians[1] / medians[0]:.2f}", digits=2))
    return [*lines, f"\nOf the {len(first.images)} images that both classify correctly; 95 % intervals of the means."]


def _line(what: str, values: list[float], change: str, digits: int) -> str:
    return f"| {what} | {values[0]:.{digits}f} | {values[1]:.{digits}f} | {change} |"


def _compared(what: str, of_vit: Tensor, of_hit: Tensor) -> str:
    low, high = interval(of_hit - of_vit)
    gain = mean(of_hit - of_vit)
    return f"| {what} | {mean(of_vit):.3f} | {mean(of_hit):.3f} | {gain:+.3f} [{low:+.3f}, {high:+.3f}] |"


def _both_right(vit: Subject, hit: Subject) -> tuple[Subject, Subject]:
    """Both on the images that both classify correctly: the same ones, in the same order."""
    at = {image.numpy().tobytes(): place for place, image in enumerate(hit.images)}
    pairs = [(place, at[key]) for place, one in enumerate(vit.images) if (key := one.numpy().tobytes()) in at]
    chosen = torch.tensor(pairs).T

    def of(subject: Subject, places: Tensor) -> Subject:
        masks = None if subject.masks is None else subject.masks[places]
        return replace(subject, images=subject.images[places], label=subject.label[places], masks=masks, pairs=None)

    return of(vit, chosen[0]), of(hit, chosen[1])


def _times(vit: Subject, hit: Subject) -> dict[str, float]:
    """Of the HiT over that of the ViT: a training step's passes, and a map by each one's default method."""
    images, label = vit.images[:TIMED], vit.label[:TIMED]
    maps = ours()

    def passes(subject: Subject) -> None:
        F.cross_entropy(subject.network(images), label).backward()
        subject.network.zero_grad()

    calls: dict[str, Callable[[], object]] = {
        "passes of ViT": lambda: passes(vit),
        "passes of HiT": lambda: passes(hit),
        "map of ViT": lambda: maps(vit.network, images, label, vit.grid),
        "map of HiT": lambda: maps(hit.network, images, label, hit.grid),
    }
    taken = interleaved(calls, ROUNDS)
    return {
        "time of one forward and backward": ratio(taken, "passes of HiT", "passes of ViT"),
        "time of a map by the default method": ratio(taken, "map of HiT", "map of ViT"),
    }


def _distances(subject: Subject, norm: str) -> Tensor:
    """Length of the smallest change that is found, towards another class that is drawn once; (n,) in pixels."""
    images, label = subject.images[:REWRITTEN], subject.label[:REWRITTEN]
    count = 10 if subject.masks is None else len(CLASSES)
    shift = torch.randint(1, count, label.shape, generator=torch.Generator().manual_seed(0))
    pixel_mean, pixel_std = _normalisation_of(subject)
    found = rewrite(
        subject.network, images, (label + shift) % count, norm=norm, steps=16, mean=pixel_mean, std=pixel_std
    )
    return found.distance.detach()


def _normalisation_of(subject: Subject) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if subject.masks is not None:
        return MEAN, STD
    from lightning_attngrad.demo.data import DIGIT_MEAN, DIGIT_STD

    return (DIGIT_MEAN,), (DIGIT_STD,)


if __name__ == "__main__":
    main()
