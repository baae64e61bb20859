"""What tokens are that are put beside others: some that stand there already, or new ones that lie nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from lightning_attngrad.attention.followed import FUSED, Followed
from lightning_attngrad.attention.place_table import compressed


class Beside:
    """Tells parts that are tokens of their own from the tokens that they are put beside.

    Args:
        followed: of the pass.
        parts: what is put side by side along an axis of tokens.
        images: to which image each row belongs.
    """

    def __init__(self, followed: Followed, parts: Sequence[Tensor], images: Tensor) -> None:
        self._followed, self._images = followed, images
        known = [(ids, part) for part in parts if (ids := followed.ids_of(part)) is not None]
        self._several = len(known) > 1
        # Ids, and what the part reads; first of those that lie on the image.
        self._there: list[tuple[Tensor, int]] = [
            (compressed(ids).flatten(), followed.reads(part))
            for ids, part in known
            if followed.table.lies_on_image(ids) and not followed.table.is_whole(compressed(ids))
        ]
        self._is_of_image = bool(self._there)

    def told_apart(self, part: Tensor, ids: Tensor, out: Tensor) -> Tensor | None:
        """Ids of the next part; None where its tokens are new ones that lie nowhere.

        Args:
            part: in the order of the parts.
            ids: of it.
            out: of all parts together.
        """
        followed, table, held = self._followed, self._followed.table, compressed(ids)
        if self._several and table.is_whole(held):
            # The mean of all tokens beside them is one that lies nowhere, as a class token is. Beside a class token,
            # and of what has attended or by its weights, it is several tokens that became one.
            if followed.reads(part) > 1 and any(bool((table.slot[one.long()] >= 0).any()) for one, _ in self._there):
                followed.report(FUSED, out)
            return None
        if table.lies_on_image(ids):
            return ids
        if self._is_of_other_rows(held):
            if self._is_same_in_every_row(part):  # a constant: a token of the row that it is put into
                return None
            table.several_images = True
        if not self._is_of_image:  # rows of class tokens, say, one under the other
            return ids
        lines = held[held > 0]
        twins = [reads for there, reads in self._there if bool(torch.isin(lines, there).any())]
        self._there.append((held.flatten(), followed.reads(part)))
        if not twins:
            return ids
        # It was made of a token that stands there as well. A message of the class token is a token of its own; what has
        # read the image since, by that token's weights, is several tokens that became one.
        if followed.reads(part) & ~reduce(or_, twins) & followed.on_image:
            followed.report(FUSED, out)
        return table.copies_of(held).expand(part.shape)

    def _is_of_other_rows(self, ids: Tensor) -> bool:
        """Whether some of it belongs to other images than what it is put beside."""
        owners, images = self._followed.table.images_of(ids), self._images
        return bool(((owners >= 0) & (images >= 0) & (owners != images)).any())

    def _is_same_in_every_row(self, part: Tensor) -> bool:
        """Whether it is one constant, number for number."""
        rows = [axis for axis in range(part.dim()) if self._images.shape[axis] > 1]
        return all(bool((part == part.narrow(axis, 0, 1)).all()) for axis in rows)
