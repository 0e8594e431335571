"""The copy of a state dict on the host, from which a save goes on while training changes the original.

All tensors are copied into one block of memory, which the next save uses again: getting memory from the
system takes longer than to fill it. Where a tensor is in the block is decided anew each time, so state dicts
may change, and their tensors may be others each time.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
import weakref
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from s3torch.core.ranges import MIB
from s3torch.dcp._tensors import is_on_accelerator

if TYPE_CHECKING:
    from collections.abc import Callable

_ALIGNMENT = 64
_TENSORS = {torch.Tensor, torch.nn.Parameter}
_ATOMS = (bool, bytes, complex, float, int, str, type(None))
# cudaHostRegisterPortable: pinned for all devices.
_PORTABLE = 1


class Block:
    """Memory on the host.

    Args:
        size: Bytes.
        shared: Other processes can have it, too, by its descriptor.
        pinned: Accelerators reach it without the processor.

    Attributes:
        memory: All of it.
        descriptor: Of the memory that is shared.
    """

    def __init__(self, size: int, *, shared: bool, pinned: bool) -> None:
        self.descriptor: int | None = None
        self._end: Callable[[], object] = lambda: None
        if not shared:
            self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            return
        # Not in /dev/shm, which is small in containers.
        self.descriptor = _anonymous_file(size)
        self.memory = mapped(self.descriptor, size)
        place = self.memory.data_ptr() if pinned and _register(self.memory) else None
        self._end = weakref.finalize(self, _give_back, self.descriptor, place)

    def close(self) -> None:
        """Gives the memory back, when no tensor is in it any more."""
        self._end()
        del self.memory


def mapped(descriptor: int, size: int) -> torch.Tensor:
    """Returns shared memory as bytes."""
    area = mmap.mmap(descriptor, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=torch.uint8)


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("s3torch-staging")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def _register(memory: torch.Tensor) -> bool:
    """Pins memory that is there already, as CUDA can."""
    if not torch.cuda.is_available():
        return False
    return int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, _PORTABLE)) == 0


def _give_back(descriptor: int, registered: int | None) -> None:
    os.close(descriptor)
    if registered is not None:
        torch.cuda.cudart().cudaHostUnregister(registered)


class Staging:
    """Copies state dicts to the host, one after the other into the same memory.

    Args:
        shared: The copy is for another process.

    Attributes:
        block: The memory; ``None`` before the first copy.
    """

    def __init__(self, *, shared: bool) -> None:
        self.block: Block | None = None
        self._shared = shared
        # What is no plain tensor is copied as torch does it.
        self._others = DefaultStager(StagingOptions(*[False] * 4))

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Returns a copy, which holds until the next one is made; all bytes are there when this returns.

        Tensors that are one in the state dict are one in the copy.
        """
        # What is a tensor is told faster than what is not ``Stateful``.
        state = {
            name: one.state_dict() if type(one) not in _TENSORS and isinstance(one, Stateful) else one
            for name, one in state_dict.items()
        }
        places: dict[Any, tuple[int, torch.Tensor]] = {}
        end = 0

        def place(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal end
            if (key := _identity(tensor)) not in places:
                places[key] = end, tensor
                end += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
            return tensor

        self._mapped(state, place, lambda other: other)
        memory = self._memory(end, [tensor for _, tensor in places.values()])
        copies = {key: self._copied(tensor, memory, at) for key, (at, tensor) in places.items()}
        staged = self._mapped(state, lambda tensor: copies[_identity(tensor)], self._other)
        _finish_copies([tensor for _, tensor in places.values()])
        return dict(staged)

    def close(self) -> None:
        """Gives the memory back."""
        if self.block is not None:
            self.block.close()
            self.block = None

    def _memory(self, size: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        if self.block is None or self.block.memory.nbytes < size:
            # The old block goes first: there is never memory for two copies.
            self.close()
            size = -(-max(size, 1) // MIB) * MIB
            self.block = Block(size, shared=self._shared, pinned=any(map(is_on_accelerator, tensors)))
        return self.block.memory

    def _other(self, value: Any) -> Any:
        if type(value) in _TENSORS:
            # Without elements, or not a row of them.
            return value.detach().to("cpu", copy=True) if not value.is_meta else value
        return self._others.stage(value)

    @staticmethod
    def _copied(tensor: torch.Tensor, memory: torch.Tensor, at: int) -> torch.Tensor:
        copy = memory[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor, non_blocking=True)

    def _mapped(
        self, value: Any, of_tensor: Callable[[torch.Tensor], torch.Tensor], of_other: Callable[[Any], Any]
    ) -> Any:
        """Makes the same of other tensors."""
        kind = type(value)
        if isinstance(value, _ATOMS):
            return value
        if kind is dict or kind.__name__ == "OrderedDict":
            return kind((name, self._mapped(one, of_tensor, of_other)) for name, one in value.items())
        if kind in {list, tuple}:
            return kind(self._mapped(one, of_tensor, of_other) for one in value)
        if isinstance(value, DTensor) and _is_plain(value._local_tensor):
            # Its own memory is never touched, so the system does not give any.
            copy: Any = torch.empty_like(value.detach(), device="cpu")
            copy._local_tensor = of_tensor(value._local_tensor.detach())
            return copy
        if _is_plain(value):
            return of_tensor(value.detach())
        return of_other(value)


def _is_plain(value: Any) -> bool:
    return (
        type(value) in _TENSORS
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
        and value.numel() > 0
    )


def _identity(tensor: torch.Tensor) -> Any:
    """Tells whether two tensors are one."""
    return (
        tensor.device,
        tensor.data_ptr(),
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def _finish_copies(tensors: list[torch.Tensor]) -> None:
    for device in {tensor.device for tensor in tensors if is_on_accelerator(tensor)}:
        torch.accelerator.current_stream(device).synchronize()


class _Pickler(ForkingPickler):
    """Writes the places of tensors in a block, instead of their bytes."""

    def __init__(self, file: io.BytesIO, memory: torch.Tensor | None) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._memory = memory

    def persistent_id(self, obj: Any, /) -> Any:
        if type(obj) is not torch.Tensor or self._memory is None or obj.device.type != "cpu":
            return None
        if obj.layout != torch.strided or not obj.is_contiguous():
            return None
        at = obj.data_ptr() - self._memory.data_ptr()
        is_inside = obj.numel() and 0 <= at <= self._memory.nbytes - obj.nbytes
        return (at, obj.nbytes, obj.dtype, tuple(obj.shape)) if is_inside else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, memory: torch.Tensor | None) -> None:
        super().__init__(file)
        self._memory = memory

    def persistent_load(self, pid: Any, /) -> torch.Tensor:
        at, size, dtype, sizes = pid
        assert self._memory is not None  # noqa: S101 - For the type checker; the writer had one.
        return self._memory[at : at + size].view(dtype).view(sizes)


def pickled(value: Any, memory: torch.Tensor | None) -> bytes:
    """Pickles a value for another process that has the same memory."""
    body = io.BytesIO()
    _Pickler(body, memory).dump(value)
    return body.getvalue()


def unpickled(body: bytes, memory: torch.Tensor | None) -> Any:
    """Reads what ``pickled`` has written, in the other process."""
    return _Unpickler(io.BytesIO(body), memory).load()
