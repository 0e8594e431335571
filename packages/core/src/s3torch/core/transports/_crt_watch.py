"""How long the ``crt`` transport waits for an answer.

The CRT hands over an answer only when it is whole: while the bytes of a part come or go, nothing is called.
Whether any bytes move is asked of the kernel. While they do, what is bounded is the whole answer, with time
for the bytes that share the line.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from s3torch.core.ranges import MIB
from s3torch.core.transports._crt_traffic import moved_bytes
from s3torch.core.transports._timer import timer

if TYPE_CHECKING:
    from s3torch.core.config import S3ClientConfig
    from s3torch.core.models import BucketEndpoint
    from s3torch.core.transports._crt_transfer import CrtTransfer

_SLOWEST_BYTES_PER_SECOND = 1 * MIB
_MOST_TIMES_LONGER = 10
_LOOKS_PER_TIMEOUT = 8
_PORTS = {"http": 80, "https": 443}


class Watch:
    """Gives every attempt a deadline, and gives up those that miss it or that nothing comes for."""

    def __init__(self, config: S3ClientConfig, live: set[CrtTransfer[Any]]) -> None:
        self._timeout = config.read_timeout
        self._part_size = config.part_size
        self._live = live
        self._servers: set[tuple[str, str]] = set()
        self._moved: int | None = None
        self._moved_at = 0.0
        self._looking = False
        self._lock = threading.RLock()  # The collector may abort a dropped upload in here.

    def begin(self, transfer: CrtTransfer[Any], endpoint: BucketEndpoint) -> None:
        """Sets the deadline of an attempt that is about to be sent."""
        waiting = len(self._live) * self._part_size
        size = transfer.exchange.part_size or (len(transfer.body) if transfer.body is not None else 0)
        seconds = (max(size - self._part_size, 0) + waiting) / _SLOWEST_BYTES_PER_SECOND
        extra = min(seconds, _MOST_TIMES_LONGER * self._timeout)
        transfer.begun_at = time.monotonic()
        transfer.deadline = transfer.begun_at + self._timeout + extra
        with self._lock:
            self._servers.add((endpoint.scheme, endpoint.host))
            if self._looking:
                return
            self._looking = True
        self._look_later()

    def _look_later(self) -> None:
        timer.get().call_later(min(self._timeout / _LOOKS_PER_TIMEOUT, 1.0), self._look)

    def _look(self) -> None:
        with self._lock:
            live = list(self._live)
            self._looking = bool(live)
        if not live:
            return
        now = time.monotonic()
        moved = moved_bytes(_ports(self._servers))
        if moved is None or moved != self._moved:
            self._moved, self._moved_at = moved, now
        for transfer in live:
            begun_at = transfer.begun_at
            silent_since = max(self._moved_at, begun_at)
            if now >= transfer.deadline or now - silent_since >= self._timeout:
                transfer.give_up(begun_at)
        self._look_later()


def _ports(servers: set[tuple[str, str]]) -> set[int]:
    """Tells to which ports there are connections; none if there may be others."""
    from urllib.request import getproxies

    if not getproxies().keys().isdisjoint(_PORTS):
        return set()
    return {urlsplit(f"//{host}").port or _PORTS[scheme] for scheme, host in servers}
