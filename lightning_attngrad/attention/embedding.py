"""Where in a forward pass relevance is measured: at the tensor through which all goes that the output has of the image.

In a transformer that is the tokens as they enter the first block, position included: what runs past a block along its
residual path comes from them as well. It is looked for in the graph of one forward pass, where no name of a family, no
normalisation, no number of dimensions plays a part. The graph ends at the output and begins at the image; a tensor that
every path between the two leads through is a *cut*. The embedding is

- the last cut in front of whatever the first attention call reads its queries, keys and values from: so not behind the
  linear map that makes them. Of a normalisation that casts or permutes its input, and of one that is written out, that
  is what it normalises, for the residual path leads past the rest;
- without attention the first feature map: what the first convolution or other linear map gives, once it is reordered
  and constants (position) are added.

A model in which no such tensor is (several towers, each with patches of its own) has no embedding.

How the same tensor is found in another forward pass of the same model on images of the same size, with a graph or
without: an :class:`AttentionTap` numbers the floating-point tensors that the functions of torch return to the model,
from 1. Those numbers depend on the model's code alone: not on rules, precision, or whether gradients are asked for. The
embedding is known by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


class NoEmbeddingError(ValueError):
    """The model has no one tensor at which relevance can be measured; its attention can be followed."""


class NumberedOutputs:
    """Numbers the floating-point tensors that the functions of torch return to a model, from 1.

    Args:
        embedding: the number of the embedding; None where it is not known, or not asked for.
        keep_nodes: whether to remember which node of the graph gave which number, for :func:`find_embedding`.

    Attributes:
        last: number of the last one.
        embedding: the tensor with that number, from which on there is a graph; None until then.
        nodes: number of the output that each node of the graph gave first.
    """

    def __init__(self, embedding: int | None = None, *, keep_nodes: bool = False) -> None:
        self.last = 0
        self.embedding: Tensor | None = None
        self.nodes: dict[Any, int] = {}
        self._number = embedding
        self._keep_nodes = keep_nodes
        self._numbers: Any = None

    def remember(self) -> None:
        """From now on :meth:`number_of` has an answer."""
        self._numbers = WeakTensorKeyDictionary()

    def number_of(self, tensor: Tensor) -> int | None:
        """Number of a tensor that the model holds; None where no function of torch gave it."""
        number: int | None = self._numbers.get(tensor)
        return number

    def __call__(self, output: Any) -> Any:
        """What the model gets for what a function returned: mostly that."""
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        given = self._number_next(output)
        if self._numbers is not None:
            self._numbers[given] = self.last
        return given

    def _number_next(self, output: Tensor) -> Tensor:
        self.last += 1
        if self._keep_nodes and output.requires_grad:
            self.nodes.setdefault(output.grad_fn, self.last)
        if self.last == self._number:
            self.embedding = output if output.requires_grad else output.requires_grad_()
            return output.clone()  # a residual path that works in place would change the embedding itself
        return output

    def release(self) -> None:
        """Let go of all tensors."""
        self.embedding = self._numbers = None
        self.nodes.clear()


def find_embedding(numbers: Mapping[Any, int], outputs: Sequence[Tensor], reads: Sequence[Tensor] | None) -> int | None:
    """The number of the embedding; None where there is none.

    Args:
        numbers: of the nodes of a graph that begins at the images.
        outputs: what the forward pass gave.
        reads: queries, keys and last the values of the first attention call; None without attention.
    """
    ends = [*outputs, *(reads or ())]
    order = _of_no_parameter(_later_first(node for tensor in ends if (node := node_of(tensor)) is not None))
    place = {node: index for index, node in enumerate(order)}
    cuts = list(_cuts(order, place, ends))
    first_map = next((index for index in range(len(order) - 1, -1, -1) if is_linear(order[index])), None)
    if first_map is None:
        return None
    if reads is None:
        candidates = list(_first_map(order, place, cuts, first_map))
    else:
        projection = next((place[node] for node in walk_graph(reads[-1]) if is_linear(node)), -1)
        if projection == first_map:  # the patches are cut and projected to values at once
            projection = -1
        candidates = [index for index in reversed(cuts) if projection < index <= first_map]
    return next((numbers[order[index]] for index in reversed(candidates) if order[index] in numbers), None)


def node_of(tensor: Tensor) -> Any:
    """Node of the graph that made a tensor, or that receives its gradient where the graph begins; None without."""
    return torch.autograd.graph.get_gradient_edge(tensor).node if tensor.requires_grad else None


def walk_graph(*tensors: Tensor) -> Iterator[Any]:
    """Nodes of the autograd graph behind ``tensors``, nearest first."""
    waiting, seen = [node_of(tensor) for tensor in tensors], set()
    for node in waiting:  # grows meanwhile
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting.extend(earlier for earlier, _ in node.next_functions)


_LINEAR = ("Convolution", "Addmm", "Mm", "Bmm", "Baddbmm", "Linear", "Mkldnn", "Mv", "Addmv")
#: Move elements, copy them, or add a constant to them.
_REORDERS = (
    "View",
    "UnsafeView",
    "ReshapeAlias",
    "Permute",
    "Transpose",
    "TBackward",
    "Clone",
    "ToCopy",
    "Unsqueeze",
    "Squeeze",
    "Expand",
    "Slice",
    "Cat",
    "Add",
    "Sub",
)


def is_linear(node: Any) -> bool:
    """Whether a node of the graph is a linear map or a convolution."""
    return bool(node.name().lstrip("_").startswith(_LINEAR))


def _later_first(ends: Iterable[Any]) -> list[Any]:
    """All nodes behind these, each in front of those that it was made from."""
    finished: list[Any] = []
    seen: set[Any] = set()
    for end in ends:
        waiting = [(end, iter(end.next_functions))] if end not in seen else []
        seen.add(end)
        while waiting:
            node, earlier = waiting[-1]
            following = next((before for before, _ in earlier if before is not None and before not in seen), None)
            if following is None:
                finished.append(node)
                waiting.pop()
            else:
                seen.add(following)
                waiting.append((following, iter(following.next_functions)))
    return finished[::-1]


def _cuts(order: Sequence[Any], place: Mapping[Any, int], ends: Sequence[Tensor]) -> Iterator[int]:
    """Which nodes every path from the end of the graph to its beginning leads through, the latest first."""
    reach = max((place[node] for tensor in ends if (node := node_of(tensor)) is not None), default=0)
    for index, node in enumerate(order):
        if reach <= index:
            yield index
        earlier = [place[before] for before, _ in node.next_functions if before in place]
        reach = max(reach, *earlier) if earlier else len(order)


def _of_no_parameter(order: Sequence[Any]) -> list[Any]:
    """Without nodes that come from parameters alone: those of a sharded model may require gradients, unsharded."""
    found: set[Any] = set()
    for node in reversed(order):
        leaf = getattr(node, "variable", None)
        if (leaf is not None and not isinstance(leaf, nn.Parameter)) or any(
            earlier in found for earlier, _ in node.next_functions
        ):
            found.add(node)
    return [node for node in order if node in found]


def _first_map(order: Sequence[Any], place: Mapping[Any, int], cuts: Sequence[int], first: int) -> Iterator[int]:
    """The first cut from a node on towards the end, and those behind it up to anything but reordering and constants."""
    following = [index for index in reversed(cuts) if index <= first]  # several convolutions may read the image
    for number, index in enumerate(following):
        node = order[index]
        single = sum(earlier in place for earlier, _ in node.next_functions) == 1
        if number and not (single and node.name().lstrip("_").startswith(_REORDERS)):
            return
        yield index
