"""What a method cannot find in a model."""

from __future__ import annotations


class NoEmbeddingError(ValueError):
    """The tokens, or the first feature map, at which relevance is measured are not known; attention can be followed."""
