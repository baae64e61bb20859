"""Sees every attention call of any model, and changes none. Needs torch only."""

from lightning_attngrad.attention.budget import default_memory_budget
from lightning_attngrad.attention.call import (
    AttentionCall,
    Cut,
    ExplicitAttentionCall,
    FusedAttentionCall,
    outside_autocast,
)
from lightning_attngrad.attention.embedding import NoEmbeddingError
from lightning_attngrad.attention.joined import BlockReader
from lightning_attngrad.attention.known_places import KnownPlaces
from lightning_attngrad.attention.places import (
    Area,
    CallPlaces,
    Grid,
    ImagePlaces,
    NoAttentionError,
    TensorPlaces,
    TokenPlaces,
    UnsupportedModelError,
    carry,
    equal_cells,
    means_of_cells,
)
from lightning_attngrad.attention.rules import (
    ATTN_LRP,
    CONSERVATIVE,
    LIBRAGRAD,
    PLAIN,
    BackwardRules,
    Ruled,
    backward_rule,
    constant_ratio,
    forget_backward_rule,
)
from lightning_attngrad.attention.tap import AttentionTap
from lightning_attngrad.attention.training_tap import TrainingTap
from lightning_attngrad.attention.watching import AttentionWatcher, SeenAttention

__all__ = [
    "ATTN_LRP",
    "CONSERVATIVE",
    "LIBRAGRAD",
    "PLAIN",
    "Area",
    "AttentionCall",
    "AttentionTap",
    "AttentionWatcher",
    "BackwardRules",
    "BlockReader",
    "CallPlaces",
    "Cut",
    "ExplicitAttentionCall",
    "FusedAttentionCall",
    "Grid",
    "ImagePlaces",
    "KnownPlaces",
    "NoAttentionError",
    "NoEmbeddingError",
    "Ruled",
    "SeenAttention",
    "TensorPlaces",
    "TokenPlaces",
    "TrainingTap",
    "UnsupportedModelError",
    "backward_rule",
    "carry",
    "constant_ratio",
    "default_memory_budget",
    "equal_cells",
    "forget_backward_rule",
    "means_of_cells",
    "outside_autocast",
]
