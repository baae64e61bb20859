"""The embedding of a model and the relevance there, by a tap alone: without knowing where anything lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_attngrad.attention import CONSERVATIVE, AttentionTap
from lightning_attngrad.attention.embedding import find_embedding
from lightning_attngrad.attention.rules import BackwardRules
from lightning_attngrad.state import held_still
from tests.zoo import logits_of


def number_of(model: nn.Module, images: Tensor) -> int | None:
    """By which a tap knows it, from a pass with a graph."""
    tap = AttentionTap(model, start="images")
    begin = tap.begin_at(images.clone())
    with tap:
        output = model(begin)
    return find_embedding(tap.numbered.nodes, [logits_of(output)], tap.first_reads)


def relevance(model: nn.Module, images: Tensor, rules: BackwardRules = CONSERVATIVE) -> tuple[Tensor, Tensor, Tensor]:
    """The embedding, embedding × gradient of class 1 summed over images, and that class's logits (B,)."""
    with held_still(model):
        number = number_of(model, images)
        assert number is not None
        with AttentionTap(model, start="embedding", rules=rules, embedding_number=number) as tap:
            output = logits_of(model(images))
        assert tap.embedding is not None
        (gradient,) = torch.autograd.grad(output[:, 1].sum(), tap.embedding)
        return tap.embedding.detach(), (tap.embedding * gradient).detach(), output[:, 1].detach()
