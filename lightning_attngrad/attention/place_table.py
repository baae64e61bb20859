"""Places of an image by number: the boxes of pixels that elements of tensors stand for.

Every element of a tensor carries one number (int32): 0 stands for nothing, any other for a line of the table: a box
of pixels of one image, or a token that lies nowhere on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Boxes are the same place up to so much of the larger one's size: a shortcut and the branch beside it differ by that.
_SAME = 0.3
#: Two places are read at one point up to so much of the larger box's size.
_MIDDLE = 0.05
#: A box is larger than another from so many times its size.
_LARGER = 1.5


class PlaceTable:
    """The table of one pass of B images (H, W). It grows by a family of places wherever a model makes new tokens.

    Attributes:
        boxes: (E, 4) top, bottom, left, right edges in pixels: parts that tile what is seen.
        middles: (E, 2) row and column in pixels of the middle of what is read: of an overlapping or padded window that
            is not the middle of its box.
        image: (E,) image of the batch.
        slot: (E,) number of a token that lies nowhere; −1 for a box.
        family: (E,) which step of the model made it; 0 are the pixels.
        size: height and width of the images in pixels.
        families: how many steps made new places.
        several_images: whether elements of several images were joined one by one.
        mixed: (E,) bool: made by a product of tokens with tokens, or with weights of the whole image.
        source: (E,) of which line it is a copy; itself, where it is none.
    """

    def __init__(self, batch: int, size: tuple[int, int], device: torch.device) -> None:
        self._batch, self.size = batch, size
        self._height, self._width = size
        rows = torch.arange(self._height, device=device, dtype=torch.float32)
        columns = torch.arange(self._width, device=device, dtype=torch.float32)
        shape = (batch, self._height, self._width)
        top, left = rows[:, None].expand(shape).flatten(), columns.expand(shape).flatten()
        self._no_box = torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf], device=device)
        self.boxes = torch.cat([torch.zeros(1, 4, device=device), torch.stack([top, top + 1, left, left + 1], dim=1)])
        image = torch.arange(batch, device=device, dtype=torch.int32)[:, None, None].expand(shape).flatten()
        self.middles = _centre(self.boxes)
        self.image = torch.cat([image[:1], image])
        self.slot = torch.full_like(self.image, -1)
        self.family = torch.zeros_like(self.image)
        self.mixed = torch.zeros_like(self.image, dtype=torch.bool)
        self.source = torch.arange(len(self.image), device=device)
        self.families = 0
        self.slots = 0
        self.several_images = False
        self._resampled: list[int] = []  # families

    def of_pixels(self) -> Tensor:
        """Ids of the pixels, (B, 1, H, W)."""
        count = self._batch * self._height * self._width
        ids = torch.arange(1, count + 1, device=self.image.device, dtype=torch.int32)
        return ids.view(self._batch, 1, self._height, self._width)

    def new_boxes(
        self, boxes: Tensor, image: Tensor, mixed: Tensor | bool = False, middles: Tensor | None = None
    ) -> Tensor:
        """Ids (…) of a new family of boxes (…, 4) of images (…). Equal boxes are one place; an empty box is nothing.

        ``middles`` (…, 2) of what is read there; those of the boxes where it is None or not finite.
        """
        real = boxes[..., 1] > boxes[..., 0]
        lines = torch.cat([boxes, image.unsqueeze(-1).to(boxes.dtype)], dim=-1)[real]
        flags = torch.full_like(lines[:, 0], mixed, dtype=torch.bool) if isinstance(mixed, bool) else mixed[real]
        ids = torch.zeros(real.shape, dtype=torch.int32, device=real.device)
        if not len(lines):
            return ids
        different, places = torch.unique(_digest(lines), return_inverse=True)
        example = torch.zeros_like(different)
        example[places] = torch.arange(len(lines), device=lines.device)  # any of those that are equal
        ids[real] = (places + len(self.image)).int()
        self.families += 1
        lines = lines[example]
        of_boxes = _centre(lines[:, :4])
        if middles is not None:
            read = middles[real][example]
            of_boxes = torch.where(read.isfinite(), read, of_boxes)
        self._extend(lines[:, :4], lines[:, 4].int(), -1, flags[example], of_boxes)
        return ids

    def new_slots(self, images: Tensor, count: int, *, mixed: bool = False) -> Tensor:
        """Ids (…, count) of new tokens that lie nowhere, of images (…): int32, −1 for none.

        ``mixed``: they are made of tokens, and asked by none.
        """
        device = images.device
        numbers = torch.arange(self.slots, self.slots + count, device=device, dtype=torch.int32)
        start = len(self.image)
        image = torch.arange(self._batch, device=device, dtype=torch.int32).expand(count, -1)  # (count, B)
        self.families += 1
        boxes = torch.zeros(image.numel(), 4, device=device)
        flags = torch.full_like(boxes[:, 0], mixed)
        self._extend(boxes, image.flatten(), numbers[:, None].expand_as(image).flatten(), flags, _centre(boxes))
        self.slots += count
        ids = start + torch.arange(count, device=device) * self._batch + images.unsqueeze(-1)
        return torch.where(images.unsqueeze(-1) >= 0, ids, 0).int()

    def copies_of(self, ids: Tensor) -> Tensor:
        """Ids of new tokens that lie nowhere, each made of one that does and stands there as well."""
        lines = torch.unique(ids[ids > 0]).long()
        different, numbers = torch.unique(self.slot[lines], return_inverse=True)
        start = len(self.image)
        self.families += 1
        boxes = torch.zeros(len(lines), 4, device=lines.device)
        self._extend(boxes, self.image[lines], self.slots + numbers, self.mixed[lines], _centre(boxes))
        self.source[start:] = self.source[lines]
        self.slots += len(different)
        return torch.where(ids > 0, start + torch.searchsorted(lines, ids.long()), 0).int()

    def sources_of(self, ids: Tensor) -> Tensor:
        """The same ids, copies as what they were made of."""
        return self.source[ids.long()].int()

    def _extend(self, boxes: Tensor, image: Tensor, slot: Tensor | int, mixed: Tensor, middles: Tensor) -> None:
        self.boxes = torch.cat([self.boxes, boxes])
        self.middles = torch.cat([self.middles, middles])
        self.image = torch.cat([self.image, image])
        slot = torch.full_like(image, slot) if isinstance(slot, int) else slot
        self.slot = torch.cat([self.slot, slot.int()])
        self.family = torch.cat([self.family, torch.full_like(image, self.families)])
        self.mixed = torch.cat([self.mixed, mixed.bool()])
        self.source = torch.cat([self.source, torch.arange(len(self.source), len(self.image), device=image.device)])

    def images_of(self, ids: Tensor) -> Tensor:
        """Image of each element, −1 for none."""
        return torch.where(ids > 0, self.image[ids.long()], -1)

    def holds_context(self, ids: Tensor) -> bool:
        """Whether any element is a token that lies nowhere and was made of tokens without being asked for by any."""
        lines = ids.long()
        return bool((self.mixed[lines] & (self.slot[lines] >= 0)).any())

    def lies_on_image(self, ids: Tensor) -> bool:
        """Whether any element has a place on the image."""
        return bool(((ids > 0) & (self.slot[ids.long()] < 0)).any())

    def is_whole(self, ids: Tensor) -> bool:
        """Whether all elements stand for the whole image."""
        return bool(((ids > 0) & (self.slot[ids.long()] < 0) & self.covers_image(self.boxes[ids.long()])).all())

    def is_mixed(self, ids: Tensor) -> bool:
        """Whether any element is made of all kinds of tokens."""
        return bool(self.mixed[ids.long()].any())

    def covers_image(self, boxes: Tensor) -> Tensor:
        """Whether boxes (…, 4) are as good as the whole image."""
        tall = boxes[..., 1] - boxes[..., 0] > 0.9 * self._height
        return tall & (boxes[..., 3] - boxes[..., 2] > 0.9 * self._width)

    def join(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Places of what is computed element by element from two: where they differ, the more local of both.

        A token's box wins over what holds the whole image (a gate, statistics), and over a token that lies nowhere.
        Boxes side by side become one box around both.

        Returns:
            Ids, and where a box made of mixed tokens gave way to a smaller one.
        """
        if first is second or (first.shape == second.shape and torch.equal(first, second)):
            return first, torch.zeros((), dtype=torch.bool, device=first.device)
        first, second = torch.broadcast_tensors(first, second)
        taken = torch.where(first == 0, second, first)
        both = (first > 0) & (second > 0) & (first != second)
        if not bool(both.any()):
            return taken, torch.zeros((), dtype=torch.bool, device=first.device)
        lines = len(self.image)
        pairs = first[both].long() * lines + second[both]
        unique, inverse = torch.unique(pairs, return_inverse=True)
        joined, gave_way = self._join_pairs(unique // lines, unique % lines)
        taken = taken.clone()
        taken[both] = joined[inverse]
        mixed = torch.zeros_like(both)
        mixed[both] = gave_way[inverse]
        return taken, mixed

    def _join_pairs(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        one, two = self.boxes[first], self.boxes[second]
        if bool((self.image[first] != self.image[second]).any()):
            self.several_images = True
        size_one, size_two = _size(one), _size(two)
        apart = (_centre(one) - _centre(two)).abs()
        larger = torch.maximum(size_one, size_two)
        similar = torch.maximum(size_one, size_two) <= _LARGER * torch.minimum(size_one, size_two).clamp_min(1e-6)
        same = (apart <= _SAME * larger).all(1) & similar.all(1)
        within_two = _within(one, two) & (size_one.prod(1) < size_two.prod(1) / _LARGER)
        within_one = _within(two, one) & (size_two.prod(1) < size_one.prod(1) / _LARGER)
        nowhere_one, nowhere_two = self.slot[first] >= 0, self.slot[second] >= 0
        takes_first = nowhere_two | (~nowhere_one & (same | within_two))
        # A slot beside something of the whole image stays that slot: a class token and what it has read.
        whole = self.covers_image(two) & nowhere_one
        takes_second = nowhere_one & ~nowhere_two & ~whole | (~takes_first & within_one & ~nowhere_one)
        result = torch.where(takes_second, second, first)
        read = self.middles[first], self.middles[second]
        both = takes_first & same & ~(nowhere_one | nowhere_two)
        for blurred in self._resampled:  # what is interpolated between others says less than what it is added to
            both &= (self.family[first] != blurred) & (self.family[second] != blurred)
        if bool(((read[0] - read[1]).abs() > _MIDDLE * larger)[both].any()):  # a branch that reads beside its shortcut
            middles = (read[0] + read[1])[both] / 2
            result[both] = self.new_boxes(one[both], self.image[first[both]], self.mixed[first[both]], middles).long()
        around = ~(takes_first | takes_second | whole)
        if bool(around.any()):
            boxes = _around(torch.stack([one[around], two[around]], dim=1), dim=1)
            middles = (read[0] + read[1])[around] / 2
            result[around] = self.new_boxes(boxes, self.image[first[around]], middles=middles).long()
        gave_way = (within_two & ~takes_second & self.mixed[second]) | (takes_second & within_one & self.mixed[first])
        return result.int(), gave_way

    def reduce(self, ids: Tensor, dims: tuple[int, ...], *, mixing: bool = False, always: bool = False) -> Tensor:
        """Places of what is made of all elements along ``dims``, which are kept with length 1.

        Args:
            ids: of any shape.
            dims: the dimensions.
            mixing: whether it is a weighting by a matrix: what then holds the whole image is *mixed*.
            always: whether anything that joins several places is, however small.
        """
        ids = compressed(ids)
        dims = tuple(sorted({dim % ids.dim() for dim in dims if ids.shape[dim] > 1}))
        if not dims:
            return ids
        most = ids.amax(dim=dims, keepdim=True)
        least = torch.where(ids > 0, ids, torch.iinfo(torch.int32).max).amin(dim=dims, keepdim=True)
        differ = (most > 0) & (most != least)
        if not bool(differ.any()):
            return most
        differ |= (most > 0) & (ids == 0).any(dim=dims, keepdim=True)  # of one token and padding: a new one as well
        kept = [dim for dim in range(ids.dim()) if dim not in dims]
        rows = ids.permute(*kept, *dims).flatten(len(kept)).reshape(-1, _length(ids, dims))  # (rows, K)
        rows = rows[differ.permute(*kept, *dims).reshape(-1)].long()
        boxes, on_image = self.boxes[rows], (rows > 0) & (self.slot[rows] < 0)
        images = torch.where(rows > 0, self.image[rows], -1)
        image = images.amax(1)
        of_several = ((images >= 0) & (images != image[:, None])).any(1)  # statistics of a batch lie nowhere
        sizes = torch.where(on_image, _size(boxes).prod(-1), torch.inf)
        smallest = boxes[torch.arange(len(rows), device=rows.device), sizes.argmin(1)]
        # What holds the smallest says less than it; a larger one beside it is a place of its own: a border cuts cells.
        local = on_image & ((sizes <= _LARGER * sizes.amin(1, keepdim=True)) | ~_within(smallest[:, None], boxes))
        around = _around(torch.where(local.unsqueeze(-1), boxes, self._no_box), dim=1)
        several = (around[:, None] != boxes).any(-1).logical_and(local).any(1)
        flag = several & (always | self.covers_image(around)) if mixing else torch.zeros_like(several)
        middles = self.middles[rows].unsqueeze(-2)
        reach = [torch.where(local[..., None, None], middles, bound) for bound in (torch.inf, -torch.inf)]
        middle = (reach[0].amin(1) + reach[1].amax(1))[:, 0] / 2
        of_rows = self.new_boxes(around, image, flag, middle)
        nowhere = of_rows == 0  # made of nothing but tokens that lie nowhere
        of_rows = torch.where(nowhere, rows.amax(1).int(), of_rows)
        fused = nowhere & (torch.where(rows > 0, rows, of_rows[:, None]) != of_rows[:, None]).any(1) & ~of_several
        if bool(fused.any()):
            of_rows[fused] = self.new_slots(image[fused], 1, mixed=True).squeeze(-1)
        result = most.clone()
        result[differ] = torch.where(of_several, 0, of_rows)
        return result

    def windows(
        self,
        ids: Tensor,
        ranges: tuple[tuple[list[int], list[int]], ...],
        middles: tuple[list[float], ...] | None = None,
    ) -> Tensor:
        """Places of outputs that each read a window of the last two dimensions: (…, H, W) → (…, h, w).

        Args:
            ids: (…, H, W).
            ranges: for rows and columns: first and last index that stands for each output, both included.
            middles: for rows and columns: the index, not always a whole one, in the middle of what each output reads;
                None where that is the middle of its range.
        """
        if middles is None:
            middles = tuple([(one + other) / 2 for one, other in zip(*of_axis, strict=True)] for of_axis in ranges)
        read = self._middles_at(ids, middles)
        boxes = self.boxes[ids.long()]
        boxes = torch.where(((ids > 0) & (self.slot[ids.long()] < 0)).unsqueeze(-1), boxes, self._no_box)
        images = self.images_of(ids)
        for dim, (first, last) in zip((-2, -1), ranges, strict=True):
            index = _window_index(first, last, ids.device)  # (h, L)
            at = dim % ids.dim()
            boxes = _around(boxes.index_select(at, index.flatten()).unflatten(at, index.shape), dim=at + 1)
            images = images.index_select(at, index.flatten()).unflatten(at, index.shape).amax(at + 1)
        return self.new_boxes(boxes, images, middles=read)

    def _middles_at(self, ids: Tensor, places: tuple[list[float], ...]) -> Tensor:
        """Middles (…, h, w, 2) at rows and columns of ids (…, H, W) that need not be whole, and may lie outside.

        Between two neighbours the line through both, and outside through the last two: padding lies nowhere itself.
        Not finite where there are none.
        """
        real = (ids > 0) & (self.slot[ids.long()] < 0)
        read = torch.where(real.unsqueeze(-1), self.middles[ids.long()], torch.nan)
        for dim, at_places in zip((-2, -1), places, strict=True):
            at = dim % ids.dim()
            others = [other for other in range(ids.dim()) if other != at]
            seen = real.any(others).nonzero().flatten()
            if not len(seen):
                break
            index = torch.tensor(at_places, dtype=torch.float32).to(ids.device)
            first = index.floor().clamp(seen[0], (seen[-1] - 1).clamp_min(seen[0])).long()
            second = (first + 1).clamp_max(seen[-1])
            part = (index - first).view(-1, *[1] * (ids.dim() - at))
            one, two = read.index_select(at, first), read.index_select(at, second)
            read = one + part * (two - one)
        return read

    def resampled(self, ids: Tensor, size: tuple[int, ...]) -> Tensor:
        """Places of (…, H, W) resampled to another size: each output is the part of the input that it covers."""
        middles = tuple(
            [(number + 0.5) * source / length - 0.5 for number in range(length)]
            for source, length in zip(ids.shape[-2:], size, strict=True)
        )
        read = self._middles_at(ids, middles)
        boxes, images = self.boxes[ids.long()], self.images_of(ids)
        for dim, length in zip((-2, -1), size, strict=True):
            at = dim % ids.dim()
            source = ids.shape[at]
            edges = torch.arange(length + 1, device=ids.device, dtype=torch.float32) * source / length
            cell = edges.floor().long()
            low, up = cell[:-1].clamp(0, source - 1), (edges[1:].ceil().long() - 1).clamp(0, source - 1)
            begins, ends = boxes.index_select(at, low), boxes.index_select(at, up)
            lows = (edges[:-1] - low).view(-1, *[1] * (-dim - 1))
            ups = (up + 1 - edges[1:]).view(-1, *[1] * (-dim - 1))
            result = torch.stack(
                [
                    torch.minimum(begins[..., 0], ends[..., 0]),
                    torch.maximum(begins[..., 1], ends[..., 1]),
                    torch.minimum(begins[..., 2], ends[..., 2]),
                    torch.maximum(begins[..., 3], ends[..., 3]),
                ],
                dim=-1,
            )
            axis = 0 if dim == -2 else 2
            result[..., axis] += lows * (begins[..., axis + 1] - begins[..., axis])
            result[..., axis + 1] -= ups * (ends[..., axis + 1] - ends[..., axis])
            boxes, images = result, torch.maximum(images.index_select(at, low), images.index_select(at, up))
        boxes = torch.where((images >= 0).unsqueeze(-1), boxes, self._no_box)
        ids = self.new_boxes(boxes, images, middles=read)
        self._resampled.append(self.families)
        return ids


def compressed(ids: Tensor) -> Tensor:
    """The same ids with every dimension that only repeats them cut to length 1."""
    repeats = [stride == 0 and size > 1 for stride, size in zip(ids.stride(), ids.shape, strict=True)]
    return ids[tuple(slice(0, 1) if cut else slice(None) for cut in repeats)] if any(repeats) else ids


def _digest(lines: Tensor) -> Tensor:
    """One number for each line (n, 5) of edges and image: equal lines have equal ones. Sorting those is fast."""
    factors = (73856093, 19349663 << 8, 83492791 << 16, 2654435761 << 20, 40503 << 40)
    whole = (lines * 64).round().long()  # edges are told apart down to a 64th of a pixel
    return sum(whole[:, n] * factor for n, factor in enumerate(factors))  # type: ignore[return-value]


def _size(boxes: Tensor) -> Tensor:
    """Height and width, (…, 2)."""
    return torch.stack([boxes[..., 1] - boxes[..., 0], boxes[..., 3] - boxes[..., 2]], dim=-1)


def _centre(boxes: Tensor) -> Tensor:
    return torch.stack([boxes[..., 0] + boxes[..., 1], boxes[..., 2] + boxes[..., 3]], dim=-1) / 2


def _within(inner: Tensor, outer: Tensor) -> Tensor:
    """Whether the middle of one box lies in the other."""
    middle = _centre(inner)
    return (
        (middle[..., 0] >= outer[..., 0])
        & (middle[..., 0] <= outer[..., 1])
        & (middle[..., 1] >= outer[..., 2])
        & (middle[..., 1] <= outer[..., 3])
    )


def _around(boxes: Tensor, dim: int) -> Tensor:
    """The box around several, along ``dim``."""
    least, most = boxes.amin(dim), boxes.amax(dim)
    return torch.stack([least[..., 0], most[..., 1], least[..., 2], most[..., 3]], dim=-1)


def _length(ids: Tensor, dims: tuple[int, ...]) -> int:
    length = 1
    for dim in dims:
        length *= ids.shape[dim]
    return length


def _window_index(first: list[int], last: list[int], device: torch.device) -> Tensor:
    """Indices of each window, (outputs, L): shorter ones repeat their last."""
    begins = torch.tensor(first).to(device)[:, None]
    ends = torch.tensor(last).to(device)[:, None]
    longest = max(end - begin for begin, end in zip(first, last, strict=True)) + 1
    return torch.minimum(begins + torch.arange(longest, device=device), ends)
