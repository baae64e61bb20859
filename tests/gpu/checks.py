"""Everything that is checked on a device, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tests.gpu import maps, memory, runs
from tests.methods import OF_ANY_MODEL

#: Raises AssertionError where something is wrong; tells otherwise in a line what it found.
Check = Callable[[torch.device], str]

PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
NORMS = ("linf", "l2", "l0", "l0_patches")

CHECKS: dict[str, Check] = {
    **{
        f"maps/{kind}/{method}/{precision}": partial(maps.method_equals_cpu, kind, method, precision)
        for kind in maps.MODELS
        for method in OF_ANY_MODEL
        for precision in PRECISIONS
    },
    **{
        f"channels_last/{kind}/{method}": partial(maps.channels_last, kind, method)
        for kind in maps.MODELS
        for method in OF_ANY_MODEL
    },
    **{f"rewriting/{norm}": partial(maps.rewriting_equals_cpu, norm) for norm in NORMS},
    "compiled/maps": maps.compiled,
    "compiled/fit": runs.compiled_run,
    **{f"fit/{precision}": partial(runs.untouched, precision) for precision in PRECISIONS},
    "fit/16-mixed": partial(runs.untouched, "16-mixed"),
    "fit/ddp": runs.distributed,
    "memory/fewer_at_once": memory.fewer_at_once,
    "memory/too_little_for_one": memory.too_little_for_one,
}

#: What the CPU cannot do at all.
ONLY_ON_A_GPU = frozenset({"fit/16-mixed"})


def why_no_gpu() -> str | None:
    """Why nothing can be checked on a GPU here; None if it can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} was built without CUDA"
    return f"torch {torch.__version__} was built with CUDA {torch.version.cuda}, but finds no GPU on this machine"
