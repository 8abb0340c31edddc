"""Copies between main memory and an accelerator that do not make the host wait, where the device can do that safely.

CUDA copies from page-locked memory while the host goes on; torch keeps such memory until the copy is done. From ordinary memory it
makes the host wait for all that was queued before. On MPS a copy that is under way reads whatever the memory holds by then: of a
temporary that is already something else. So only CUDA copies are asynchronous.
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """`tensor` on `device` (and of `dtype`, cast there): itself where it is so already."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = pinned(tensor, device).to(device, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` in page-locked memory where `device` copies from such; itself where it is already, or the device does not.

    For small tensors: torch rounds page-locked memory up to a power of two (large blocks: :func:`locked`).
    """
    return tensor.pin_memory() if device.type == "cuda" and not tensor.is_pinned() else tensor


def locked(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty block of rows from which `device` copies without the host: page-locked for CUDA, at its exact size.

    Where the system does not let so much be locked it is ordinary memory: copies then wait, and nothing else changes.
    """
    memory = np.empty(rows * width * dtype.itemsize, np.uint8)
    if device.type == "cuda" and memory.nbytes:
        cuda, address = torch.cuda.cudart(), memory.ctypes.data
        if int(cuda.cudaHostRegister(address, memory.nbytes, 0)) == 0:
            weakref.finalize(memory, cuda.cudaHostUnregister, address)  # called before it is given back
    return torch.from_numpy(memory).view(dtype).view(rows, width)


def widest(device: torch.device) -> torch.dtype:
    """The widest floating-point type that `device` computes in: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
