"""Corrections ``C(A, G)`` of the attention gradient (arXiv 2605.11392, our reading; arXiv 2103.15679).

With ``P = A ⊙ G``, every correction is one combination ``C = α·P₊ + β·P + γ·A ⊙ rowsum(P)``, so that any number
of them costs a single pass.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

CorrectionName = Literal["positive", "negative", "absolute", "signed", "transfer"]


class Correction(NamedTuple):
    """Factors of ``C = positive_part·(A ⊙ G)₊ + product·(A ⊙ G) + row_sum·A ⊙ rowsum(A ⊙ G)``."""

    positive_part: float
    product: float
    row_sum: float

    @property
    def is_signed(self) -> bool:
        """Whether C has values below 0."""
        return self.product > 0 or self.row_sum != 0


CORRECTIONS: dict[str, Correction] = {
    "positive": Correction(1, 0, 0),  # (A ⊙ G)₊: support only; with the logit, Chefer's generic rule
    "negative": Correction(1, -1, 0),  # (−A ⊙ G)₊: opposition only
    "absolute": Correction(2, -1, 0),  # |A ⊙ G|: everything the encoder moves
    "signed": Correction(0, 1, 0),  # A ⊙ G: both signs carried through
    "transfer": Correction(0, 1, -1),  # A ⊙ (G − rowsum(A ⊙ G)): which tokens gain attention, which lose it
}

if tuple(CORRECTIONS) != get_args(CorrectionName):  # one list of names, for people and for type checkers
    raise AssertionError("CorrectionName and CORRECTIONS differ")


def check_corrections(correction: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    """Names of corrections as a tuple.

    Raises:
        ValueError: for an unknown name, or none at all.
    """
    names = (correction,) if isinstance(correction, str) else tuple(correction)
    unknown = [name for name in names if name not in CORRECTIONS]
    if unknown or not names:
        raise ValueError(f"correction: got {correction!r}; expected one or several of {', '.join(CORRECTIONS)}")
    return names
