"""The models of the demo, and the weights that they start from."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from timm.layers.hybrid_embed import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

import lightning_attngrad.models  # noqa: F401  (registers its models with timm)
from lightning_attngrad.demo.options import DEMO_MODEL, DemoError

BACKBONE_FILE = "demo_backbone.safetensors"
BACKBONE_SHA256 = "13236f7cb447a845fd672867b6a5789a850b13958a7d0993ac9bc1975144d55e"
DEMO_IMAGE_SIZE = 28

_NESTED_STATES = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")


def demo_vision_transformer(class_count: int = 10, patch_drop: float = 0.5) -> VisionTransformer:
    """Build the demo's model: a timm Vision Transformer of 0.17 M parameters with a 14×14 grid of tokens.

    Three convolutions stand in place of a linear patch embedding (Xiao et al., arXiv 2106.14881): from random
    weights, one minute of training then reached 82 % where it had reached 41 % (patches of 4 pixels). Half of
    the patches are dropped while training (Li et al., arXiv 2212.00794), which pays for the finer grid of 2
    pixels: 86 % in that minute, against 55 % with all of them.

    Args:
        class_count: Outputs of the head.
        patch_drop: Share of the patches that are left out of each training image.

    Returns:
        A model from (B, 1, 28, 28) to (B, class_count).
    """
    stem = ConvStem(in_chans=1, depth=3, channels=(16, 32, 64), kernel_size=3, stride=(1, 2, 1))
    model = VisionTransformer(
        img_size=DEMO_IMAGE_SIZE,
        patch_size=2,
        in_chans=1,
        num_classes=class_count,
        embed_dim=64,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
        patch_drop_rate=patch_drop,
        embed_layer=partial(_stem_embedding, stem),
    )
    configuration = {"input_size": (1, DEMO_IMAGE_SIZE, DEMO_IMAGE_SIZE), "classifier": "head"}
    setattr(model, "pretrained_cfg", configuration)  # noqa: B010  (timm's own attribute, unknown to nn.Module's types)
    return model


def _stem_embedding(stem: nn.Module, *, img_size: int, in_chans: int, embed_dim: int, **_: Any) -> nn.Module:
    # The stem has already halved the image, so each of its cells is one token.
    return HybridEmbed(stem, img_size=img_size, patch_size=1, in_chans=in_chans, embed_dim=embed_dim)


def build_model(
    name: str, class_count: int, image_size: int | None, pretrained: bool, *, drops_patches: bool = True
) -> nn.Module:
    """Build a model by name.

    Args:
        name: "demo" or a timm name.
        class_count: Outputs of the head.
        image_size: Height and width of the input, pixels; None is what the model was made for.
        pretrained: Download timm's weights.
        drops_patches: Whether the demo's own model drops half of the patches while training; where they lie is then
            not known, as attention that is guided has to.

    Returns:
        The model, with timm's `pretrained_cfg`.

    Raises:
        DemoError: No such model, no such size, or no weights to download.
    """
    if name == DEMO_MODEL:
        if image_size not in (None, DEMO_IMAGE_SIZE):
            raise DemoError(
                f"--image-size: got {image_size}; the demo model takes {DEMO_IMAGE_SIZE} only; "
                "name one of timm's with --model, such as vit_tiny_patch16_224"
            )
        return demo_vision_transformer(class_count) if drops_patches else demo_vision_transformer(class_count, 0.0)
    if not timm.is_model(name.partition(".")[0]):
        near = timm.list_models(f"*{name.partition('_')[0]}*")[:3]
        raise DemoError(
            f"--model: timm has no {name!r}; expected 'demo' or a timm name"
            + (f" such as {', '.join(near)}" if near else " such as vit_tiny_patch16_224")
        )
    size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=class_count, **size)
    except TypeError as error:
        if image_size is None or "img_size" not in str(error):
            raise
        raise DemoError(f"--image-size: {name} does not let its input size be set; leave it out") from error
    except (AssertionError, RuntimeError, OSError) as error:
        # a size that no patch grid fits, a name without weights, or no network
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DemoError(f"--model {name}: timm could not build it: {reason[0]}") from error
    return model


def load_backbone(model: nn.Module, contents: bytes | None = None) -> None:
    """Give the demo model the weights that ship with the package, and a new head.

    They were trained by `examples/pretrain_demo_backbone.py`, which says on what.

    Args:
        model: From :func:`demo_vision_transformer`.
        contents: The bytes of the file; None reads the shipped one.

    Raises:
        DemoError: The file is missing or is not the one that was shipped.
    """
    file = resources.files("lightning_attngrad").joinpath(BACKBONE_FILE)
    if contents is None:
        try:
            contents = file.read_bytes()
        except OSError as error:
            raise DemoError(
                f"the shipped backbone {BACKBONE_FILE} is missing; reinstall the package, or use --from-scratch"
            ) from error
    digest = hashlib.sha256(contents).hexdigest()
    if digest != BACKBONE_SHA256:
        raise DemoError(
            f"the shipped backbone {BACKBONE_FILE} is damaged: its sha256 is {digest[:16]}…, expected "
            f"{BACKBONE_SHA256[:16]}…; reinstall the package, or use --from-scratch"
        )
    fill(model, load(contents), BACKBONE_FILE)
    # A new head, and not the one that the model was built with: of the right seed, that is the very head with
    # which pretraining began, and the backbone would know its way to it.
    nn.init.trunc_normal_(model.get_parameter("head.weight"), std=0.02)
    nn.init.zeros_(model.get_parameter("head.bias"))


def load_weights(model: nn.Module, file: Path) -> str:
    """Load a local state dict; a head for other classes is left out.

    Args:
        model: The model, with timm's `pretrained_cfg` where it has one.
        file: A `.safetensors` file, or a `.pth`, `.pt`, `.bin` or `.ckpt` file with a state dict in it, also
            under `state_dict` (Lightning) or `model`, and with prefixes such as `model.` or `module.`.

    Returns:
        What was loaded and what was not, for the person who asked.

    Raises:
        DemoError: No such file, no state dict in it, or one of another model.
    """
    if not file.is_file():
        raise DemoError(f"--weights: {file} is not a file")
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, LookupError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DemoError(f"--weights: {file} holds no plain state dict ({reason[0]})") from error
    for name in _NESTED_STATES:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    tensors = (
        {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if isinstance(state, Mapping)
        else {}
    )
    if not tensors:
        raise DemoError(f"--weights: {file} holds no state dict; expected a mapping from names to tensors")
    return fill(model, tensors, str(file))


def fill(model: nn.Module, state: Mapping[str, Tensor], source: str) -> str:
    """Copy a state dict into a model, all of it but a head of another shape.

    Args:
        model: The model; `pretrained_cfg["classifier"]` names its head.
        state: Names to tensors of any floating type.
        source: Where they come from, for messages.

    Returns:
        One sentence on what was loaded.

    Raises:
        DemoError: Anything but the head is missing or has another shape.
    """
    own = model.state_dict()
    given = _without_wrappers(state, own)
    head = _head_names(model)
    fitting = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    unfilled = [name for name in own if name not in fitting]
    if unfit := [name for name in unfilled if not name.startswith(head)]:
        first = unfit[0]
        found = f"has shape {tuple(given[first].shape)}" if first in given else "is missing"
        raise DemoError(
            f"--weights: {source} does not fit the model: {len(unfit)} of {len(own)} tensors, the first "
            f"{first}, which {found} and should have shape {tuple(own[first].shape)}; name the model that "
            "the weights belong to with --model, and its --image-size"
        )
    model.load_state_dict(fitting, strict=False)
    sentence = f"{len(fitting)} tensors from {source}"
    return sentence + (f"; the head ({', '.join(unfilled)}) starts anew" if unfilled else "")


def _head_names(model: nn.Module) -> tuple[str, ...]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _without_wrappers(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what Lightning, DataParallel and torch.compile put in front of the names, one layer at a time."""
    names = dict(state)
    while not any(name in own for name in names):
        prefix = next((wrapper for wrapper in _WRAPPERS if any(n.startswith(wrapper) for n in names)), None)
        if prefix is None:
            break
        names = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
    return names
