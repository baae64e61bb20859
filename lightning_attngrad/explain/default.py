"""Which method answers where none is asked for: one that the model permits, and a sentence where it is not the first.

Relevance has to be measured somewhere. Where no embedding is found (several towers, or a path of the image past the
tokens), attention can still be followed by its gradient. A model without any attention (ResNet, ConvNeXt, MLP-Mixer)
has relevance alone: by the rules of ``attn_lrp``, which is the half of the default that is left. ``conservative``
differs from it where activations are multiplied; of the two, ``attn_lrp`` was the more faithful on photographs (METHODS
§3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from lightning_attngrad.attention import NoAttentionError, NoEmbeddingError, UnsupportedModelError

T = TypeVar("T")

#: The most faithful map at the price of one backward pass: docs/faithfulness.md has the figures.
DEFAULT_METHOD = "guided_relevance"
#: What stands in for it, by the error that it ends in.
STAND_INS: dict[type[ValueError], str] = {NoEmbeddingError: "gradient_guided", NoAttentionError: "attn_lrp"}


def default_method(model: nn.Module) -> str:
    """What a model is explained by where nothing is asked: a method of its own, where it or a part of it names one.

    A Hindered Transformer does (``explained_by = "patch_sum"``): its logit is a sum over patches.
    """
    if not isinstance(model, nn.Module):  # whoever runs it says so
        return DEFAULT_METHOD
    own = {name for part in model.modules() if isinstance(name := getattr(part, "explained_by", None), str)}
    return own.pop() if len(own) == 1 else DEFAULT_METHOD


def ask_by_default(ask: Callable[[str], T], model: nn.Module) -> tuple[T, str]:
    """Ask by the default method, and where the model does not permit it, by the one that stands in for it.

    Args:
        ask: from the name of a method to the answer.
        model: that is asked about.

    Returns:
        The answer, and what is to be said of it: which method stands in, why, and how to ask for it; else nothing.

    Raises:
        UnsupportedModelError: where there is no map by the other method either; errors of other kinds as they are.

    Example:
        >>> def ask(method):
        ...     if method == "guided_relevance":
        ...         raise NoAttentionError("PlainNet makes no attention call")
        ...     return f"a map by {method}"
        >>> class PlainNet(nn.Module): ...
        >>> answer, said = ask_by_default(ask, PlainNet())
        >>> answer
        'a map by attn_lrp'
        >>> print(said)
        PlainNet: maps are by 'attn_lrp', which stands in for the default 'guided_relevance' (method='attn_lrp' asks for it, and silences this). Why: PlainNet makes no attention call
    """  # noqa: E501  (one line is what is said)
    first, model_name = default_method(model), type(model).__name__
    if first != DEFAULT_METHOD:
        return ask(first), ""
    try:
        return ask(DEFAULT_METHOD), ""
    except tuple(STAND_INS) as error:
        method = next(name for kind, name in STAND_INS.items() if isinstance(error, kind))
        why = str(error)  # the error itself would hold on to all that was computed up to it
    try:
        answer = ask(method)
    except (UnsupportedModelError, NoEmbeddingError) as error:
        if str(error) == why:
            raise
        raise UnsupportedModelError(f"{why.removesuffix('.')}. Nor is there a map by {method!r}: {error}") from error
    return answer, (
        f"{model_name}: maps are by {method!r}, which stands in for the default {DEFAULT_METHOD!r} (method={method!r} "
        f"asks for it, and silences this). Why: {why}"
    )
