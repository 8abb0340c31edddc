"""Large work buffers that outlive a step: fresh memory of tens of megabytes costs a page fault per 4 kB on a CPU, more than
the arithmetic that fills it. Trainers of one process take turns, so they share the buffers. Accelerators have an allocator that
keeps memory, so there a buffer is simply new.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_POOL: dict[tuple[str, torch.dtype], Tensor] = {}


def scratch(name: str, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A buffer of `shape` with undefined content, valid until somebody asks for the same `name` again."""
    dtype = dtype or like.dtype
    if like.device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=like.device)
    size = math.prod(shape)
    held = _POOL.get((name, dtype))
    if held is None or held.numel() < size:
        held = _POOL[name, dtype] = torch.empty(size, dtype=dtype)
    return held[:size].view(shape)


def release() -> None:
    """Give the memory back, when training is over."""
    _POOL.clear()
