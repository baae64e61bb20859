"""Images and a class to heatmaps. Needs torch only."""

from lightning_attngrad.attention import NoAttentionError, NoEmbeddingError, UnsupportedModelError
from lightning_attngrad.explain import (  # importing registers methods
    baselines,  # noqa: F401
    conservative,  # noqa: F401
    grad_cam,  # noqa: F401
    guided,  # noqa: F401
    layernorm_statistics,  # noqa: F401
    libragrad,  # noqa: F401
    patch_sum,  # noqa: F401
)
from lightning_attngrad.explain.attention_step import AttentionStep, attention_step
from lightning_attngrad.explain.clips import ClipStrip
from lightning_attngrad.explain.corrections import CORRECTIONS
from lightning_attngrad.explain.default import DEFAULT_METHOD
from lightning_attngrad.explain.explaining import explain
from lightning_attngrad.explain.explanation import Explanation
from lightning_attngrad.explain.forward_pass import (
    ForwardPass,
    NonFiniteError,
    NonFiniteGradientError,
    NonFiniteOutputError,
)
from lightning_attngrad.explain.objectives import (
    OBJECTIVES,
    Contrast,
    Logit,
    Margin,
    Mixture,
    Objective,
    PixelClass,
    PixelValue,
    QueryBox,
    QueryClass,
    Region,
    Seeds,
    Start,
)
from lightning_attngrad.explain.outputs import (
    ONE_NUMBER,
    TASKS,
    UNSAID,
    WHAT_WOULD_DO,
    Multilabel,
    Similarity,
    Task,
    Undecided,
    check_task,
    of_class,
)
from lightning_attngrad.explain.placing import within_area
from lightning_attngrad.explain.plain import plain
from lightning_attngrad.explain.question import Question
from lightning_attngrad.explain.registry import METHODS, Method, TokenScores, register_method
from lightning_attngrad.explain.returned import find_embedding_vector, find_logits, row_of_numbers
from lightning_attngrad.explain.rows import ForwardOfRows, after, of_rows

__all__ = [
    "CORRECTIONS",
    "DEFAULT_METHOD",
    "METHODS",
    "OBJECTIVES",
    "ONE_NUMBER",
    "TASKS",
    "UNSAID",
    "WHAT_WOULD_DO",
    "AttentionStep",
    "ClipStrip",
    "Contrast",
    "Explanation",
    "ForwardOfRows",
    "ForwardPass",
    "Logit",
    "Margin",
    "Method",
    "Mixture",
    "Multilabel",
    "NoAttentionError",
    "NoEmbeddingError",
    "NonFiniteError",
    "NonFiniteGradientError",
    "NonFiniteOutputError",
    "Objective",
    "PixelClass",
    "PixelValue",
    "QueryBox",
    "QueryClass",
    "Question",
    "Region",
    "Seeds",
    "Similarity",
    "Start",
    "Task",
    "TokenScores",
    "Undecided",
    "UnsupportedModelError",
    "after",
    "attention_step",
    "check_task",
    "explain",
    "find_embedding_vector",
    "find_logits",
    "of_class",
    "of_rows",
    "plain",
    "register_method",
    "row_of_numbers",
    "within_area",
]
