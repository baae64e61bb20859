"""How much room the temporaries of a block of attention rows may take, on each kind of device."""

from __future__ import annotations

import torch

_MIB = 2**20

#: Small enough to stay in a processor's cache, large enough that the matrix products dominate.
_OF_A_PROCESSOR = 2 * _MIB
#: On an accelerator every block costs several kernel launches: few and large ones, up to so much…
_MOST = 512 * _MIB
#: …and never more than this share of the free memory. For a moment a block holds up to four tensors of its size.
_SHARE_OF_FREE = 8
#: On an accelerator that does not say what it has left.
_UNKNOWN = 128 * _MIB


def default_memory_budget(device: torch.device) -> int:
    """Bytes for the temporaries of a block of attention rows on ``device``.

    2 MiB on a CPU. On an accelerator up to 512 MiB, at most an eighth of the memory that is free, and a power of two:
    how rows are cut decides the last bits of a map, and those should not depend on every allocation beside it.

    Example:
        >>> default_memory_budget(torch.device("cpu")) // 2**20
        2
    """
    if device.type == "cpu":
        return _OF_A_PROCESSOR
    free = _free_bytes(device)
    if free is None:
        return _UNKNOWN
    fitting = min(max(free // _SHARE_OF_FREE, _OF_A_PROCESSOR), _MOST)
    return 1 << (fitting.bit_length() - 1)


def _free_bytes(device: torch.device) -> int | None:
    """What is free on the device, and what torch holds there without using it; None where it cannot be asked."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    if device.type == "xpu":
        unused = torch.xpu.memory_reserved(device) - torch.xpu.memory_allocated(device)
        return int(torch.xpu.mem_get_info(device)[0] + unused)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return None
