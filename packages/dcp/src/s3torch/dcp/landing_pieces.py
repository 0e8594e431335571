"""The pieces of a tensor on an accelerator: received on the host, and copied from there one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from s3torch.dcp.device_copies import PIECE
from s3torch.dcp.pieces import memory_of

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

    from s3torch.dcp.device_copies import ToDevice

__all__ = ["LandingPiece", "landing_pieces"]


class _Landed:
    """Counts the pieces of one target."""

    def __init__(self, request: ReadItem, target: torch.Tensor, count: int) -> None:
        self._request = request
        self._target = target
        self._missing = count

    def add(self, planner: LoadPlanner) -> None:
        """Commits the target with the last piece."""
        self._missing -= 1
        if not self._missing:
            planner.commit_tensor(self._request, self._target)


class LandingPiece:
    """Some bytes of a target.

    Args:
        start: Where they are in the file.
        target: Where they belong.
        device: Copies them.
        landed: Is told of it.
    """

    def __init__(self, start: int, target: torch.Tensor, device: ToDevice, landed: _Landed) -> None:
        self.start = start
        self.stop = start + target.nbytes
        self.held = target.nbytes
        self._target = target
        self._device = device
        self._landed = landed
        self._memory: torch.Tensor | None = None
        self._view: memoryview | None = None

    def open(self) -> memoryview:
        """Returns the memory that takes the bytes."""
        if self._memory is None or self._view is None:
            self._memory = self._device.take(self.held)
            self._view = memory_of(self._memory)
        return self._view

    def finish(self, planner: LoadPlanner) -> None:
        """Sends the bytes, which are there now, to the target."""
        if self._memory is not None:
            self._device.start(self._memory, self._target)
        self._memory = self._view = None
        self._landed.add(planner)


def landing_pieces(
    request: ReadItem, start: int, target: torch.Tensor, device: ToDevice
) -> list[LandingPiece]:
    """Cuts a target with the form of what is stored into pieces.

    Args:
        request: The read item.
        start: Where its bytes begin in the file.
        target: What the read item fills, some bytes, in order.
        device: Copies them.
    """
    pieces = target.reshape(-1).view(torch.uint8).split(PIECE)
    landed = _Landed(request, target, len(pieces))
    return [
        LandingPiece(start + number * PIECE, piece, device, landed) for number, piece in enumerate(pieces)
    ]
