"""Copies between accelerators and memory of the host that they reach without the processor.

Such memory, which torch calls pinned, is expensive to get. Torch keeps what was freed for whoever asks for
as much, so copies are made in pieces of one size, and the memory of a piece is freed when its copy has ended:
the accelerator tells that by an event.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch

from s3torch.core.ranges import MIB
from s3torch.dcp.pieces import memory_of

__all__ = ["PIECE", "FromDevice", "FromHost", "HostCopy", "ToDevice", "ToHost"]

# The most bytes of one copy.
PIECE = 8 * MIB

_UNDER_WAY = 4 * PIECE


class HostCopy(Protocol):
    """Bytes on their way to the host."""

    def wait(self) -> memoryview:
        """Returns the bytes when they are there."""
        ...


class ToHost(Protocol):
    """Starts copies from an accelerator; for one thread."""

    def serves(self, tensor: torch.Tensor) -> bool:
        """Tells whether copies of a tensor can be started."""
        ...

    def start(self, piece: torch.Tensor) -> HostCopy:
        """Starts to copy a row of bytes, which do not change before they are there."""
        ...


class ToDevice(Protocol):
    """Copies bytes into tensors of an accelerator; for one thread."""

    def serves(self, tensor: torch.Tensor) -> bool:
        """Tells whether bytes can be copied into a tensor."""
        ...

    def take(self, size: int) -> torch.Tensor:
        """Returns a row of bytes on the host, to be filled and given to ``start``."""
        ...

    def start(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Starts to copy a row of bytes; the source is not used by others before they are there."""
        ...

    def finish(self) -> None:
        """Waits until all bytes are there."""
        ...


class FromDevice:
    """Copies from the accelerator of this process, on streams of their own."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.Stream] = {}

    def serves(self, tensor: torch.Tensor) -> bool:
        """Tells whether the tensor is on the accelerator of this process."""
        return _is_on_accelerator(tensor.device)

    def start(self, piece: torch.Tensor) -> HostCopy:
        """Starts a copy, which waits for what was asked of the accelerator before the first one."""
        target = _pinned(piece.numel())
        stream = self._stream(piece.device)
        with stream:
            target.copy_(piece, non_blocking=True)
            event = stream.record_event()
        return _Started(piece, target, event)

    def _stream(self, device: torch.device) -> torch.Stream:
        stream = self._streams.get(device)
        if stream is None:
            stream = self._streams[device] = torch.Stream(device)
            stream.wait_stream(torch.accelerator.current_stream(device))
        return stream


class _Started:
    def __init__(self, piece: torch.Tensor, target: torch.Tensor, event: torch.Event) -> None:
        # It has to live until the accelerator has read it.
        self._piece: torch.Tensor | None = piece
        self._target = target
        self._event = event

    def wait(self) -> memoryview:
        """Returns the bytes when they are there."""
        self._event.synchronize()
        self._piece = None
        return memory_of(self._target)


class FromHost:
    """Copies to the accelerator of this process.

    They are made on the stream that the caller uses, so that whatever the caller asks of the accelerator
    next finds the bytes there.
    """

    def __init__(self) -> None:
        self._started: deque[tuple[torch.Event, torch.Tensor]] = deque()
        self._bytes = 0

    def serves(self, tensor: torch.Tensor) -> bool:
        """Tells whether the tensor is on the accelerator of this process."""
        return _is_on_accelerator(tensor.device)

    def take(self, size: int) -> torch.Tensor:
        """Returns pinned memory."""
        return _pinned(size)

    def start(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Starts a copy; waits for older ones when there are many."""
        target.copy_(source, non_blocking=True)
        event = torch.accelerator.current_stream(target.device).record_event()
        self._started.append((event, source))
        self._bytes += source.nbytes
        while self._bytes > _UNDER_WAY:
            self._wait()

    def finish(self) -> None:
        """Waits until all bytes are there."""
        while self._started:
            self._wait()

    def _wait(self) -> None:
        event, source = self._started.popleft()
        event.synchronize()
        self._bytes -= source.nbytes


def _is_on_accelerator(device: torch.device) -> bool:
    """Tells whether copies to and from a device go on by themselves."""
    if device.type in {"cpu", "meta"}:
        return False
    here = torch.accelerator.current_accelerator(check_available=True)
    # What shares the memory of the host (MPS) gains nothing.
    return here is not None and here.type == device.type and device.type != "mps"


def _pinned(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)
