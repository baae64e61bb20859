"""One model under every method, against references that share nothing with the package: the cells of the coverage.

*works*: the map equals the naive reference, and a batch of four gives what four single images give. *unchecked*: no
reference covers this method on this model; the map is finite, not all zero, and a batch gives what single images give.
*refused*: an error that says why. **wrong**: a map that differs from the reference, that a batch changes, that is not
finite or all zero where the reference is not, or that follows attention where tokens mix by other means. **fails**: any
other error.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_attngrad.explain import METHODS, Explanation, explain
from tests.families import Family, Mixing
from tests.references import relevance_anywhere, traced_maps
from tests.references.guided import CORRECTIONS
from tests.references.occlusion import Undecided
from tests.references.traced_maps import TracedReading

Verdict = Literal["works", "unchecked", "refused", "wrong", "fails"]

#: Largest difference that is rounding, of the largest value of the reference's map: float32 against float64.
TOLERANCE = 1e-4
#: Of two float32 maps, whose sums are done in another order.
BATCH_TOLERANCE = 1e-3
BATCH, JUDGED = 4, 2
#: Methods that follow attention; where it is not all that tokens mix by, they have nothing to say.
_OF_RELEVANCE = ("conservative", "attn_lrp", "guided_relevance")
_OF_ATTENTION = ("gradient_guided", "raw_attention", "rollout", "guided_relevance")


@dataclass(frozen=True)
class Judgement:
    """What came of one method on one model.

    Attributes:
        family: name of the model.
        method: name of the method.
        verdict: see above.
        said: the message of an error, or what is wrong, or why nothing checks it.
        error: largest difference to the reference as a share of its largest value; None without one.
    """

    family: str
    method: str
    verdict: Verdict
    said: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Judged:
    """All methods on one model.

    Attributes:
        name: of the family.
        mixing: what its tokens mix by.
        judgements: one a method.
        seconds: that it took.
    """

    name: str
    mixing: Mixing
    judgements: tuple[Judgement, ...]
    seconds: float


def judge(family: Family, methods: tuple[str, ...]) -> Judged:
    """Every one of ``methods`` on the model of a family."""
    begun = time.perf_counter()
    references = _References(family)
    model, images = family.build(), family.images(BATCH)
    target = torch.arange(BATCH) % family.classes
    found = tuple(_judge(family, method, model, images, target, references) for method in methods)
    return Judged(family.name, family.mixing, found, time.perf_counter() - begun)


def _judge(
    family: Family, method: str, model: nn.Module, images: Tensor, target: Tensor, references: _References
) -> Judgement:
    try:
        maps, singles = _maps(method, model, images, target)
    except ValueError as error:  # every refusal is one, and says what is refused
        verdict: Verdict = "refused" if _names_the_model(error) else "fails"
        return Judgement(family.name, method, verdict, f"{type(error).__name__}: {error}")
    except Exception as error:
        return Judgement(family.name, method, "fails", f"{type(error).__name__}: {error}")
    wrong = _wrong_by_itself(family, method, maps, singles)
    if wrong is not None:
        return Judgement(family.name, method, "wrong", wrong)
    try:
        expected = references.of(method)
    except Undecided as undecided:
        return Judgement(family.name, method, "unchecked", str(undecided))
    compared = _compared(family.name, method, maps[:JUDGED].double(), expected)
    if compared.verdict == "wrong" and method in _OF_RELEVANCE and not references.certain:
        # An equal map shows that the tokens lie in reading order; another one, only that they do not.
        said = "the tokens that enter the first block lie in an order that the reference does not know"
        return Judgement(family.name, method, "unchecked", said)
    return compared


def _compared(family: str, method: str, maps: Tensor, expected: Tensor) -> Judgement:
    if expected.shape[-2:] != maps.shape[-2:]:
        said = f"its grid is {tuple(maps.shape[-2:])}, and the reference's {tuple(expected.shape[-2:])}"
        return Judgement(family, method, "wrong", said)
    apart = _difference(maps, expected)
    if apart > TOLERANCE:
        said = f"differs from the reference by {apart:.1e} of its largest value"
        return Judgement(family, method, "wrong", said, apart)
    return Judgement(family, method, "works", error=apart)


def _maps(method: str, model: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Of a batch, (B, h, w) or (B, K, h, w) with K corrections, and of its images one by one."""
    options: dict[str, Any] = {"correction": tuple(CORRECTIONS)} if method == "gradient_guided" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        maps = _of_tokens(explain(model, images, target, method=method, **options))
        singles = [
            _of_tokens(explain(model, images[i : i + 1], target[i : i + 1], method=method, **options))
            for i in range(len(images))
        ]
    return maps, singles


def _of_tokens(explanation: Explanation) -> Tensor:
    """What each token on the grid has, (B, …, h, w): references know no pixels that tokens read beside their cells."""
    grid = explanation.heatmap.shape[-2:]
    return explanation.token_scores[..., -grid[0] * grid[1] :].unflatten(-1, grid)


def _wrong_by_itself(family: Family, method: str, maps: Tensor, singles: list[Tensor]) -> str | None:
    """What is wrong with maps, whatever the right ones are; None if nothing."""
    if method in _OF_ATTENTION and family.mixing in ("otherwise", "none"):
        return "follows attention where tokens mix by other means"
    if not maps.isfinite().all():
        return "not finite"
    if not maps.any():  # the ReLU of grad-CAM leaves nothing of what speaks against the class, and says so
        return None if method == "grad_cam" and not torch.cat(singles).any() else "zero everywhere"
    if any(single.shape[1:] != maps.shape[1:] for single in singles):
        return "a batch and its images one by one have other grids"
    apart = _difference(torch.cat(singles), maps)
    return f"a batch and its images one by one differ by {apart:.1e}" if apart > BATCH_TOLERANCE else None


def _names_the_model(error: ValueError) -> bool:
    """Whether it was raised on purpose: by the package, about the model."""
    own = type(error).__module__.startswith("lightning_attngrad")
    return own or str(error).startswith(("model:", "method:"))


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference of any map (…, h, w), as a share of the largest value of the expected one."""
    largest = expected.abs().flatten(-2).amax(-1).clamp_min(1e-30)
    return float(((actual - expected).abs().flatten(-2).amax(-1) / largest).max())


class _References:
    """Naive maps of the first images of a family, computed when they are asked for."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._model: nn.Module | None = None
        self._reading: TracedReading | Undecided | None = None
        self._known: dict[str, Callable[[], Tensor]] = {
            "gradient_guided": lambda: torch.stack(
                [traced_maps.guided(self._read(), correction) for correction in CORRECTIONS], 1
            ),
            "raw_attention": lambda: traced_maps.raw_attention(self._read()),
            "rollout": lambda: traced_maps.rollout(self._read()),
            "conservative": lambda: self._relevance("conservative").tokens,
            "attn_lrp": lambda: self._relevance("attn_lrp").tokens,
            "guided_relevance": lambda: relevance_anywhere.guided_relevance(self._relevance("attn_lrp")),
        }
        self.certain = True

    def of(self, method: str) -> Tensor:
        """The map of a method, (B, h, w) or (B, K, h, w).

        Raises:
            Undecided: if there is none.
        """
        if method not in self._known:
            raise Undecided(f"there is no reference of {method} on any layout")
        return self._known[method]()

    def _read(self) -> TracedReading:
        if self._reading is None:
            self._model = self._family.build(torch.float64)
            for parameter in self._model.parameters():
                parameter.requires_grad_(False)
            images = self._family.images(BATCH, dtype=torch.float64)[:JUDGED]
            try:
                self._reading = traced_maps.read(self._model, images, torch.arange(JUDGED) % self._family.classes)
            except Undecided as undecided:
                self._reading = undecided
        if isinstance(self._reading, Undecided):
            raise self._reading
        return self._reading

    def _relevance(self, method: str) -> relevance_anywhere.Relevance:
        reading = self._read()
        assert self._model is not None
        images = self._family.images(BATCH, dtype=torch.float64)[:JUDGED]
        found = relevance_anywhere.relevance(
            self._model, reading, images, torch.arange(JUDGED) % self._family.classes, method
        )
        self.certain = found.certain
        return found


def every_method() -> tuple[str, ...]:
    return tuple(name for name in METHODS if name != "patch_sum")  # that is for sums over patches alone
