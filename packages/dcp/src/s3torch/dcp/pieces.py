"""The pieces that a load fetches: parts of tensors, and whole items to be decoded."""

from __future__ import annotations

import ctypes
import io
import math
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.planner import LoadItemType

from s3torch.dcp.archives import HEAD_SIZE, TensorLayout, parse_archive
from s3torch.dcp.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

    from s3torch.dcp.plan import StoredChunk

__all__ = ["HeadPiece", "ItemPiece", "TensorPiece", "hand_over", "memory_of", "target_of"]


def memory_of(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a contiguous tensor on the CPU; they live no longer than the tensor."""
    window = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    window.owner = tensor  # type: ignore[attr-defined] # The view keeps the window alive, it the tensor.
    return memoryview(window).cast("B")


def target_of(request: ReadItem, planner: LoadPlanner) -> torch.Tensor:
    """Asks the planner for the tensor that a read item fills.

    Raises:
        CheckpointError: It has another shape.
    """
    target = planner.resolve_tensor(request).detach()
    if target.size() != request.lengths:
        raise CheckpointError(
            f"{request.storage_index} has the shape {tuple(request.lengths)} in the checkpoint, but "
            f"{tuple(target.size())} is wanted"
        )
    return target


def hand_over(request: ReadItem, value: Any, planner: LoadPlanner) -> None:
    """Gives the planner what a whole item was decoded to."""
    if request.type == LoadItemType.BYTE_IO:
        planner.load_bytes(request, io.BytesIO(value))
        return
    index = [slice(at, at + n) for at, n in zip(request.storage_offsets, request.lengths, strict=True)]
    tensor = value[tuple(index)]
    if tensor.size() != request.lengths:
        raise CheckpointError(
            f"{request.storage_index} has the shape {tuple(value.size())} in its file, but the metadata of "
            f"the checkpoint promises {tuple(request.lengths)} from {tuple(request.storage_offsets)}"
        )
    target = target_of(request, planner)
    target.copy_(tensor)
    planner.commit_tensor(request, target)


class TensorPiece:
    """The bytes of a stored tensor that one read item wants.

    They are received in the target itself where that has the same form, else in memory of their own.

    Args:
        request: The read item.
        chunk: Where its archive is.
        layout: Where the tensor is in the archive.
        target: What the read item fills.

    Attributes:
        target: What the read item fills.
        fits: What is stored is a copy of the target's memory, or would be if that was on the CPU.
    """

    def __init__(
        self, request: ReadItem, chunk: StoredChunk, layout: TensorLayout, target: torch.Tensor
    ) -> None:
        self.request = request
        self.target = target
        self._strides = layout.strides
        self._dtype = layout.dtype
        first = sum(at * step for at, step in zip(request.storage_offsets, self._strides, strict=True))
        within = zip(request.lengths, self._strides, strict=True)
        last = first + sum((count - 1) * step for count, step in within)
        self._count = 0 if 0 in request.lengths else last + 1 - first
        self.start = chunk.start + layout.start + first * layout.dtype.itemsize
        self.stop = self.start + self._count * layout.dtype.itemsize
        self.fits = (
            self._count == math.prod(request.lengths)
            and target.layout == torch.strided
            and target.dtype == layout.dtype
            and target.is_contiguous()
            and not target.is_conj()
            and not target.is_neg()
        )
        self._own = not self.fits or target.device.type != "cpu"
        self._memory: torch.Tensor | None = None
        self._view: memoryview | None = None

    @property
    def held(self) -> int:
        """Bytes of memory of its own."""
        return self.stop - self.start if self._own else 0

    def open(self) -> memoryview:
        """Returns the memory that takes the bytes."""
        if self._view is None:
            self._memory = self.target
            if self._own:
                self._memory = torch.empty(self._count, dtype=self._dtype)
            self._view = memory_of(self._memory)
        return self._view

    def finish(self, planner: LoadPlanner) -> None:
        """Commits the target, which is filled now."""
        if self._own and self._count and self._memory is not None:
            self.target.copy_(self._memory.as_strided(tuple(self.request.lengths), self._strides))
        self._memory = self._view = None
        planner.commit_tensor(self.request, self.target)


class ItemPiece:
    """All bytes of an item, to be decoded."""

    def __init__(self, chunk: StoredChunk) -> None:
        self.chunk = chunk
        self.start = chunk.start
        self.stop = chunk.stop
        self.held = chunk.size
        self._view: memoryview | None = None

    def open(self) -> memoryview:
        """Returns the memory that takes the bytes."""
        if self._view is None:
            self._view = memory_of(torch.empty(self.held, dtype=torch.uint8))
        return self._view

    def take(self) -> memoryview:
        """Returns the bytes, which are nobody else's any more."""
        view, self._view = self.open(), None
        return view


class HeadPiece(ItemPiece):
    """The first bytes of an archive that tell where its tensor is."""

    def __init__(self, chunk: StoredChunk) -> None:
        super().__init__(chunk)
        self.stop = min(chunk.stop, chunk.start + HEAD_SIZE)
        self.held = self.stop - self.start

    def layout(self) -> TensorLayout | None:
        """Reads them; ``None`` where the whole archive is needed."""
        return parse_archive(self.take(), self.chunk.size)
