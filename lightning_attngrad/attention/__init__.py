"""Sees every attention call of any model, and changes none. Needs torch only."""

from lightning_attngrad.attention.budget import default_memory_budget
from lightning_attngrad.attention.call import (
    AttentionCall,
    ExplicitAttentionCall,
    FusedAttentionCall,
    outside_autocast,
)
from lightning_attngrad.attention.embedding import NoEmbeddingError
from lightning_attngrad.attention.embedding_search import embedding_number
from lightning_attngrad.attention.layout import TokenLayout, check_structure, infer_layout
from lightning_attngrad.attention.places import NoAttentionError, UnsupportedModelError
from lightning_attngrad.attention.rules import (
    ATTN_LRP,
    CONSERVATIVE,
    PLAIN,
    BackwardRules,
    backward_rule,
    constant_ratio,
    forget_backward_rule,
)
from lightning_attngrad.attention.tap import AttentionTap
from lightning_attngrad.attention.watching import AttentionWatcher, SeenAttention

__all__ = [
    "ATTN_LRP",
    "CONSERVATIVE",
    "PLAIN",
    "AttentionCall",
    "AttentionTap",
    "AttentionWatcher",
    "BackwardRules",
    "ExplicitAttentionCall",
    "FusedAttentionCall",
    "NoAttentionError",
    "NoEmbeddingError",
    "SeenAttention",
    "TokenLayout",
    "UnsupportedModelError",
    "backward_rule",
    "check_structure",
    "constant_ratio",
    "default_memory_budget",
    "embedding_number",
    "forget_backward_rule",
    "infer_layout",
    "outside_autocast",
]
