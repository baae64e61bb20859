"""What a forward pass can write into a module or a process: saved once, put back. Needs torch only."""

from lightning_attngrad.state.belongings import untouched_objects
from lightning_attngrad.state.flags import preserved_flags
from lightning_attngrad.state.inference import differentiable, outside_inference
from lightning_attngrad.state.module import passes_begin_as_it_is, untouched
from lightning_attngrad.state.randomness import RandomMoment, check_seed, seeded_rng
from lightning_attngrad.state.still import held_still

__all__ = [
    "RandomMoment",
    "check_seed",
    "differentiable",
    "held_still",
    "outside_inference",
    "passes_begin_as_it_is",
    "preserved_flags",
    "seeded_rng",
    "untouched",
    "untouched_objects",
]
