"""Models that say themselves what their output is made of; importing registers them with timm."""

from lightning_attngrad.models.hindered import HinderedTransformer, PatchTerms, from_vision_transformer

__all__ = ["HinderedTransformer", "PatchTerms", "from_vision_transformer"]
