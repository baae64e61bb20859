"""Token relevance of models of any layout, where the rules of `tests.references.relevance` say all there is to say.

Gradient × input at what enters the first block: the input of the LayerNorm that stands in front of the first attention,
(B, N, D) or (B, h, w, D). Attention is written out by `attention_products`, so that any spelling of it has the rule:

    O = stop(A) V                     conservative (arXiv 2202.07304)
    O = half(A) half(V),  S = half(Q) half(K)ᵀ·s    attn_lrp (arXiv 2402.05602)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import timm.layers
import torch
from torch import Tensor, nn

from tests.references import relevance as rules
from tests.references.attention_products import AttentionProduct, attention_products, rows_of
from tests.references.occlusion import Undecided
from tests.references.recorded_attention import patched
from tests.references.traced_maps import TracedReading, carried, guided
from tests.zoo import logits_of

#: Modules that hold parameters or change values, for which a rule is written down, or which are linear.
_KNOWN = {
    *rules.ACTIVATIONS,
    *("Linear", "Conv2d", "LayerNorm", "Dropout", "DropPath", "Identity", "Softmax", "LayerScale", "Sequential"),
    *("ModuleList", "ModuleDict", "Flatten", "SwiGLU", "GluMlp", "Dropout1d", "BatchNorm2d", "NormMlpClassifierHead"),
    *("ClassifierHead", "SelectAdaptivePool2d", "AvgPool2d", "AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "Permute"),
    *(
        "FastAdaptiveAvgPool",
        "MaxPool2d",
        "Reroll",
        "Unroll",
        "LayerScale2d",
        "Upsample",
        "ZeroPad2d",
        "ConvTranspose2d",
        "BatchNorm1d",
    ),
    *("ViTDropPath", "NonDynamicallyQuantizableLinear", "StochasticDepth", "PatchDropout", "PatchDropoutWithIndices"),
}
_ACTIVATIONS = {*rules.ACTIVATIONS}


@dataclasses.dataclass(frozen=True, eq=False)
class Relevance:
    """What one backward pass under the rules found.

    Attributes:
        tokens: (B, h, w).
        reading: with the gradients of this pass.
        phi: the logits explained, (B,).
        total: the sum over all tokens, those that lie nowhere included, (B,).
        certain: whether the places of the tokens are known, and not only that they are as many as cells of the grid.
    """

    tokens: Tensor
    reading: TracedReading
    phi: Tensor
    total: Tensor
    certain: bool


def relevance(model: nn.Module, reading: TracedReading, images: Tensor, target: Tensor, method: str) -> Relevance:
    """Relevance of the float64 ``model``, whose places ``reading`` knows.

    Raises:
        Undecided: if there is a module in the model that no rule is written down for, or no such LayerNorm.
    """
    _check_known(model)
    asked = {token for row in reading.places[0].queries for token in row if token is not None}
    asking = sum(len(images) if token[0] == "slot" and token[1] is None else 1 for token in asked)
    entering: list[Tensor] = []
    begun: list[Tensor] = []

    def cut(number: int, product: AttentionProduct) -> Tensor:
        if not number:
            # The LayerNorm in front of the block has as many tokens as ask; one of pooled keys has fewer.
            fitting = [x for x in entering if x[..., 0].numel() == asking]
            begun.extend([x for x in fitting if x.dim() == 3] or fitting)  # else queries by head, normalised
        a, v = product.probabilities, product.value
        if method == "conservative":
            product.output = a.detach() @ v
        else:
            product.output = rules.half(a) @ rules.half(v)
        return product.output

    def enter(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if begun or inputs[0].dim() not in (3, 4) or inputs[0].shape[0] != len(images):
            return None
        entering.append(inputs[0])
        return None

    factor = rules.half if method == "attn_lrp" else _as_it_is
    images = images.detach().clone().requires_grad_()
    handles = [
        module.register_forward_pre_hook(enter)
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm) and "embed" not in name
    ]
    try:
        with torch.enable_grad(), _rules(model), attention_products(cut, factor) as products:
            torch.manual_seed(0)
            logits = logits_of(model(images))
    finally:
        for handle in handles:
            handle.remove()
    if not begun:
        raise Undecided("no LayerNorm of tokens stands in front of the first attention")
    phi = logits[torch.arange(len(logits)), target]
    outputs = [product.output for product in products]
    gradient, *at_outputs = torch.autograd.grad(phi.sum(), [begun[-1], *outputs], allow_unused=True)
    if gradient is None:
        raise Undecided("the output does not depend on what the first LayerNorm got")
    found = (begun[-1].detach() * gradient).sum(-1)  # (B, N) or (B, h, w)
    new = dataclasses.replace(
        reading,
        gradients=[
            None if g is None or not g.any() else rows_of(g @ p.value.detach().mT)
            for g, p in zip(at_outputs, products, strict=True)
        ],
        norms=[
            torch.zeros(rows_of(p.probabilities).shape[:2]) if g is None else rows_of(g).norm(dim=-1)
            for g, p in zip(at_outputs, products, strict=True)
        ],
    )
    cells, certain = _on_cells(found, reading)
    return Relevance(cells, new, phi.detach(), found.flatten(1).sum(1), certain)


def _as_it_is(factor: Tensor) -> Tensor:
    return factor


def _check_known(model: nn.Module) -> None:
    leaves = {type(module).__name__ for module in model.modules() if not list(module.children())}
    unknown = {name for name in leaves - _KNOWN if not name.endswith(("DropPath", "RelativePositionBias"))}
    if unknown:
        raise Undecided(f"no rule is written down for {', '.join(sorted(unknown))}")


def _on_cells(found: Tensor, reading: TracedReading) -> tuple[Tensor, bool]:
    """(B, N) or (B, h, w) on the grid of the first queries, by their places or in reading order; whether by places."""
    where = reading.places[0]
    if where.query_grid is None:
        raise Undecided("no query of the first attention lies on the image")
    height, width = where.query_grid
    if found.dim() == 2 and len(where.queries[0]) == found.shape[1]:
        cells = torch.zeros(len(found), height, width, dtype=found.dtype)
        for tokens in where.queries:
            for n, token in enumerate(tokens):
                if token is not None and token[0] == "cell":
                    cells[token[1], token[2], token[3]] = found[token[1], n]
        return cells, True
    if found[0].numel() != height * width:
        raise Undecided("other tokens ask in the first attention than those that enter the first block")
    return found.reshape(len(found), height, width), False


@contextlib.contextmanager
def _rules(model: nn.Module) -> Iterator[None]:
    handles, replaced = [], []
    sigmoid = torch.Tensor.sigmoid
    for child in model.modules():
        if isinstance(child, nn.LayerNorm):
            handles.append(child.register_forward_hook(_last_axis_norm))
        elif type(child).__name__ in _ACTIVATIONS:
            handles.append(child.register_forward_hook(rules._activation))
        elif isinstance(child, timm.layers.SwiGLU):
            replaced.append((child, "forward", rules._swiglu(child)))
        elif isinstance(child, timm.layers.GluMlp):
            replaced.append((child, "forward", rules._packed_swiglu(child)))
    try:
        with patched((torch.Tensor, "sigmoid", lambda x: sigmoid(x).detach()), *replaced):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _last_axis_norm(module: nn.LayerNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    if type(module).__name__ == "LayerNorm2d":  # of channels, (B, D, h, w)
        x = inputs[0].permute(0, 2, 3, 1)
        return rules._norm(module, (x,), output).permute(0, 3, 1, 2)
    return rules._norm(module, inputs, output)


def guided_relevance(found: Relevance) -> Tensor:
    """Half the share of positive relevance and half that of the gated positive guided map, on the finer grid."""
    attended = guided(found.reading, "positive")
    finer = max(found.tokens.shape[1:], attended.shape[1:], key=lambda grid: grid[0] * grid[1])
    tokens, attended = carried(found.tokens, tuple(finer)), carried(attended, tuple(finer))

    def share(cells: Tensor) -> Tensor:
        positive = cells.clamp(min=0)
        return positive / positive.sum((-2, -1), keepdim=True)

    r = rules.smoothed(tokens)
    gated = attended / (1 + torch.exp(-2 * r / r.square().mean((-2, -1), keepdim=True).sqrt()))
    return (share(tokens) + share(gated)) / 2
