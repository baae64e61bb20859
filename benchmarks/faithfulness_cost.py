"""What deletion and insertion cost beside the bare forwards that they need: a Markdown table.

Both curves of 64 images in 16 steps are 64 · 2 · 16 images through the model, both ends shared. The bare forwards are
so many images in batches of the same size, under ``no_grad``, in evaluation mode, and nothing else.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable
from functools import partial

import timm
import torch
from torch import nn

from benchmarks.timing import interleaved, ratio
from lightning_attngrad.metrics.functional import faithfulness_curves
from lightning_attngrad.metrics.functional.faithfulness import REPLACEMENTS

#: Times the bare forwards that the curves may take.
LIMIT = 1.2


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness_cost", description=__doc__)
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="a timm ViT of patches of 16 pixels")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64, help="images at once")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}; torch {torch.__version__}, timm {timm.__version__}; "
        f"float32 on {options.threads} thread(s); medians of {options.rounds} interleaved rounds"
    )
    torch.manual_seed(0)
    model = timm.create_model(options.model, img_size=options.image_size).eval()
    nn.init.normal_(model.head.weight, std=0.02)
    grid = options.image_size // 16
    images = torch.randn(options.images, 3, options.image_size, options.image_size)
    heatmap, target = torch.randn(options.images, grid, grid), torch.arange(options.images)

    def bare() -> None:
        with torch.no_grad():
            left = 2 * options.steps * options.images
            while left:
                some = images[:1].expand(min(options.batch, left), -1, -1, -1).contiguous()
                model(some)
                left -= len(some)

    calls: dict[str, Callable[[], object]] = {"bare forwards": bare}
    for replacement in REPLACEMENTS:
        calls[replacement] = partial(
            faithfulness_curves,
            model,
            images,
            heatmap,
            target,
            steps=options.steps,
            replacement=replacement,
            batch=options.batch,
        )
    seconds = interleaved(calls, options.rounds)
    print(
        f"\n### Deletion and insertion of {options.images} images in {options.steps} steps: {options.model}, "
        f"{grid * grid} patches, {options.batch} images at once\n"
    )
    print("| replacement | limit | time / bare forwards | |\n|---|---|---|---|")
    for replacement in REPLACEMENTS:
        measured = ratio(seconds, replacement, "bare forwards")
        print(f"| {replacement} | ≤ {LIMIT:.2f} | {measured:.3f} | {'met' if measured <= LIMIT else 'missed'} |")


if __name__ == "__main__":
    main()
