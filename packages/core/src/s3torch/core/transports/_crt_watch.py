"""How long the ``crt`` transport waits for an answer.

The CRT hands over an answer only when it is whole: while the bytes of a part come or go, nothing is called.
So what is bounded is the whole answer, with time for the bytes that share the line.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from s3torch.core.ranges import MIB
from s3torch.core.transports._timer import timer

if TYPE_CHECKING:
    from s3torch.core.config import S3ClientConfig
    from s3torch.core.transports._crt_transfer import CrtTransfer

_SLOWEST_BYTES_PER_SECOND = 1 * MIB
_MOST_TIMES_LONGER = 10
_LOOKS_PER_TIMEOUT = 4


class Watch:
    """Gives every attempt a deadline, and gives up those that miss it."""

    def __init__(self, config: S3ClientConfig, live: set[CrtTransfer[Any]]) -> None:
        self._timeout = config.read_timeout
        self._part_size = config.part_size
        self._live = live
        self._looking = False
        self._lock = threading.RLock()  # The collector may abort a dropped upload in here.

    def begin(self, transfer: CrtTransfer[Any]) -> None:
        """Sets the deadline of an attempt that is about to be sent."""
        waiting = len(self._live) * self._part_size
        size = transfer.exchange.part_size or (len(transfer.body) if transfer.body is not None else 0)
        seconds = (max(size - self._part_size, 0) + waiting) / _SLOWEST_BYTES_PER_SECOND
        extra = min(seconds, _MOST_TIMES_LONGER * self._timeout)
        transfer.deadline = time.monotonic() + self._timeout + extra
        with self._lock:
            if self._looking:
                return
            self._looking = True
        self._look_later()

    def _look_later(self) -> None:
        timer.get().call_later(min(self._timeout / _LOOKS_PER_TIMEOUT, 1.0), self._look)

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            live = list(self._live)
            self._looking = bool(live)
        for transfer in live:
            transfer.check_deadline(now)
        if live:
            self._look_later()
