"""The weights of a checkpoint, to be run in the place of a model's own."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_MOST_NAMED = 4  # parameters in a message
_COMPILED = "_orig_mod."  # what torch.compile puts into names


def read_checkpoint(path: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint onto the CPU.

    Args:
        path: of a checkpoint of Lightning, or of a saved ``state_dict()``.

    Returns:
        Tensors by name, as they were saved.

    Raises:
        ValueError: for a file that is missing, cannot be read without running code, or holds no weights.
    """
    expected = "expected 'start', 'previous' or the path of a checkpoint"
    if not Path(path).is_file():
        hint = (
            "a folder: make one file of it with python -m lightning.pytorch.utilities.consolidate_checkpoint"
            if Path(path).is_dir()
            else "and there is no such file"
        )
        raise ValueError(f"reference: got {path!r}, {hint}; {expected}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"reference: {path!r} cannot be read ({reason}); {expected} that torch.load(weights_only=True) can read: "
            "save its 'state_dict' alone if it holds objects of other kinds"
        ) from error
    found = content.get("state_dict", content) if isinstance(content, Mapping) else None
    weights = {str(name): value for name, value in (found or {}).items() if isinstance(value, Tensor)}
    if not weights:
        raise ValueError(f"reference: {path!r} holds no weights; {expected}, with a 'state_dict' in it")
    return weights


def weights_for(model: nn.Module, weights: Mapping[str, Tensor], path: str | None) -> dict[str, Tensor]:
    """The weights of a LightningModule that are those of a part of it, by the names and in the types of that part.

    Args:
        model: the part.
        weights: of the whole LightningModule.
        path: of the part in it, such as ``net.backbone``; None is the whole.

    Returns:
        A tensor for each entry of ``model.state_dict()``.

    Raises:
        ValueError: where names or shapes do not fit, and for a model whose parameters are sharded.
    """
    if any(hasattr(parameter, "to_local") for parameter in model.parameters()):
        raise ValueError(
            "reference: a checkpoint cannot be run in the place of sharded parameters (ModelParallelStrategy, FSDP2); "
            "use reference='start' or 'previous', or compare the two checkpoints in a run on one device"
        )
    prefix = "" if path is None else f"{path}."
    saved = {name.replace(_COMPILED, ""): value for name, value in weights.items()}
    saved = {name[len(prefix) :]: value for name, value in saved.items() if name.startswith(prefix)}
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    plain = {name.replace(_COMPILED, ""): name for name in own}
    for what, names in (
        ("the model has and the checkpoint lacks", plain.keys() - saved.keys()),
        ("the checkpoint has and the model lacks", saved.keys() - plain.keys()),
        ("have another shape", {name for name in plain.keys() & saved if saved[name].shape != own[plain[name]].shape}),
    ):
        if names:
            raise ValueError(
                f"reference: the checkpoint is of another model: {len(names)} parameters {what}, such as "
                f"{', '.join(sorted(names)[:_MOST_NAMED])}; expected those of {type(model).__name__}"
                + (f" under {prefix!r}" if prefix else "")
            )
    return {full: saved[name].to(own[full].dtype, copy=True) for name, full in plain.items()}


def hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def on_device(weights: Mapping[str, Tensor], device: Any) -> dict[str, Tensor]:
    """Copies on a device: a forward pass may write into buffers."""
    return {name: value.to(device, copy=True) for name, value in weights.items()}
