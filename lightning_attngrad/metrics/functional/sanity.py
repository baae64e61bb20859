"""The sanity check of a method: do its maps change when what the model has learnt is taken away?"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lightning_attngrad.explain import explain
from lightning_attngrad.metrics.functional.sensitivity import sanity_correlation


def redrawn_state(model: nn.Module, which: Literal["all", "head"] = "all", seed: int = 0) -> dict[str, Tensor]:
    """Parameters drawn anew, each from a normal distribution with the mean and spread of the trained tensor.

    Adebayo et al., arXiv 1810.03292, draw from the distribution of the initialisation; this one needs no knowledge of
    it, and keeps activations at the scale that the model has. A tensor whose values are all alike stays as it is.
    Neither the model nor the global random numbers are touched: use the result with ``torch.func.functional_call``.

    Args:
        model: any module.
        which: ``all`` parameters, or only those of the classifier ``head``: what the first submodule (the model
            itself first) with timm's ``get_classifier()`` returns; else the last ``nn.Linear`` that was registered.
        seed: of the draws; each parameter's are its own, whatever the others are.

    Returns:
        The redrawn parameters by name, on their device and in their type; those that stay are left out.

    Raises:
        ValueError: for another ``which``, or a model without such a head.

    Example:
        >>> import timm
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> sorted(redrawn_state(model, "head"))
        ['head.bias', 'head.weight']
        >>> logits = functional_call(model, redrawn_state(model), (torch.rand(1, 3, 160, 160),))
        >>> logits.shape
        torch.Size([1, 5])
    """
    if which not in ("all", "head"):
        raise ValueError(f"which: got {which!r}; expected 'all' or 'head'")
    chosen = None if which == "all" else {id(parameter) for parameter in _head_parameters(model)}
    return {
        name: _redrawn(parameter, seed + zlib.crc32(name.encode()))
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and (chosen is None or id(parameter) in chosen)
    }


def sanity_check(
    model: nn.Module,
    images: Tensor,
    target: int | Sequence[int] | Tensor | None = None,
    method: str | None = None,
    which: Literal["all", "head"] = "all",
    *,
    seed: int = 0,
    forward: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """Rank correlation of the maps of a model with those of the same model redrawn: near 0 is good.

    Args:
        model: as for :func:`lightning_attngrad.explain`; it is left as it is.
        images: (B, C, H, W), normalised as the model takes them.
        target: one class an image, as for ``explain``; None is the class that the trained model predicts.
        method: any that ``explain`` knows; None as there, and the same for both models.
        which: what is redrawn, as for :func:`redrawn_state`.
        seed: of the draws.
        forward: called instead of ``model(images)``; it has to call the same ``model``.

    Returns:
        (B,), between −1 and 1; NaN where a map is constant.

    Raises:
        ValueError: for an argument that does not fit, or a model without a head to redraw.
        UnsupportedModelError: as ``explain``.

    Source:
        Adebayo et al., arXiv 1810.03292, section 4 (all at once) and section 3.2 (the head alone).

    Example:
        >>> import timm
        >>> model = timm.create_model("test_vit", num_classes=5)
        >>> sanity_check(model, torch.rand(2, 3, 160, 160), method="attn_lrp").shape
        torch.Size([2])
    """
    state = redrawn_state(model, which, seed)
    redrawn = _Redrawn(model, forward)
    names = {f"model.{name}": parameter for name, parameter in state.items()}
    trained = explain(model, images, target, method=method, forward=forward)
    if trained.heatmap.ndim != 3:
        raise ValueError("target: got several classes an image; expected one, such as an int or a tensor (B,)")
    untrained = explain(
        model,
        images,
        trained.target,
        method=trained.method,
        forward=lambda batch: functional_call(redrawn, names, (batch,)),
    )
    return sanity_correlation(trained.heatmap, untrained.heatmap)


class _Redrawn(nn.Module):
    """A module around the model, so that whatever way it is called, its parameters can be exchanged meanwhile."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Any] | None) -> None:
        super().__init__()
        self.model = model
        self._forward = forward

    def forward(self, images: Tensor) -> Any:
        return self.model(images) if self._forward is None else self._forward(images)


def _redrawn(parameter: Tensor, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(parameter.shape, generator=generator, device="cpu").to(parameter.device)
    trained = parameter.detach().float()
    return (trained.mean() + trained.std(correction=0) * noise).to(parameter.dtype)


def _head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the classifier.

    Raises:
        ValueError: where there are none.
    """
    parameters = [parameter for module in _head_modules(model) for parameter in module.parameters()]
    if not parameters:
        raise ValueError(
            f"which: {type(model).__name__} has no classifier head to redraw (neither get_classifier() with parameters "
            "nor an nn.Linear); use which='all'"
        )
    return parameters


def _head_modules(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        classifier = getattr(module, "get_classifier", None)
        if callable(classifier):
            found = classifier()
            yield from found if isinstance(found, list | tuple) else [found]  # two with a distillation token
            return
    yield from [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
