"""Whether ``attn_lrp`` is LXT's AttnLRP: both on one Hugging Face ViT with the same weights, in one process.

LXT 2.1 needs transformers below 5, so this runs in an environment of its own::

    python -m venv lxt-environment
    lxt-environment/bin/pip install . "transformers<5" lxt
    lxt-environment/bin/python -m benchmarks.lxt_agreement

It prints the largest difference between the two relevances of a token, as a share of the largest relevance, and fails
where that is above 1e-5 in float64.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from functools import partial

import torch
from torch import Tensor, nn

from lightning_attngrad import explain

IMAGE, PATCH, CLASSES = 64, 16, 5
AGREE = 1e-5


def build(seed: int, dtype: torch.dtype, layers: int) -> nn.Module:
    """A small ViT with biases and every weight drawn anew."""
    from transformers import ViTConfig, ViTForImageClassification

    configuration = ViTConfig(
        image_size=IMAGE,
        patch_size=PATCH,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=CLASSES,
    )
    model: nn.Module = ViTForImageClassification(configuration)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            wide = name.endswith("weight") and parameter.dim() > 1
            parameter.copy_(noise / parameter[0].numel() ** 0.5 if wide else parameter + 0.2 * noise)
    return model.eval().to(dtype)


def relevance_of_lxt(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """(B, N): input × gradient of the tokens that enter the first block. Patches classes: nothing may run after it."""
    from lxt.efficient import monkey_patch
    from lxt.efficient.patches import layer_norm_forward, non_linear_forward, patch_attention, patch_method
    from transformers.activations import GELUActivation
    from transformers.models.vit import modeling_vit

    monkey_patch(
        modeling_vit,
        {
            nn.LayerNorm: partial(patch_method, layer_norm_forward),
            GELUActivation: partial(patch_method, non_linear_forward, keep_original=True),
            modeling_vit: patch_attention,
        },
    )
    entered: list[Tensor] = []

    def keep(block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
        entered.append(inputs[0].detach().requires_grad_())
        return (entered[0], *inputs[1:])

    handle = model.vit.encoder.layer[0].register_forward_pre_hook(keep)  # type: ignore[union-attr, index]
    logits = model(images).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), entered[0])
    return (entered[0].detach() * gradient).sum(-1)


def main(arguments: list[str] | None = None) -> int:
    """Print the largest difference; 1 where it is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        import transformers
        from lxt.efficient import monkey_patch  # noqa: F401
    except ImportError as error:
        how = str(__doc__).partition("own::")[2].partition("It prints")[0]
        print(f"this needs an environment of its own ({error}):\n{how}")
        return 2
    model = build(options.seed, torch.float64, options.layers)
    generator = torch.Generator().manual_seed(options.seed)
    images = torch.randn(options.images, 3, IMAGE, IMAGE, generator=generator, dtype=torch.float64)
    target = torch.arange(options.images) % CLASSES
    ours = explain(model, images, target, method="attn_lrp").token_scores.double()
    plain = model(images).logits.detach()
    theirs = relevance_of_lxt(model, images, target)
    changed = (model(images).logits.detach() - plain).abs().max() / plain.abs().max()
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    version = importlib.metadata.version("lxt")
    print(f"lxt {version}, transformers {transformers.__version__}, torch {torch.__version__}; {options.layers} blocks")
    print(f"{options.images} images, {theirs.shape[1]} tokens: largest relevance {float(theirs.abs().max()):.4f}")
    print(f"largest difference as a share of it: {difference:.1e} (logits under LXT's patches: {float(changed):.1e})")
    return 0 if difference <= AGREE else 1


if __name__ == "__main__":
    sys.exit(main())
