"""Sees every attention call of any model, and changes none. Needs torch only."""

from lightning_attngrad.attention.call import (
    DEFAULT_MEMORY_BUDGET,
    AttentionCall,
    ExplicitAttentionCall,
    FusedAttentionCall,
)
from lightning_attngrad.attention.layout import TokenLayout, UnsupportedModelError, check_structure, infer_layout
from lightning_attngrad.attention.rules import ATTN_LRP, CONSERVATIVE, PLAIN, BackwardRules
from lightning_attngrad.attention.tap import AttentionTap

__all__ = [
    "ATTN_LRP",
    "CONSERVATIVE",
    "DEFAULT_MEMORY_BUDGET",
    "PLAIN",
    "AttentionCall",
    "AttentionTap",
    "BackwardRules",
    "ExplicitAttentionCall",
    "FusedAttentionCall",
    "TokenLayout",
    "UnsupportedModelError",
    "check_structure",
    "infer_layout",
]
