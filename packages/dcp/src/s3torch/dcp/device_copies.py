"""Copies between accelerators and memory of the host that they reach without the processor.

Such memory, which torch calls pinned, is expensive to get, so that buffers of one size are used again: when
the copy has ended, which the accelerator tells by an event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from s3torch.dcp.pieces import memory_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CopyEngine", "DeviceCopies", "HostCopy"]


class HostCopy(Protocol):
    """Bytes on their way to the host."""

    def wait(self) -> memoryview:
        """Returns the bytes when they are there."""
        ...

    def release(self) -> None:
        """Lets their memory be used again."""
        ...


class CopyEngine(Protocol):
    """Starts copies from an accelerator. One thread uses it."""

    def serves(self, tensor: torch.Tensor) -> bool:
        """Tells whether the tensor is where copies can be started from."""
        ...

    def start(self, piece: torch.Tensor) -> HostCopy:
        """Starts to copy a row of bytes, which is not changed before they are there."""
        ...


class DeviceCopies:
    """Copies that torch makes, on a stream of their own.

    Args:
        size: The most bytes that one of them has.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._streams: dict[torch.device, torch.Stream] = {}
        self._free: list[torch.Tensor] = []

    def serves(self, tensor: torch.Tensor) -> bool:
        """Tells whether the tensor is on the accelerator of this process."""
        return is_on_accelerator(tensor.device)

    def start(self, piece: torch.Tensor) -> HostCopy:
        """Starts a copy as soon as what was asked of the accelerator before is done."""
        buffer = self._free.pop() if self._free else pinned(self._size)
        target = buffer[: piece.numel()]
        stream = self._stream(piece.device)
        with stream:
            target.copy_(piece, non_blocking=True)
            event = stream.record_event()
        return _Copy(piece, target, event, lambda: self._free.append(buffer))

    def _stream(self, device: torch.device) -> torch.Stream:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.Stream(device)
            stream.wait_stream(torch.accelerator.current_stream(device))
        return stream


class _Copy:
    def __init__(
        self, piece: torch.Tensor, target: torch.Tensor, event: torch.Event, give_back: Callable[[], None]
    ) -> None:
        # It has to live until the accelerator has read it.
        self._piece: torch.Tensor | None = piece
        self._target = target
        self._event = event
        self._give_back = give_back

    def wait(self) -> memoryview:
        """Returns the bytes when they are there."""
        self._event.synchronize()
        self._piece = None
        return memory_of(self._target)

    def release(self) -> None:
        """Lets their memory be used again."""
        self._give_back()


def is_on_accelerator(device: torch.device) -> bool:
    """Tells whether copies to and from a device can go on by themselves."""
    if device.type in {"cpu", "meta"}:
        return False
    here = torch.accelerator.current_accelerator(check_available=True)
    # What shares the memory of the host (MPS) gains nothing.
    return here is not None and here.type == device.type and device.type != "mps"


def pinned(size: int) -> torch.Tensor:
    """Returns memory of the host that the accelerator reaches by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
