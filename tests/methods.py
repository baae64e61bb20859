"""The methods, for tests that run over all of them."""

from __future__ import annotations

from lightning_attngrad.explain import METHODS

#: Those for any Vision Transformer: ``patch_sum`` is for models that are a sum over patches, see tests/models.
OF_ANY_MODEL = tuple(name for name in METHODS if name != "patch_sum")
