"""One attention layer in all the spellings that people write: read alike, moved alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_attngrad.attention import (
    ATTN_LRP,
    CONSERVATIVE,
    AttentionCall,
    AttentionTap,
    ExplicitAttentionCall,
    SeenAttention,
)

B, H, N, M, D = 2, 3, 5, 7, 4
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (B, H, N, D), (B, H, M, D), (B, H, M, D) → (B, H, N, D)


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.mT


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scores_of(query, key).softmax(-1) @ value


class Rearranged:
    """What a spelling's rows and heads are, where they are not (B, H): from (B, H, …) to its own (R, H, …)."""

    def __init__(self, attend: Attend, canonical: Callable[[Tensor], Tensor]) -> None:
        self.attend, self.canonical = attend, canonical


SPELLINGS: dict[str, Attend | Rearranged] = {}


def spelling(
    function: Attend | None = None, *, canonical: Callable[[Tensor], Tensor] | None = None
) -> Callable[[Attend], Attend]:
    def add(function: Attend) -> Attend:
        SPELLINGS[function.__name__] = function if canonical is None else Rearranged(function, canonical)
        return function

    return add if function is None else add(function)


def folded(tensor: Tensor) -> Tensor:
    """(B, H, …) with the heads in the rows, (B·H, 1, …)."""
    return tensor.flatten(0, 1).unsqueeze(1)


# The softmax -----------------------------------------------------------------------------------------------------


@spelling
def softmax_method(q, k, v):
    return scores_of(q, k).softmax(-1) @ v


@spelling
def softmax_functional(q, k, v):
    return F.softmax(scores_of(q, k), dim=-1) @ v


@spelling
def softmax_torch_by_number(q, k, v):
    return torch.softmax(scores_of(q, k), 3) @ v


@spelling
def softmax_module(q, k, v):
    return nn.Softmax(dim=-1)(scores_of(q, k)) @ v


@spelling
def softmax_special(q, k, v):
    return torch.special.softmax(scores_of(q, k), -1) @ v


@spelling
def log_softmax_exp(q, k, v):
    return F.log_softmax(scores_of(q, k), -1).exp() @ v


@spelling
def log_softmax_torch_exp(q, k, v):
    return torch.exp(scores_of(q, k).log_softmax(-1)) @ v


@spelling
def exponentials_over_their_sum(q, k, v):
    e = scores_of(q, k).exp()
    return (e / e.sum(dim=-1, keepdim=True)) @ v


@spelling
def exponentials_shifted(q, k, v):
    s = scores_of(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return torch.matmul(e.div(torch.sum(e, -1, keepdim=True)), v)


@spelling
def softmax_over_the_last_axis_but_one(q, k, v):
    a = (k @ q.mT).softmax(-2)  # (B, H, M, N)
    return a.mT @ v


@spelling
def softmax_over_the_last_axis_but_one_values_first(q, k, v):
    a = (k @ q.mT).softmax(dim=-2)
    return (v.mT @ a).mT


@spelling
def softmax_over_the_first_axis(q, k, v):
    a = torch.einsum("bhmd,bhnd->mbhn", k, q).softmax(0)
    return torch.einsum("mbhn,bhmd->bhnd", a, v)


# The product -------------------------------------------------------------------------------------------------------


@spelling
def product_matmul(q, k, v):
    return torch.matmul(scores_of(q, k).softmax(-1), v)


@spelling
def product_by_name(q, k, v):
    return torch.matmul(input=scores_of(q, k).softmax(-1), other=v)


@spelling
def product_method(q, k, v):
    return scores_of(q, k).softmax(-1).matmul(v)


@spelling
def product_values_first(q, k, v):
    return (v.mT @ scores_of(q, k).softmax(-1).mT).mT


@spelling
def product_values_first_transposed(q, k, v):
    return torch.matmul(v.transpose(2, 3), scores_of(q, k).softmax(-1).transpose(-2, -1)).transpose(2, 3)


@spelling(canonical=folded)
def product_bmm(q, k, v):
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    return torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).unflatten(0, (B, H))


@spelling(canonical=folded)
def product_bmm_method_by_name(q, k, v):
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    return q.bmm(k.mT).softmax(-1).bmm(mat2=v).unflatten(0, (B, H))


@spelling(canonical=folded)
def product_baddbmm(q, k, v):
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    zero = torch.zeros((), dtype=q.dtype)
    scores = torch.baddbmm(zero, q, k.mT)
    return torch.baddbmm(zero, scores.softmax(-1), v, beta=0.5).unflatten(0, (B, H))


@spelling
def softmax_unfolded_for_the_product(q, k, v):
    scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT)
    return scores.softmax(-1).view(B, H, N, M) @ v


@spelling(canonical=folded)
def softmax_folded_for_the_product(q, k, v):
    a = scores_of(q, k).softmax(-1).reshape(B * H, N, M)
    return torch.bmm(a, v.reshape(B * H, M, D)).view(B, H, N, D)


@spelling
def einsum(q, k, v):
    return torch.einsum("bhnm,bhmd->bhnd", torch.einsum("bhnd,bhmd->bhnm", q, k).softmax(-1), v)


@spelling
def einsum_values_first(q, k, v):
    return torch.einsum("bhmd,bhnm->bhnd", v, scores_of(q, k).softmax(-1))


@spelling
def einsum_of_a_list(q, k, v):
    return torch.einsum("b h n m, b h m d -> b h n d", [scores_of(q, k).softmax(-1), v])


@spelling
def einsum_by_numbers(q, k, v):
    return torch.einsum(scores_of(q, k).softmax(-1), [0, 1, 2, 3], v, [0, 1, 3, 4], [0, 1, 2, 4])


@spelling
def einsum_with_an_ellipsis(q, k, v):
    return torch.einsum("...nm,...md->...nd", scores_of(q, k).softmax(-1), v)


@spelling
def einsum_with_an_ellipsis_and_nothing_said(q, k, v):
    return torch.einsum("...ij,...jk", scores_of(q, k).softmax(-1), v)


@spelling
def einsum_tokens_first(q, k, v):
    q, k, v = (each.permute(2, 0, 1, 3) for each in (q, k, v))  # (N, B, H, D)
    a = torch.einsum("nbhd,mbhd->bhnm", q, k).softmax(-1)
    return torch.einsum("bhnm,mbhd->nbhd", a, v).permute(1, 2, 0, 3)


@spelling
def einsum_heads_last(q, k, v):
    a = torch.einsum("bhnd,bhmd->bnmh", q, k).softmax(2)
    return torch.einsum("bnmh,bhmd->bhnd", a, v)


@spelling
def einsum_to_tokens_and_channels(q, k, v):
    read = torch.einsum("bhnm,bhmd->bnhd", scores_of(q, k).softmax(-1), v).reshape(B, N, H * D)
    return read.view(B, N, H, D).transpose(1, 2)


@spelling(canonical=folded)
def five_axes(q, k, v):
    q, k, v = (each.unsqueeze(2) for each in (q, k, v))  # (B, H, 1, N, D): windows
    return ((q @ k.mT).softmax(-1) @ v).squeeze(2)


@spelling(canonical=folded)
def five_axes_fused(q, k, v):
    q, k, v = (each.unsqueeze(2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(2)


@spelling(canonical=folded)
def three_axes_fused(q, k, v):
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).unflatten(0, (B, H))


@spelling
def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


@spelling
def summed_by_hand(q, k, v):
    a = scores_of(q, k).softmax(-1)  # (B, H, N, M)
    return torch.stack([(a[:, :, n].unsqueeze(-1) * v).sum(2) for n in range(N)], dim=2)


# In between --------------------------------------------------------------------------------------------------------


@spelling
def copies(q, k, v):
    a = F.dropout(scores_of(q, k).softmax(-1), 0.1, training=False)
    return a.contiguous().clone().to(v.dtype).type_as(v).double() @ v


@spelling
def in_place(q, k, v):
    a = scores_of(q, k).softmax(-1)
    a *= 2
    a.div_(2)
    return a @ v


@spelling
def renormalised(q, k, v):
    a = scores_of(q, k).softmax(-1) * 3
    a /= a.sum(dim=-1).unsqueeze(-1)
    return a @ v


@spelling
def masked_with_nothing(q, k, v):
    a = scores_of(q, k).softmax(-1).masked_fill(torch.zeros(N, M, dtype=torch.bool), 0.0)
    return torch.where(torch.ones(N, M, dtype=torch.bool), a, torch.zeros_like(a)) @ v


@spelling
def mixed_of_two(q, k, v):
    a = scores_of(q, k).softmax(-1)
    gate = torch.sigmoid(torch.arange(H, dtype=v.dtype)).view(1, -1, 1, 1)
    return ((1 - gate) * a + gate * F.softmax(scores_of(q, k), -1)) @ v


@spelling
def over_heads_and_back(q, k, v):
    a = scores_of(q, k).softmax(-1).permute(0, 2, 3, 1)  # (B, N, M, H)
    a = F.linear(a, nn.Parameter(torch.eye(H, dtype=v.dtype)))
    return a.permute(0, 3, 1, 2) @ v


@spelling
def over_heads_by_einsum(q, k, v):
    mixing = nn.Parameter(torch.eye(H, dtype=v.dtype))
    a = torch.einsum("bhij,hg->bgij", scores_of(q, k).softmax(-1), mixing)
    return torch.einsum("bhij,bhjd->bhid", a, v)


@spelling
def over_heads_by_convolution(q, k, v):
    mixing = nn.Parameter(torch.eye(H, dtype=v.dtype).view(H, H, 1, 1))
    return F.conv2d(scores_of(q, k).softmax(-1), mixing) @ v


@spelling
def over_heads_flattened(q, k, v):
    a = scores_of(q, k).softmax(-1).flatten(2)  # (B, H, N·M)
    a = F.conv1d(a, nn.Parameter(torch.eye(H, dtype=v.dtype).view(H, H, 1)))
    return a.unflatten(2, (N, M)) @ v


@spelling
def cut_and_joined(q, k, v):
    first, second = scores_of(q, k).softmax(-1).chunk(2, dim=1)
    return torch.cat([first, second], dim=1) @ v


@spelling
def keys_in_two_axes(q, k, v):
    a = scores_of(q, k).softmax(-1).view(B, H, N, 1, M)
    return torch.einsum("bhnxy,bhxyd->bhnd", a, v.view(B, H, 1, M, D))


@spelling
def every_axis_moved(q, k, v):
    a = scores_of(q, k).softmax(-1)
    a = a.movedim(-1, 0).swapaxes(1, 2).transpose(0, 3)  # (N, H, B, M)
    return torch.einsum("nhbm,bhmd->bhnd", a.permute(0, 1, 2, 3), v)


SPELLINGS["every_axis_moved"] = Rearranged(every_axis_moved, lambda tensor: tensor.transpose(0, 1))


class Layer(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, k, v)


def tensors(grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(B, H, tokens, D, generator=generator, dtype=torch.float64).requires_grad_(grad)
        for tokens in (N, M, M)
    )


class Watcher:
    """Keeps what it was told, and how often a product was computed outside."""

    def __init__(self) -> None:
        self.seen: list[SeenAttention] = []
        self.inside = 0

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        self.inside += 1
        yield
        self.inside -= 1

    def attended(self, seen: SeenAttention) -> None:
        assert self.inside == 0
        self.seen.append(seen)

    def returned(self, number: int, output: Tensor) -> None:
        pass


def listen(tap: AttentionTap, output: Tensor, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Canonical probabilities, and their gradient rebuilt from what was delivered, of every call."""
    found: dict[int, Tensor] = {}

    def keep(call: AttentionCall, gradient: Tensor) -> None:
        found[id(call)] = call.attention_gradient(slice(0, call.shape[2]), gradient)

    tap.on_gradient = keep
    torch.autograd.grad((output * weights).sum(), [call.tensor for call in tap.calls])
    return [(call.attention(slice(0, call.shape[2])), found[id(call)]) for call in tap.calls]


@pytest.mark.parametrize("name", SPELLINGS)
def test_probabilities_and_their_gradient_are_those_of_the_plain_layer(name: str) -> None:
    spelt = SPELLINGS[name]
    attend, canonical = (spelt.attend, spelt.canonical) if isinstance(spelt, Rearranged) else (spelt, lambda t: t)
    q, k, v = tensors()
    weights = torch.randn(B, H, N, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probabilities, gradient = scores_of(q, k).softmax(-1), weights @ v.mT  # by their definitions
    with AttentionTap(Layer(attend), start="attention") as tap:
        output = attend(q, k, v)
    torch.testing.assert_close(output, plain(q, k, v))
    assert not tap.unread_softmaxes
    read = listen(tap, output, weights)
    if name == "summed_by_hand":  # a call for each query
        assert [call.shape for call in tap.calls] == [(B, H, 1, M)] * N
        read = [tuple(torch.cat(parts, dim=2) for parts in zip(*read, strict=True))]
    ((seen_probabilities, seen_gradient),) = read
    torch.testing.assert_close(seen_probabilities, canonical(probabilities), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen_gradient, canonical(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_watcher_can_move_anything_as_the_model_moves_tokens(name: str) -> None:
    spelt = SPELLINGS[name]
    attend, canonical = (spelt.attend, spelt.canonical) if isinstance(spelt, Rearranged) else (spelt, lambda t: t)
    q, k, v = tensors()
    watcher = Watcher()
    with AttentionTap(Layer(attend), watcher=watcher) as tap, torch.no_grad():
        expected = attend(q, k, v)
    assert [seen.call for seen in watcher.seen] == tap.calls
    if name == "summed_by_hand":
        return
    (seen,) = watcher.seen
    rows, heads, queries, _keys = seen.call.shape
    # The three functions hold the layer together: what they lay out, multiplied, is what the model gets.
    values = seen.of_keys(seen.value)
    torch.testing.assert_close(values, canonical(v))
    probabilities = seen.call.attention(slice(0, queries))
    torch.testing.assert_close(seen.to_output(probabilities @ values), seen.output)
    # A number for each query goes where the model's output has that query.
    number = torch.arange(rows * heads * queries, dtype=torch.int32).view(rows, heads, queries, 1)
    landed = seen.to_output(number.expand(-1, -1, -1, D))
    assert landed.shape == seen.output.shape
    of_number = dict(zip(number.flatten().tolist(), (probabilities @ values).flatten(0, 2).unbind(), strict=True))
    for place in torch.cartesian_prod(*(torch.arange(size) for size in landed.shape)).tolist():
        token = of_number[int(landed[tuple(place)])]
        assert bool(torch.isclose(token, seen.output[tuple(place)]).any())
    assert seen.of_rows(torch.zeros_like(seen.asks, dtype=torch.int32)).shape[:3] == (rows, heads, queries)
    assert seen.of_rows(torch.zeros_like(seen.asks, dtype=torch.int32)).dtype == torch.int32
    torch.testing.assert_close(expected, plain(q, k, v))


# Grouped, shared, or spread over axes -------------------------------------------------------------------------------


def read_of(
    attend: Callable[..., Tensor], *inputs: Tensor, start: str | None = None, **options: object
) -> AttentionTap:
    with AttentionTap(Layer(attend), start=start, **options) as tap:
        attend(*inputs)
    return tap


def grouped_fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=1.0, enable_gqa=True)


def grouped_repeated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (each.repeat_interleave(H // each.shape[1], dim=1) for each in (k, v))
    return plain(q, k, v)


def one_group_broadcast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT).softmax(-1) @ v  # k and v have a single head


def one_group_by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    a = torch.einsum("bhnd,bmd->bhnm", q, k[:, 0]).softmax(-1)
    return torch.einsum("bhnm,bmd->bhnd", a, v[:, 0])


@pytest.mark.parametrize("attend", [grouped_fused, grouped_repeated, one_group_broadcast, one_group_by_einsum])
def test_heads_that_share_their_keys_and_values(attend: Attend) -> None:
    q, k, v = tensors()
    k, v = k[:, :1], v[:, :1]
    watcher = Watcher()
    weights = torch.randn(B, H, N, D, dtype=torch.float64)
    with AttentionTap(Layer(attend), start="attention", watcher=watcher) as tap:
        output = attend(q, k, v)
    ((probabilities, gradient),) = listen(tap, output, weights)
    torch.testing.assert_close(probabilities, (q @ k.mT).softmax(-1))
    torch.testing.assert_close(gradient, (weights @ v.mT))
    (seen,) = watcher.seen
    assert seen.of_keys(seen.value).shape == (B, H, M, D)
    torch.testing.assert_close(seen.of_keys(seen.value), v.expand(B, H, M, D))


@pytest.mark.parametrize(
    "multiply",
    [
        lambda a, v: a @ v,
        lambda a, v: (v.mT @ a.mT).mT,
        lambda a, v: torch.einsum("nm,bhmd->bhnd", a[0, 0], v),
        lambda a, v: torch.einsum("hnm,bhmd->bhnd", a[0].expand(H, -1, -1), v),
        lambda a, v: a[0, 0] @ v,
    ],
)
def test_probabilities_that_images_share_get_a_gradient_for_each(multiply: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A positional attention is the same for every image, what its rows are worth is not."""
    position = torch.randn(1, 1, N, M, dtype=torch.float64)
    v = tensors()[2]
    weights = torch.randn(B, H, N, D, dtype=torch.float64)
    attend = lambda v: multiply(position.softmax(-1), v)  # noqa: E731
    with AttentionTap(Layer(attend), start="attention") as tap:
        output = attend(v)
    torch.testing.assert_close(output, position.softmax(-1) @ v)
    ((probabilities, gradient),) = listen(tap, output, weights)
    expected = weights @ v.mT  # (B, H, N, M)
    if probabilities.shape[1] == 1:
        expected = expected.sum(dim=1, keepdim=True)  # heads that count as channels
    torch.testing.assert_close(probabilities, position.softmax(-1).expand_as(expected))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    "pool",
    [
        lambda s, x: (s.softmax(1) * x).sum(1),
        lambda s, x: (x * s.softmax(dim=1)).sum(dim=1, keepdim=True),
        lambda s, x: torch.sum(torch.mul(x, F.softmax(s, 1)), 1),
        lambda s, x: torch.bmm(s.softmax(1).transpose(1, 2), x),
        lambda s, x: (s.softmax(1).mT @ x).squeeze(1),
        lambda s, x: torch.einsum("bn,bnd->bd", s.squeeze(-1).softmax(-1), x),
        lambda s, x: torch.einsum("bno,bnd->bod", s.softmax(1), x),
        lambda s, x: x.mT.unsqueeze(1) @ s.mT.softmax(-1).unsqueeze(3),  # as a global context block
    ],
)
def test_pooling_by_attention(pool: Callable[[Tensor, Tensor], Tensor]) -> None:
    scores = torch.randn(B, M, 1, dtype=torch.float64)
    tokens = torch.randn(B, M, D, dtype=torch.float64)
    weights = torch.randn(B, D, dtype=torch.float64)
    watcher = Watcher()
    with AttentionTap(Layer(pool), start="attention", watcher=watcher) as tap:
        output = pool(scores, tokens)
    assert not tap.unread_softmaxes
    ((probabilities, gradient),) = listen(tap, output.reshape(B, D), weights)
    torch.testing.assert_close(probabilities, scores.softmax(1).view(B, 1, 1, M))
    torch.testing.assert_close(gradient, (tokens @ weights.unsqueeze(-1)).view(B, 1, 1, M))
    (seen,) = watcher.seen
    torch.testing.assert_close(seen.of_keys(seen.value), tokens.unsqueeze(1))
    torch.testing.assert_close(seen.to_output(probabilities @ seen.of_keys(seen.value)), seen.output)


def test_separable_attention_of_mobilevit_v2() -> None:
    scores, key = torch.randn(B, 1, 4, M), torch.randn(B, D, 4, M)
    tap = read_of(lambda s, k: (F.softmax(s, dim=-1) * k).sum(dim=-1, keepdim=True), scores, key)
    (call,) = tap.calls
    torch.testing.assert_close(call.attention(slice(0, 1)), scores.softmax(-1).transpose(1, 2))  # (B, P, 1, M)


def test_channel_attention_is_a_call_like_any_other() -> None:
    _q, k, v = tensors()
    tap = read_of(lambda q, k, v: (q.mT @ k).softmax(-1) @ v.mT, k, k, v)
    (call,) = tap.calls
    assert call.shape == (B, H, D, D)


def test_slots_that_compete_for_tokens_are_read_by_what_is_normalised_last() -> None:
    """Slot attention: softmax over the slots, then the tokens of each slot are made to add up to 1."""

    def slots(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = scores_of(q, k).softmax(dim=-2)
        return (a / a.sum(dim=-1, keepdim=True)) @ v

    q, k, v = tensors()
    (call,) = read_of(slots, q, k, v).calls
    a = scores_of(q, k).softmax(dim=-2)
    torch.testing.assert_close(call.attention(slice(0, N)), a / a.sum(dim=-1, keepdim=True))


def test_an_attention_on_an_attention_is_one_matrix() -> None:
    def twice(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scores_of(q, q).softmax(-1) @ scores_of(q, k).softmax(-1) @ v

    q, k, v = tensors()
    tap = read_of(twice, q, k, v)
    (call,) = tap.calls
    assert not tap.unread_softmaxes
    torch.testing.assert_close(call.attention(slice(0, N)), scores_of(q, q).softmax(-1) @ scores_of(q, k).softmax(-1))


@pytest.mark.parametrize("heads", ["linear", "einsum", "convolution", "norm"])
def test_what_mixes_heads_is_part_of_the_attention(heads: str) -> None:
    torch.manual_seed(0)
    mixing = nn.Parameter(torch.rand(H, H, dtype=torch.float64))

    def mix(a: Tensor) -> Tensor:
        if heads == "linear":
            return F.linear(a.permute(0, 2, 3, 1), mixing).permute(0, 3, 1, 2)
        if heads == "einsum":
            return torch.einsum("bhij,gh->bgij", a, mixing)
        if heads == "convolution":
            return F.conv2d(a, mixing[..., None, None])
        return F.layer_norm(a.permute(0, 2, 3, 1), (H,)).permute(0, 3, 1, 2)

    q, k, v = tensors()
    (call,) = read_of(lambda q, k, v: mix(scores_of(q, k).softmax(-1)) @ v, q, k, v).calls
    torch.testing.assert_close(call.attention(slice(0, N)), mix(scores_of(q, k).softmax(-1)))


def test_a_mixture_of_content_and_position() -> None:
    """As ConViT does it."""
    position, gate = torch.randn(1, H, N, M, dtype=torch.float64), torch.randn(H, dtype=torch.float64)

    def matrix(q: Tensor, k: Tensor) -> Tensor:
        by_position = F.softmax(position.expand(B, -1, -1, -1), dim=-1)
        share = torch.sigmoid(gate.view(1, -1, 1, 1))
        a = (1.0 - share) * F.softmax(scores_of(q, k), dim=-1) + share * by_position
        a /= a.sum(dim=-1).unsqueeze(-1)
        return F.dropout(a, 0.0)

    q, k, v = tensors()
    tap = read_of(lambda q, k, v: matrix(q, k) @ v, q, k, v)
    (call,) = tap.calls
    assert not tap.unread_softmaxes
    torch.testing.assert_close(call.attention(slice(0, N)), matrix(q, k))


def test_one_attention_that_reads_two_values_is_two_calls_with_a_gradient_each() -> None:
    q, k, v = tensors()

    def both(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = scores_of(q, k).softmax(-1)
        return a @ v + 2 * (a @ v.flip(-1))

    weights = torch.randn(B, H, N, D, dtype=torch.float64)
    with AttentionTap(Layer(both), start="attention") as tap:
        output = both(q, k, v)
    (_, first), (_, second) = listen(tap, output, weights)
    torch.testing.assert_close(first, weights @ v.mT)
    torch.testing.assert_close(second, 2 * weights @ v.flip(-1).mT)


def test_every_branch_begins_a_graph_of_its_own() -> None:
    q, k, v = tensors()
    with AttentionTap(Layer(plain), start="attention") as tap:
        output = plain(q, k, v) + fused(q, k, v)
    assert len(tap.beginnings) == len(tap.calls) == 2
    assert all(tensor is call.tensor for tensor, call in zip(tap.beginnings, tap.calls, strict=True))
    gradients = torch.autograd.grad(output.sum(), tap.beginnings)
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


@pytest.mark.parametrize("rules", [CONSERVATIVE, ATTN_LRP], ids=["constant", "uniform"])
@pytest.mark.parametrize("name", ["product_values_first", "einsum_of_a_list", "product_bmm", "summed_by_hand"])
def test_rules_are_those_of_the_plain_product(name: str, rules: object) -> None:
    spelt = SPELLINGS[name]
    attend = spelt.attend if isinstance(spelt, Rearranged) else spelt

    def gradients(attend: Attend) -> tuple[Tensor, ...]:
        inputs = tensors(grad=True)
        with AttentionTap(Layer(attend), start="embedding", rules=rules):
            output = attend(*inputs)
        return torch.autograd.grad(output.square().sum(), inputs, allow_unused=True, materialize_grads=True)

    for one, other in zip(gradients(attend), gradients(plain), strict=True):
        torch.testing.assert_close(one, other)


# What is no attention, and what cannot be read ------------------------------------------------------------------------


class Branches(nn.Module):
    """Split attention: two branches, each a map (B, C, h, w), gated by a softmax over them."""

    def forward(self, x: Tensor) -> Tensor:  # (B, 2, C, h, w)
        gates = x.mean((3, 4), keepdim=True).softmax(dim=1)
        return (x * gates).sum(dim=1)


NO_ATTENTION = {
    "class probabilities": lambda x: x.flatten(1).softmax(-1),
    "entropy": lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1).mean(),
    "segmentation": lambda x: x.softmax(1),
    "gates of tokens": lambda x: x * x.mean(-1, keepdim=True).softmax(2) + x,
    "gated, then a linear layer": lambda x: F.linear(x * x.softmax(-1), nn.Parameter(torch.ones(4, 4))) @ x.mT,
    "gated over tokens, then a linear layer": lambda x: (
        F.linear(x * x.softmax(2), nn.Parameter(torch.ones(4, 4))).mT @ x
    ),
    "gated, then a convolution": lambda x: F.conv2d(x * x.softmax(-1), nn.Parameter(torch.ones(3, 3, 1, 1))) @ x.mT,
    "soft argmax": lambda x: (x.softmax(-1) * torch.arange(4.0)).sum(-1),
    "soft argmax by a layer": lambda x: F.linear(x.softmax(-1), nn.Parameter(torch.ones(1, 4))),
    "a code book": lambda x: x.softmax(-1) @ nn.Parameter(torch.ones(4, 6)),
    "branches": lambda x: Branches()(x.unsqueeze(1).expand(-1, 2, -1, -1, -1)),
}


@pytest.mark.parametrize("name", NO_ATTENTION)
def test_no_attention_is_neither_read_nor_reported(name: str) -> None:
    tap = read_of(NO_ATTENTION[name], torch.randn(2, 3, 5, 4))
    assert tap.calls == []
    assert tap.unread_softmaxes == ()


def nystrom(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    landmarks = q[:, :, :3]
    first, second = (q @ landmarks.mT).softmax(-1), (landmarks @ landmarks.mT).softmax(-1)
    inverse = second.mT
    for _ in range(2):
        product = second @ inverse
        inverse = 2 * inverse - inverse @ product
    return first @ inverse @ ((landmarks @ k.mT).softmax(-1) @ v)


def per_channel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (k.softmax(dim=2) * v).sum(dim=2)


def kernel_feature_maps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.softmax(-1) @ (k.softmax(-1).mT @ v)


@pytest.mark.parametrize(
    ("attend", "met"),
    [
        (nystrom, "matmul"),
        (per_channel, "sum"),
        (kernel_feature_maps, "matmul"),
        (lambda q, k, v: torch.einsum("bhnm,bhmd,de->bhne", scores_of(q, k).softmax(-1), v, v[0, 0, :D]), "einsum"),
        (lambda q, k, v: (scores_of(q, k).softmax(-1) + scores_of(q, k).softmax(-2)) @ v, "add"),
        (lambda q, k, v: torch.cdist(scores_of(q, k).softmax(-1), v.mT), "cdist"),
    ],
    ids=["nystrom", "per channel", "feature maps", "three at once", "rows and columns", "another function"],
)
def test_what_cannot_be_read_is_told(attend: Attend, met: str) -> None:
    tap = read_of(attend, *tensors())
    assert {unread.met for unread in tap.unread_softmaxes} == {met}
    assert all(len(unread.shape) == 4 and unread.calls_before <= 1 for unread in tap.unread_softmaxes)


def test_a_square_softmax_that_met_nothing_seen_is_told() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, a: Tensor, v: Tensor) -> Tensor:
            return torch.from_numpy(a.numpy() @ v.numpy())

    _, k, v = tensors()
    tap = read_of(lambda k, v: Hidden.apply((k @ k.mT).softmax(-1), v), k, v)
    (unread,) = tap.unread_softmaxes
    assert (unread.shape, unread.axis, unread.met, unread.calls_before) == ((B, H, M, M), 3, None, 0)


def test_attention_inside_a_function_of_its_own_is_recorded_without_a_graph() -> None:
    class Inside(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return plain(q, k, v)

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> tuple[None, None, Tensor]:
            return None, None, torch.zeros(B, H, M, D)

    tap = read_of(Inside.apply, *tensors(grad=True), start="attention")
    (call,) = tap.calls
    assert not call.tensor.requires_grad
    assert tap.beginnings == []


def test_nothing_is_kept_alive_but_the_calls() -> None:
    import gc
    import weakref

    kept: list[weakref.ref[Tensor]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        a = scores_of(q, k).softmax(-1)
        kept.append(weakref.ref(a))
        return a.sum(dim=-2)

    tap = read_of(attend, *tensors())
    gc.collect()
    assert kept[0]() is None
    assert tap.calls == []


# Scores that are moved -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax_method", "product_bmm", "five_axes", "five_axes_fused", "copies", "fused"])
def test_scores_can_be_moved_where_the_attention_is_their_softmax(name: str) -> None:
    spelt = SPELLINGS[name]
    attend, canonical = (spelt.attend, spelt.canonical) if isinstance(spelt, Rearranged) else (spelt, lambda t: t)
    q, k, v = tensors()
    offset = torch.randn(B, H, N, M, dtype=torch.float64)
    with AttentionTap(Layer(attend), score_offsets=[canonical(offset)]):
        output = attend(q, k, v)
    torch.testing.assert_close(output, (scores_of(q, k) + offset).softmax(-1) @ v)


@pytest.mark.parametrize(
    "name",
    [
        "product_values_first",
        "renormalised",
        "over_heads_by_einsum",
        "einsum_heads_last",
        "log_softmax_exp",
        "mixed_of_two",
    ],
)
def test_scores_cannot_be_moved_elsewhere(name: str) -> None:
    spelt = SPELLINGS[name]
    attend = spelt.attend if isinstance(spelt, Rearranged) else spelt
    offset = torch.randn(B, H, N, M, dtype=torch.float64)
    with AttentionTap(Layer(attend), score_offsets=[offset]), pytest.raises(ValueError, match="leave this layer out"):
        attend(*tensors())


def test_parts_of_a_call_are_those_of_the_call() -> None:
    q, k, v = tensors()
    for attend in (einsum_heads_last, five_axes_fused, grouped_fused):
        (call,) = read_of(attend, q, k, v).calls
        whole = call.attention(slice(0, N))
        images, heads = slice(1, None), slice(0, 1)
        torch.testing.assert_close(call.part(images, heads).attention(slice(0, N)), whole[images, heads])
    assert isinstance(read_of(einsum, q, k, v).calls[0], ExplicitAttentionCall)
