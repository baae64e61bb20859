"""Which patch of one view is which patch of another: cross-attention, guided along epipolar lines while it learns.

    python examples/two_views.py

A small matcher is trained twice from the same weights on the same scenes (photographs on planes at several depths, see
two_view_scenes.py): once on the matches alone, and once with `attention_guidance_loss` and `epipolar_mask` added, which
say on which line of the other view a patch may look. Both are tested on photographs that none has seen, without any
pose. Prints the table and writes a figure; needs scikit-image, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import logging
import math
import platform
import statistics
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from two_view_scenes import GRID, HELD_OUT, PATCH, SEEN, SIZE, Pairs, photographs, scenes

from lightning_attngrad.guidance import attention_guidance_loss, capture_attention, epipolar_mask

WIDTH, HEADS, PATCHES = 64, 4, GRID[0] * GRID[1]
TOLERANCE = 1.0
#: Student's t at 97.5 % by degrees of freedom: an interval of few seeds is wide.
T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Attention(nn.Module):
    """Queries and keys begin alike and are compared by their angle: what looks the same attends from the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.key.load_state_dict(self.query.state_dict())
        self.sharpness = nn.Parameter(torch.full((HEADS, 1, 1), math.log(8)))

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (
            part(tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part, tokens in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        q, k = F.normalize(q, dim=-1) * self.sharpness.exp(), F.normalize(k, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block whose tokens attend to others, or to one another."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm_other = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, tokens: Tensor, other: Tensor | None = None, places: Tensor | float = 0.0) -> Tensor:
        queries = self.norm(tokens)
        keys = queries if other is None else self.norm_other(other)
        tokens = tokens + self.attention(queries, keys, keys + places)
        return tokens + self.mlp(tokens)


class Matcher(nn.Module):
    """Patches of view a look for themselves among those of view b, and say where they are: (B, 64, 8, 8) scores.

    Scores of the 64 patches of b, the classes, for each of the 8 × 8 patches of a. What a patch of b looks like is its
    key, and where it lies is added to its value alone: only the attention can bring that to a patch of a.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTH // 2, 6, stride=4, padding=1),
            nn.BatchNorm2d(WIDTH // 2),
            nn.GELU(),
            nn.Conv2d(WIDTH // 2, WIDTH, 4, stride=PATCH // 4, padding=1),
            nn.BatchNorm2d(WIDTH),
        )
        self.position = nn.Parameter(0.1 * torch.randn(1, PATCHES, WIDTH))
        self.place = nn.Parameter(torch.randn(1, PATCHES, WIDTH))
        self.encoder = Block()
        self.cross = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        tokens, other = (
            self.encoder(self.stem(2 * view - 1).flatten(2).mT + self.position) for view in (a, b)
        )  # (B, 64, 64) each
        for block in self.cross:
            tokens = block(tokens, other, self.place)
        scores = self.head(tokens) @ F.normalize(self.place, dim=-1).mT * 2  # (B, patches of a, patches of b)
        return scores.mT.unflatten(2, GRID)


#: Their modules, as a tap names them.
CROSS_ATTENTION = ["cross.0.attention", "cross.1.attention"]


class Matching(L.LightningModule):
    """Training of a matcher.

    Args:
        weight: of the guidance; 0 is none.
        steps: of training.
    """

    def __init__(self, weight: float, steps: int) -> None:
        super().__init__()
        self.matcher = Matcher()
        self.weight, self.steps = weight, steps

    def training_step(self, batch: Pairs, _: int) -> Tensor:
        with capture_attention(self.matcher, layers=CROSS_ATTENTION) as calls:
            scores = self.matcher(batch.a, batch.b)
        loss = F.cross_entropy(scores.flatten(2), batch.matches, ignore_index=-1)
        if self.weight:
            plausible = epipolar_mask(batch.geometry, GRID, GRID, TOLERANCE)
            loss = loss + self.weight * attention_guidance_loss(calls, plausible).loss
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 2e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=self.steps + 1, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Scenes(IterableDataset[Pairs]):
    """New scenes for every step, the same ones for the same seed."""

    def __init__(self, batch: int, seed: int) -> None:
        self.batch, self.seed = batch, seed
        self.textures = photographs(SEEN)

    def __iter__(self) -> Iterator[Pairs]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield scenes(self.batch, self.textures, generator)


def attention_of(matcher: Matcher, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Scores (B, 64, 8, 8), and attention of patches of a over those of b, (layers, B, 64, 64), means of heads."""
    matcher.eval()
    with torch.no_grad(), capture_attention(matcher, layers=CROSS_ATTENTION) as calls:
        scores = matcher(pairs.a, pairs.b)
    return scores, torch.stack([call.attention(slice(0, PATCHES)).mean(dim=1) for call in calls])


def measured(matcher: Matcher, pairs: Pairs) -> dict[str, float]:
    """What the table has a row of; no pose is used but for the measuring of where attention lies."""
    scores, attention = attention_of(matcher, pairs)
    predicted, seen = scores.flatten(2).argmax(dim=1), pairs.matches >= 0
    near = epipolar_mask(pairs.geometry, GRID, GRID, TOLERANCE)
    crosses = near.any(dim=2)  # whose line crosses view b at all
    on_line = (attention * near).sum(dim=3)[:, crosses]
    at_match = attention.gather(3, pairs.matches.clamp_min(0)[None, ..., None].expand(2, -1, -1, 1))[..., 0]
    return {
        "the right patch": float((predicted == pairs.matches)[seen].float().mean()),
        "it or one beside it": float(beside(predicted, pairs.matches)[seen].float().mean()),
        "attention on the epipolar lines": float(on_line.mean()),
        "attention on the right patch": float(at_match[:, seen].mean()),
    }


def beside(one: Tensor, other: Tensor) -> Tensor:
    """Whether patches are the same, or touch."""
    rows, columns = one // GRID[1] - other // GRID[1], one % GRID[1] - other % GRID[1]
    return (rows.abs() <= 1) & (columns.abs() <= 1)


def quiet() -> None:
    """No words but our own, and one thread: the matrices are so small that threads only wait for each other."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*|.*no `val_dataloader`.*|.*LeafSpec.*")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)


def train(weight: float, options: argparse.Namespace, seed: int) -> Matcher:
    """One run, in a process of its own."""
    quiet()
    L.seed_everything(seed, verbose=False)
    module = Matching(weight, options.steps)
    loader = DataLoader(Scenes(options.batch, seed), batch_size=None)
    L.Trainer(max_steps=options.steps, gradient_clip_val=1.0, **QUIET).fit(module, loader)
    return module.matcher


def with_interval(values: Sequence[float]) -> str:
    """Mean, and the half width of its 95 % interval over seeds, in percent."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.1%}"
    half = T_975.get(len(values) - 1, 1.96) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * mean:.1f} ± {100 * half:.1f} %"


def print_table(plain: Sequence[dict[str, float]], guided: Sequence[dict[str, float]], pairs: Pairs) -> None:
    """Both runs, and how far the guided ones are ahead, seed by seed."""
    seen = pairs.matches >= 0
    here = torch.arange(PATCHES).expand_as(pairs.matches)
    near = epipolar_mask(pairs.geometry, GRID, GRID, TOLERANCE)
    found = pairs.matches.clamp_min(0)
    chance = {
        "the right patch": float((here == pairs.matches)[seen].float().mean()),
        "it or one beside it": float(beside(here, pairs.matches)[seen].float().mean()),
        "attention on the epipolar lines": float(near.float().mean(dim=2)[near.any(dim=2)].mean()),
        "attention on the right patch": float(torch.ones_like(found).float().mean()) / PATCHES,
    }
    print(f"\n{'':34}{'nothing learned':>16}{'matches alone':>17}{'with guidance':>17}{'ahead by':>17}")
    for name in plain[0]:
        columns = [[run[name] for run in runs] for runs in (plain, guided)]
        ahead = [after - before for before, after in zip(*columns, strict=True)]
        cells = [f"{chance[name]:.1%}", *map(with_interval, (*columns, ahead))]
        print(f"{name:34}{cells[0]:>16}" + "".join(f"{cell:>17}" for cell in cells[1:]))
    print("nothing learned: the patch at the same place, and attention to all patches alike")


def draw(matchers: dict[str, Matcher], pairs: Pairs, rows: int) -> Figure:
    """A patch of view a in each row, its epipolar line in view b, and the attention of each matcher along it."""
    maps = {name: attention_of(matcher, pairs)[1][-1] for name, matcher in matchers.items()}
    figure = Figure(figsize=(2.1 * (2 + len(maps)) + 0.8, 2.1 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, 2 + len(maps), squeeze=False)
    for row, (index, patch) in enumerate(telling_patches(pairs, rows)):
        match = int(pairs.matches[index, patch])
        views = [("view a", pairs.a, None), ("view b", pairs.b, None)]
        views += [(name, pairs.b, of_all[index, patch].view(GRID)) for name, of_all in maps.items()]
        for axis, (name, view, heat) in zip(axes[row], views, strict=True):
            axis.set_axis_off()
            axis.set_title(name if row == 0 else "", fontsize=10)
            if heat is None:
                axis.imshow(view[index].movedim(0, -1), extent=(0, GRID[1], GRID[0], 0))
            else:
                grey = view[index].mean(dim=0)
                axis.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, GRID[1], GRID[0], 0))
                shown = axis.imshow(
                    heat * PATCHES, cmap="inferno", vmin=0, vmax=16, alpha=0.7, extent=(0, GRID[1], GRID[0], 0)
                )
            place = patch if name == "view a" else match
            axis.plot(
                place % GRID[1] + 0.5, place // GRID[1] + 0.5, "s", markersize=12, markeredgewidth=1.8,
                markerfacecolor="none", markeredgecolor="white" if heat is not None else "lime",
            )  # fmt: skip
            if name != "view a":
                line = pairs.geometry[index] @ torch.tensor([patch % GRID[1] + 0.5, patch // GRID[1] + 0.5, 1.0])
                across, down, offset = line.tolist()
                foot = [-offset * one / (across**2 + down**2) for one in (across, down)]
                axis.axline(foot, (foot[0] - down, foot[1] + across), color="cyan", linewidth=1.2)
            axis.set(xlim=(0, GRID[1]), ylim=(GRID[0], 0))
    bar = figure.colorbar(shown, ax=axes[:, 2:].flatten().tolist(), shrink=0.7, extend="max")
    bar.set_label("attention, times an equal share")
    figure.suptitle(
        "Attention of one patch of view a over view b; square: the patch and its match, line: its epipolar line"
    )
    return figure


def telling_patches(pairs: Pairs, count: int) -> list[tuple[int, int]]:
    """In each of the first scenes a patch with detail whose match is seen well away from its own place."""
    found = []
    detail = F.unfold(pairs.a.mean(dim=1, keepdim=True), PATCH, stride=PATCH).std(dim=1)  # (B, 64)
    here = torch.arange(PATCHES)
    for index in range(len(pairs.a)):
        moved = (pairs.matches[index] >= 0) & ~beside(here, pairs.matches[index])
        if bool(moved.any()) and len(found) < count:
            found.append((index, int(detail[index].masked_fill(~moved, -1).argmax())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, metavar="N", help="of training, in each run")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="scenes a step")
    parser.add_argument("--weight", type=float, default=1.0, metavar="W", help="of the guidance in the loss")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each kind")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="that train at the same time")
    parser.add_argument("--test", type=int, default=128, metavar="N", help="scenes of photographs that none has seen")
    parser.add_argument("--output", type=Path, default=Path("two_views.png"), metavar="FILE", help="the figure")
    options = parser.parse_args()
    quiet()

    test = scenes(options.test, photographs(HELD_OUT), torch.Generator().manual_seed(2026))
    kinds = {"matches alone": 0.0, "with guidance": options.weight}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        runs = {
            (seed, name): pool.submit(train, weight, options, seed)
            for seed in range(options.seeds)
            for name, weight in kinds.items()
        }
        for (seed, name), run in runs.items():
            found[name].append(measured(run.result(), test))
            said = ", ".join(f"{what} {value:.1%}" for what, value in found[name][-1].items())
            print(f"seed {seed}, {name}: {said}", flush=True)
    L.seed_everything(0, verbose=False)
    matchers = {"before": Matching(0, options.steps).matcher, **{name: runs[0, name].result() for name in kinds}}
    draw(matchers, test, rows=4).savefig(options.output, dpi=120)
    print_table(*found.values(), test)
    versions = f"torch {torch.__version__}, lightning {L.__version__}"
    print(f"\n{datetime.now(timezone.utc):%Y-%m-%d}, Python {platform.python_version()}, {versions}, one thread")
    print(f"{options.steps} steps of {options.batch} scenes of {SIZE} × {SIZE} pixels; figure: {options.output}")


if __name__ == "__main__":
    main()
