"""Outputs that are probabilities already: a model that ends in a sigmoid or a softmax."""

from __future__ import annotations

from torch import Tensor

#: Steps of the graph that leave every value as it is, or as near as makes no difference.
_SAME_VALUES = (
    "ActivationBackward",  # a clamp, under rules of relevance
    "AliasBackward",
    "ClampBackward",
    "CloneBackward",
    "ExpandBackward",
    "PermuteBackward",
    "ReshapeAliasBackward",
    "SelectBackward",
    "SliceBackward",
    "SqueezeBackward",
    "TBackward",
    "ToCopyBackward",
    "TransposeBackward",
    "UnsafeViewBackward",
    "UnsqueezeBackward",
    "ViewBackward",
)
#: And those that make probabilities, with what undoes them; a sigmoid under rules of relevance is a gate.
_SQUASHING = {
    "SoftmaxBackward": ("softmax", "log"),
    "SigmoidBackward": ("sigmoid", "logit"),
    "HardsigmoidBackward": ("sigmoid", "logit"),
    "GateBackward": ("sigmoid", "logit"),
}


def refuse_probabilities(scores: Tensor) -> None:
    """Refuse outputs that come out of a sigmoid or a softmax, where scores in front of it are meant.

    Taken for scores, a probability of 0.3 would be read as class 1 (it is above 0), and be squashed once more for
    captions and curves; and where a softmax is sure of itself, there is no gradient to explain or to rewrite by. Read
    off the graph, not off the values: those of an untrained model lie between 0 and 1 by accident. So it sees nothing
    where there is no graph.

    Args:
        scores: any shape, as the model gave them.

    Raises:
        ValueError: with the line that gives the scores.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 3, requires_grad=True)
        >>> refuse_probabilities(logits.exp())
        >>> refuse_probabilities(logits.softmax(dim=1))
        Traceback (most recent call last):
        ...
        ValueError: model: its output comes out of a softmax: it is probabilities already, and expected are...
    """
    step = scores.grad_fn
    while step is not None and step.name().rstrip("0123456789") in _SAME_VALUES:
        step = step.next_functions[0][0] if step.next_functions else None
    found = None if step is None else _SQUASHING.get(step.name().rstrip("0123456789"))
    if found is not None:
        squashing, undone = found
        raise ValueError(
            f"model: its output comes out of a {squashing}: it is probabilities already, and expected are the "
            "scores in front of it (logits). Let forward() return those; or, of a tensor, undo it with "
            f"ProbeImages(forward=lambda model, images: model(images).{undone}()), in explain and rewrite "
            f"forward=lambda images: model(images).{undone}(); or say task='regression' to explain the probability as "
            "a mere number"
        )
