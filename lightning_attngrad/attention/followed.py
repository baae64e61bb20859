"""What is known of the tensors of one pass that come from the images: where their elements lie, what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from lightning_attngrad.attention.place_table import PlaceTable

#: What mixes tokens where several become one that stays among the others.
FUSED = "fusing several into one (it then has no one place on the image)"


@dataclass(frozen=True, eq=False)
class Unseen:
    """Something by which tokens mix and that is no attention call that was seen.

    Attributes:
        module: of the model, whose forward did it.
        what: in words.
        kernel: whether it is an operation of its own, and may be an attention.
        bit: by which tensors remember that they depend on it.
    """

    module: str
    what: str
    kernel: bool
    bit: int


@dataclass(frozen=True, eq=False)
class SeenSoftmax:
    """A softmax over something of the image.

    Attributes:
        module: whose forward computed it.
        shape: of its probabilities.
        over_tokens: whether they differ by place: along the axis that it was taken over, or along others in an array
            that has axes for images, heads, queries and keys.
        bit: by which tensors remember that they depend on it.
    """

    module: str
    shape: tuple[int, ...]
    over_tokens: bool
    bit: int


class Followed:
    """Beside every tensor that comes from the images: an id of a place for each element, and a bit for each cause.

    Args:
        images: (B, C, H, W).
        calling_module: name of the innermost module whose forward is running.
        own: what the model has of itself: its parameters and buffers.
        modules: names of the model's modules.
        running_module: as ``calling_module``, and "" where that is the model itself.

    Attributes:
        batch: number of images.
        table: of the places.
        unseen: what mixes tokens unseen, in order.
        softmaxes: all that were taken of what comes from the images.
        chosen: whether tokens were picked by what the images hold, or by chance.
        choices: tensors of whole numbers that were.
        makers: by the family of places, the module that made what is mixed.
        on_image: bits of the calls that read tokens which lie on the image.
    """

    def __init__(
        self,
        images: Tensor,
        calling_module: Callable[[], str],
        own: Iterable[Tensor] = (),
        modules: Container[str] = (),
        running_module: Callable[[], str] = str,
    ) -> None:
        self.batch = len(images)
        self.table = PlaceTable(len(images), (images.shape[-2], images.shape[-1]), images.device)
        self.unseen: list[Unseen] = []
        self.softmaxes: list[SeenSoftmax] = []
        self.chosen = False
        self.choices: Any = WeakTensorKeyDictionary()
        self.makers: dict[int, str] = {}
        self.on_image = 0
        self._calling_module = calling_module
        self._modules = modules
        self._running_module = running_module
        self._ids: Any = WeakTensorKeyDictionary()
        self._reads: Any = WeakTensorKeyDictionary()  # a bit for each call, and each unseen mixing, it depends on
        self._bits = 1  # bit 0: comes from the images
        self._beside: Any = WeakTensorKeyDictionary()  # whether it has anything of what is given beside the images
        for tensor in (images, *own):
            self._beside[tensor] = False
        self.put(images, self.table.of_pixels())
        self.depend(images, 1)

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._ids

    def ids_of(self, tensor: Tensor) -> Tensor | None:
        """Ids of a tensor's elements; None where it has none."""
        ids: Tensor | None = self._ids.get(tensor)
        return ids

    def ids_or_nothing(self, tensor: Tensor) -> Tensor:
        """Ids of a tensor's elements, 0 where it has none."""
        ids = self.ids_of(tensor)
        return torch.zeros((), dtype=torch.int32, device=tensor.device).expand(tensor.shape) if ids is None else ids

    def put(self, tensor: Tensor, ids: Tensor | None) -> None:
        """Let a tensor have these ids, of a shape that expands to its own."""
        if ids is not None:
            self._ids[tensor] = ids.expand(tensor.shape)

    def reads(self, tensor: Tensor) -> int:
        """What a tensor depends on, a bit each; bit 0 are the images."""
        bits: int = self._reads.get(tensor, 0)
        return bits

    def depend(self, tensor: Tensor, bits: int) -> None:
        """Let a tensor depend on more."""
        self._reads[tensor] = self.reads(tensor) | bits

    def is_beside(self, tensor: Tensor) -> bool:
        """Whether a tensor has anything of what is given beside the images, such as another view of the scene.

        That is what comes neither from them, nor from the model's own numbers, nor from any written in its forward.
        """
        known: bool | None = self._beside.get(tensor)
        return not isinstance(tensor, nn.Parameter) if known is None else known

    def note_beside(self, tensor: Tensor, beside: bool) -> None:
        """A tensor was made, of what is given beside the images or not."""
        self._beside[tensor] = beside

    def new_bit(self) -> int:
        """A bit for something that tensors may depend on."""
        self._bits += 1
        return 1 << (self._bits - 1)

    def note_makers(self, families: int) -> None:
        """The module whose forward is running made all families of places since there were so many."""
        if self.table.families > families:
            self.makers.update(dict.fromkeys(range(families + 1, self.table.families + 1), self._running_module()))

    def maker_of(self, ids: Tensor) -> str | None:
        """The module that made what is mixed among these ids; None where it is not known."""
        lines = ids.long()
        families = torch.unique(self.table.family[lines[self.table.mixed[lines]]]).tolist()
        return next((self.makers[family] for family in families if family in self.makers), None)

    def named(self, module: str) -> str:
        """A module, or one of its calls, in a message; the model's own forward where it is none of the model's."""
        return repr(module) if module and module.split("#", maxsplit=1)[0] in self._modules else "its own forward"

    def report(self, what: str, *outputs: Any, module: str | None = None, kernel: bool = False) -> None:
        """Tokens mix unseen in what is computed right now, or in what another module made."""
        unseen = Unseen(self._running_module() if module is None else module, what, kernel, self.new_bit())
        self.unseen.append(unseen)
        for output in outputs:
            if isinstance(output, Tensor):
                self.depend(output, unseen.bit)

    def note_softmax(self, output: Tensor, *, over_tokens: bool) -> None:
        """A softmax was taken; its output depends on it."""
        softmax = SeenSoftmax(self._calling_module(), tuple(output.shape), over_tokens, self.new_bit())
        self.softmaxes.append(softmax)
        self.depend(output, softmax.bit)
