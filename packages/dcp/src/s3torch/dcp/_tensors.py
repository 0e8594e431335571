"""Tensors as bytes on the host, and what copies to and from accelerators have in common.

Accelerators reach memory that torch calls pinned without the processor. It is expensive to get, and torch
keeps what was freed for whoever asks for as much. So copies are made in pieces of one size, and the memory of
a piece is freed when its copy has ended: the accelerator tells that by an event.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from s3torch.core.ranges import MIB

# The most bytes of one copy.
PIECE = 8 * MIB


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a contiguous tensor on the CPU; they live no longer than the tensor."""
    window = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    window.owner = tensor  # type: ignore[attr-defined] # The view keeps the window alive, it the tensor.
    return memoryview(window).cast("B")


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Returns the elements of a tensor in order; without a copy where they are so on the CPU."""
    if not tensor.nbytes:
        return memoryview(b"")
    return memory_of(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous())


def tensor_of(content: Any, dtype: torch.dtype, sizes: tuple[int, ...]) -> torch.Tensor:
    """Returns the tensor with these elements; of a writable buffer it is a view."""
    if not content:
        return torch.empty(sizes, dtype=dtype)
    if memoryview(content).readonly:
        content = bytearray(content)
    return torch.frombuffer(content, dtype=dtype).view(sizes)


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes of a tensor are just its elements, in order."""
    return bool(
        type(tensor) is torch.Tensor
        and tensor.layout == torch.strided
        and tensor.nbytes
        and tensor.is_contiguous()
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )


def is_on_accelerator(tensor: torch.Tensor) -> bool:
    """Whether copies to and from the memory of a tensor go on by themselves."""
    kind = tensor.device.type
    if kind in {"cpu", "meta"}:
        return False
    here = torch.accelerator.current_accelerator(check_available=True)
    # What shares the memory of the host (MPS) gains nothing.
    return here is not None and here.type == kind and kind != "mps"


def pinned(size: int) -> torch.Tensor:
    """Returns bytes on the host that an accelerator reaches without the processor."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
