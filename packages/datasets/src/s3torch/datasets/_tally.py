"""What the processes of a dataset count together."""

from __future__ import annotations

import torch
from torch.utils.data import get_worker_info

_SLOTS = 256
_NAMES = ("skipped", "hedged")


class Tally:
    """Counts events in shared memory, which forked and spawned workers have in common with their parent.

    Each worker writes into its own slot, so that nothing is lost.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(len(_NAMES), _SLOTS, dtype=torch.int64).share_memory_()

    def add(self, name: str) -> None:
        """Counts one event."""
        info = get_worker_info()
        self._counts[_NAMES.index(name), 0 if info is None else 1 + info.id % (_SLOTS - 1)] += 1

    def total(self, name: str) -> int:
        """Returns how many events all processes have counted."""
        return int(self._counts[_NAMES.index(name)].sum())
