"""Images and a class to heatmaps. Needs torch only."""

from lightning_attngrad.attention import NoAttentionError, NoEmbeddingError, UnsupportedModelError
from lightning_attngrad.explain import (  # importing registers methods
    baselines,  # noqa: F401
    conservative,  # noqa: F401
    grad_cam,  # noqa: F401
    guided,  # noqa: F401
    libragrad,  # noqa: F401
)
from lightning_attngrad.explain.attention_step import AttentionStep, attention_step
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
    Region,
    Seeds,
)
from lightning_attngrad.explain.outputs import (
    TASKS,
    UNSAID,
    Multilabel,
    Similarity,
    Task,
    check_task,
    find_logits,
)
from lightning_attngrad.explain.placing import within_area
from lightning_attngrad.explain.plain import plain
from lightning_attngrad.explain.question import Question
from lightning_attngrad.explain.registry import METHODS, Method, TokenScores, register_method
from lightning_attngrad.explain.rows import ForwardOfRows, after, of_rows

__all__ = [
    "CORRECTIONS",
    "DEFAULT_METHOD",
    "METHODS",
    "OBJECTIVES",
    "TASKS",
    "UNSAID",
    "AttentionStep",
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
    "Question",
    "Region",
    "Seeds",
    "Similarity",
    "Task",
    "TokenScores",
    "UnsupportedModelError",
    "after",
    "attention_step",
    "check_task",
    "explain",
    "find_logits",
    "of_rows",
    "plain",
    "register_method",
    "within_area",
]
