"""What stands in the way of a map of a model's attention, in words that are true of this model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_attngrad.attention.followed import Followed
from lightning_attngrad.attention.places import Grid, NoAttentionError, UnsupportedModelError
from lightning_attngrad.attention.weights import UnreadSoftmax

_SWITCH = (
    "If it is a fused attention kernel (xformers, flash-attn, flex attention, a custom operation), let the model use "
    'torch\'s own: attn_implementation="sdpa" in Hugging Face, fused_attn in timm'
)
_RELEVANCE = "The methods attn_lrp, conservative and grad_cam follow the gradient alone"


@dataclass(frozen=True)
class ReachedCall:
    """An attention call that the output depends on.

    Attributes:
        name: of the call.
        kind: as :class:`~lightning_attngrad.attention.places.CallPlaces` has it.
        reason: why its tokens are not placed; None where they are.
    """

    name: str
    kind: Literal["tokens", "channels", "elsewhere"]
    reason: str | None


def find_obstacle(
    model_name: str,
    followed: Followed,
    answer: int,
    reached: Sequence[ReachedCall],
    unread: Sequence[UnreadSoftmax],
    grid: Grid | None,
    *,
    has_embedding: bool,
) -> UnsupportedModelError | None:
    """The first thing that stands in the way; None where nothing does.

    Args:
        model_name: for messages.
        followed: after the traced pass.
        answer: bits of what the output depends on.
        reached: the calls that it depends on, in order.
        unread: softmaxes that no attention call was made of.
        grid: the finest of the calls' keys.
        has_embedding: whether relevance can be measured, and may be advised.
    """
    said = (
        _several_images(followed)
        or _unread_softmax(followed, answer, unread)
        or _unseen_mixing(followed, answer, reached)
        or next((f": {followed.named(call.name)} {call.reason}" for call in reached if call.reason is not None), None)
    )
    said = said or _nothing_to_draw(reached, grid)
    if said is None:
        return None
    kind = UnsupportedModelError if said.startswith(":") else NoAttentionError
    return kind(f"{model_name}{said}{'. ' + _RELEVANCE if has_embedding else ''}")


# Each says nothing, or what is said behind the model's name: with a colon; or, where there is no attention, a verb.


def _several_images(followed: Followed) -> str | None:
    return ": it mixes the images of a batch; give it one image at a time" if followed.table.several_images else None


def _unread_softmax(followed: Followed, answer: int, unread: Sequence[UnreadSoftmax]) -> str | None:
    over_tokens = {(one.module, one.shape) for one in followed.softmaxes if one.over_tokens and one.bit & answer}
    changed = next((one for one in unread if (one.name, one.shape) in over_tokens), None)
    if changed is None:
        return None
    how = f"meets other tensors in {changed.met}" if changed.met else "meets no values that are seen"
    return (
        f": the softmax in {followed.named(changed.name)} {how}, and not values in a matrix product, so its attention "
        f"cannot be read. {_SWITCH}"
    )


def _unseen_mixing(followed: Followed, answer: int, reached: Sequence[ReachedCall]) -> str | None:
    unseen = [one for one in followed.unseen if one.bit & answer]
    if not unseen:
        return None
    first = unseen[0]
    where = followed.named(first.module)
    if not any(call.kind == "tokens" for call in reached) and not any(one.kernel for one in unseen):
        return (
            f" makes no softmax attention over image tokens (in {where} they mix by {first.what}): there is no map of "
            "its attention"
        )
    switch = f". {_SWITCH}" if first.kernel else ""
    return f": in {where} tokens mix by {first.what}, which a map of the attention cannot follow{switch}"


def _nothing_to_draw(reached: Sequence[ReachedCall], grid: Grid | None) -> str | None:
    if not any(call.kind == "tokens" for call in reached):
        channels = next((call.name for call in reached if call.kind == "channels"), None)
        what = f"attends over channels only ({channels!r})" if channels else "makes no attention call over image tokens"
        return f" {what}: there is no map of its attention"
    return ": none of the tokens that it attends to can be traced to pixels" if grid is None else None
