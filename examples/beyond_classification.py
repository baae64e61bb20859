"""Maps of what is not one label an image: a pixel's class, depth at a point, a detector's query, a text, a clip.

python examples/beyond_classification.py segmentation      # or depth, detection, texts, clip, start

Each trains a shrunken Hugging Face model for some seconds on red squares and blue discs, built from its configuration
(nothing is downloaded), explains it in one call, and writes a figure. Needs `transformers`, and no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.nn.functional as F
import transformers
from matplotlib.figure import Figure
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import lightning_attngrad as attngrad

SIZE = 64
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,  # so small a model learns faster from larger weights
}
RED, BLUE = 1, 2


class Scene(NamedTuple):
    """A red square and a blue disc on noise.

    Attributes:
        images: (B, 3, 64, 64).
        classes: of pixels (B, 64, 64); 0 is neither.
        boxes: of both, (B, 2, 4): centre x, centre y, width, height as shares of the image.
    """

    images: Tensor
    classes: Tensor
    boxes: Tensor


def scene(count: int) -> Scene:
    """One shape in the left half and the other in the right."""
    rows = torch.arange(SIZE)[:, None]
    columns = torch.arange(SIZE)[None]
    images, classes = 0.4 + 0.05 * torch.randn(count, 3, SIZE, SIZE), torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    boxes = torch.zeros(count, 2, 4)
    for index in range(count):
        red_is_left = bool(torch.rand(()) < 0.5)
        for shape in (RED, BLUE):
            radius = int(torch.randint(7, 12, ()))
            left = (shape == RED) == red_is_left
            x = int(torch.randint(12, 20, ())) + (0 if left else SIZE // 2)
            y = int(torch.randint(12, SIZE - 12, ()))
            across, down = (columns - x).abs(), (rows - y).abs()
            inside = (across.square() + down.square() if shape == BLUE else torch.maximum(across, down).square()) < (
                radius**2
            )
            images[index][:, inside] = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.3, 0.9]])[shape - 1][:, None]
            classes[index][inside] = shape
            boxes[index, shape - 1] = torch.tensor([x, y, 2 * radius, 2 * radius]) / SIZE
    return Scene(images, classes, boxes)


def train(model: nn.Module, loss: Callable[[], Tensor], steps: int) -> nn.Module:
    """A few steps, so that there is something to see."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps + 1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def segmentation(steps: int) -> Figure:
    """SegFormer: why is this pixel a red square? And the whole square?"""
    config = transformers.SegformerConfig(
        num_encoder_blocks=2,
        depths=[2, 2],
        sr_ratios=[2, 1],
        patch_sizes=[7, 3],
        strides=[4, 2],
        hidden_sizes=[32, 64],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=64,
        initializer_range=0.1,
        num_labels=3,
    )
    model = transformers.SegformerForSemanticSegmentation(config)

    def loss() -> Tensor:
        batch = scene(8)
        return F.cross_entropy(F.interpolate(model(batch.images).logits, size=SIZE), batch.classes)

    train(model, loss, steps)
    one = scene(1)
    row, column = centre(one, BLUE)
    asked = {
        "blue, at the cross": attngrad.PixelClass(BLUE, where=(row, column)),
        "red, over the square": attngrad.PixelClass(RED, where=one.classes == RED),
        "blue, where predicted": attngrad.PixelClass(BLUE),
    }
    maps = [attngrad.explain(model, one.images, objective=each).heatmap[0] for each in asked.values()]
    return draw(
        "SegFormer: which patches give a place its class",
        [one.images[0]] * 4,
        [None, *maps],
        ["image", *asked],
        marks=[None, (row, column), None, None],
    )


def depth(steps: int) -> Figure:
    """DPT: what says how near this point is? The square is near (3), the disc further (2), the rest far (1)."""
    config = transformers.DPTConfig(
        **{**SMALL, "num_hidden_layers": 4, "initializer_range": 0.02},
        image_size=SIZE,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[32, 32, 32, 32],
        fusion_hidden_size=32,
        reassemble_factors=[2, 1, 1, 0.5],
    )
    model = transformers.DPTForDepthEstimation(config)

    def loss() -> Tensor:
        batch = scene(8)
        nearness = torch.tensor([1.0, 3.0, 2.0])[batch.classes]
        return F.mse_loss(F.interpolate(model(batch.images).predicted_depth[:, None], size=SIZE)[:, 0], nearness)

    train(model, loss, steps)
    one = scene(1)
    points = [centre(one, RED), centre(one, BLUE), (4, 4)]
    maps = [attngrad.explain(model, one.images, objective=attngrad.PixelValue(where=point)) for point in points]
    return draw(
        "DPT: which patches set the depth at a point",
        [one.images[0]] * 4,
        [None, *(found.heatmap[0] for found in maps)],
        ["image", *(f"{float(found.value):.2f} at the cross" for found in maps)],
        marks=[None, *points],
    )


def detection(steps: int) -> Figure:
    """YOLOS: what makes a query say "red square", and what sets the place of its box?"""
    config = transformers.YolosConfig(
        **SMALL, image_size=[SIZE, SIZE], patch_size=8, num_detection_tokens=2, num_labels=2
    )
    model = transformers.YolosForObjectDetection(config)

    def loss() -> Tensor:  # the first query is to find the square, and the second the disc
        batch = scene(16)
        found = model(batch.images)
        classes = torch.arange(2).expand(len(batch.images), 2)
        return F.cross_entropy(found.logits.mT, classes) + 5 * F.l1_loss(found.pred_boxes, batch.boxes)

    train(model, loss, steps)
    one = scene(1)
    asked = {
        "query 0 is a square": attngrad.QueryClass(0, query=0),
        "its box: centre y": attngrad.QueryBox(1, query=0),
        "the best query for a disc": attngrad.QueryClass(1),
    }
    maps = [attngrad.explain(model, one.images, objective=objective).heatmap[0] for objective in asked.values()]
    return draw("YOLOS: which patches a query goes by", [one.images[0]] * 4, [None, *maps], ["image", *asked])


def texts(steps: int) -> Figure:
    """CLIP: which part of the image speaks for which text?"""
    words = {"vocab_size": 8, "max_position_embeddings": 4, "bos_token_id": 6, "eos_token_id": 7}
    config = transformers.CLIPConfig(
        text_config={**SMALL, **words}, vision_config={**SMALL, "image_size": SIZE, "patch_size": 8}, projection_dim=32
    )
    model = transformers.CLIPModel(config)
    sentences = {"a red square": [6, 1, 2, 7], "a blue disc": [6, 3, 4, 7], "nothing": [6, 5, 5, 7]}
    ids = torch.tensor(list(sentences.values()))

    def loss() -> Tensor:  # images of one shape, or of none
        batch = scene(16)
        shown = torch.randint(0, 3, (16,))
        shape = torch.tensor([RED, BLUE, 0])[shown][:, None, None]
        others = ((batch.classes > 0) & (batch.classes != shape)).unsqueeze(1)
        images = torch.where(others, 0.4 + 0.05 * torch.randn_like(batch.images), batch.images)
        return F.cross_entropy(model(input_ids=ids, pixel_values=images).logits_per_image, shown)

    train(model, loss, steps)
    with torch.no_grad():
        vectors = model.get_text_features(input_ids=ids).pooler_output
    likeness = attngrad.Similarity(vectors, list(sentences), scale=float(model.logit_scale.exp()))
    one = scene(1)
    found = attngrad.explain(
        model,
        one.images,
        [0, 1],  # the texts are the classes
        objective=likeness,
        forward=lambda images: model.get_image_features(pixel_values=images),
    )
    return draw(
        "CLIP: which patches are like a text",
        [one.images[0]] * 3,
        [None, found.heatmap[0, 0], found.heatmap[0, 1]],
        ["image", *(f"“{text}”" for text in list(sentences)[:2])],
    )


def clip(steps: int) -> Figure:
    """VideoMAE: in which frames is what the prediction rests on? A red square or a blue disc shows for two frames."""
    frames, tubelet = 8, 2
    config = transformers.VideoMAEConfig(
        **SMALL, image_size=SIZE, patch_size=16, num_frames=frames, tubelet_size=tubelet, num_labels=2
    )
    model = transformers.VideoMAEForVideoClassification(config)

    def clips(count: int) -> tuple[Tensor, Tensor]:
        shown, when = torch.randint(0, 2, (count,)), torch.randint(0, frames // tubelet, (count,))
        batch = scene(count)
        moving = 0.4 + 0.05 * torch.randn(count, frames, 3, SIZE, SIZE)
        for index in range(count):
            inside = batch.classes[index] == shown[index] + 1
            begin = tubelet * int(when[index])
            moving[index, begin : begin + tubelet, :, inside] = batch.images[index][:, inside]
        return moving, shown

    def loss() -> Tensor:
        moving, shown = clips(16)
        return F.cross_entropy(model(moving).logits, shown)

    train(model, loss, steps)
    moving, shown = clips(1)
    strip = attngrad.ClipStrip(frames, tubelet)
    found = attngrad.explain(
        model, strip.images(moving), int(shown[0]), forward=lambda images: model(pixel_values=strip.clips(images))
    )
    maps = strip.maps(found.heatmap)[0]  # one of every two frames
    return draw(
        f"VideoMAE: which frames and patches say “{('red', 'blue')[int(shown[0])]}”",
        list(moving[0, ::tubelet]) * 2,
        [*[None] * len(maps), *maps],
        [*(f"frames {2 * index + 1} and {2 * index + 2}" for index in range(len(maps))), *[""] * len(maps)],
        columns=len(maps),
    )


def start(steps: int) -> None:
    """A backbone without a classifier, watched: what stays of each image's own starting embedding?"""

    class Features(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = VisionTransformer(
                img_size=SIZE, patch_size=8, embed_dim=64, depth=4, num_heads=4, num_classes=0, global_pool="avg"
            )

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:  # two noisy views of an image are alike
            one, other = (F.normalize(self(batch[0] + 0.1 * torch.randn_like(batch[0])), dim=1) for _ in range(2))
            return F.cross_entropy(10 * one @ other.T, torch.arange(len(one)))

        def validation_step(self, batch: list[Tensor], _: int) -> None:
            pass

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=3e-4)

    def loader(count: int) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(scene(count).images), batch_size=16)

    images = attngrad.ProbeImages(num_images=6, mean=0.0, std=1.0)
    maps = attngrad.AttentionMapMonitor(probe=images, objective="start", every_n_epochs=2)
    drift = attngrad.AttentionDriftMonitor(probe=images, objective="start", every_n_epochs=2)
    trainer = L.Trainer(max_epochs=4, logger=False, enable_checkpointing=False, callbacks=[maps, drift])
    trainer.fit(Features(), loader(16 * max(1, steps // 4)), loader(16))


def centre(one: Scene, shape: int) -> tuple[int, int]:
    """Row and column of the middle of a shape."""
    x, y = (one.boxes[0, shape - 1, :2] * SIZE).long().tolist()
    return y, x


def draw(
    title: str,
    images: Sequence[Tensor],
    maps: Sequence[Tensor | None],
    names: Sequence[str],
    *,
    marks: Sequence[tuple[int, int] | None] | None = None,
    columns: int | None = None,
) -> Figure:
    """Images in a row, with maps over them; all maps on one scale, in multiples of an equal share."""
    columns = len(images) if columns is None else columns
    rows = len(images) // columns
    figure = Figure(figsize=(2.2 * columns + 0.7, 2.35 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    total = sum(float(one.clamp_min(0).sum()) for one in maps if one is not None)
    patches = sum(one.numel() for one in maps if one is not None)
    together = columns < len(images)  # the frames of a clip are parts of one map
    for axis, image, heatmap, name, mark in zip(axes, images, maps, names, marks or [None] * len(images), strict=True):
        axis.set_axis_off()
        axis.set_title(name, fontsize=9)
        grey = image.mean(dim=0) if heatmap is not None else image.permute(1, 2, 0)
        axis.imshow(grey.clamp(0, 1), cmap="gray", vmin=0, vmax=1)
        if heatmap is not None:
            share = heatmap.clamp_min(0)
            share = share * (patches / total if together else share.numel() / share.sum())
            shown = axis.imshow(share, cmap="inferno", vmin=0, vmax=4, alpha=0.75, extent=(0, SIZE, SIZE, 0))
        if mark is not None:
            axis.plot(mark[1], mark[0], "x", color="cyan", markersize=9, markeredgewidth=2)
    figure.colorbar(shown, ax=axes.tolist(), label="times an equal share", shrink=0.8, extend="max")
    return figure


EXAMPLES = {one.__name__: one for one in (segmentation, depth, detection, texts, clip, start)}


def main() -> None:
    """Run one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("--steps", type=int, default=250, help="of training")
    parser.add_argument("--output", type=Path, help="the figure; without, <example>.png")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    figure = EXAMPLES[arguments.example](arguments.steps)
    if figure is not None:
        output = arguments.output or Path(f"{arguments.example}.png")
        figure.savefig(output, dpi=150)
        print(f"{output} was written")


if __name__ == "__main__":
    main()
