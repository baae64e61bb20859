"""Backward rules that make gradient × input conserve relevance, applied while a tap is active.

The forward pass is the model's own; only what flows backwards changes (METHODS §3):

=====================  ===============================================  ============  ========  =========
rule                   forward written as                               conservative  attn_lrp  libragrad
=====================  ===============================================  ============  ========  =========
normalisation          ``(x − mean)·stop(1/std)·w + b``                 yes           yes       yes
activation             ``x·stop(f(x)/x)``                               yes           yes       yes
gate, statistic        constant                                         yes           yes       yes
product of two         each factor receives half the gradient           yes           yes       yes
attention, constant    ``O = stop(A) V``                                yes           –         yes
attention, uniform     gradient at v halved, at q and k quartered       –             yes       –
=====================  ===============================================  ============  ========  =========

Sources: Ali et al., arXiv 2202.07304 (conservative); Achtibat et al., AttnLRP, arXiv 2402.05602; Mehri et al.,
LibraGrad, arXiv 2411.16760.

Convolutions, BatchNorm in evaluation mode, pooling, LayerScale, resizing are linear or affine, and ReLU, PReLU and the
maximum are linear by pieces: their plain gradient conserves relevance, and they have no rule.
"""

from lightning_attngrad.attention.rules import activations, normalisations, products
from lightning_attngrad.attention.rules.gradient import constant_ratio, scale_gradient
from lightning_attngrad.attention.rules.registry import (
    ATTN_LRP,
    CONSERVATIVE,
    LIBRAGRAD,
    LINEARISED,
    NORMALISATIONS,
    PLAIN,
    BackwardRules,
    Ruled,
    backward_rule,
    forget_backward_rule,
    under_rules,
)

LINEARISED.update(activations.RULES)
LINEARISED.update(normalisations.RULES)
LINEARISED.update(products.RULES)

__all__ = [
    "ATTN_LRP",
    "CONSERVATIVE",
    "LIBRAGRAD",
    "LINEARISED",
    "NORMALISATIONS",
    "PLAIN",
    "BackwardRules",
    "Ruled",
    "backward_rule",
    "constant_ratio",
    "forget_backward_rule",
    "scale_gradient",
    "under_rules",
]
