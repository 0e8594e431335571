"""What ``http`` transports of equal settings share in a process: idle connections, and how many to have."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from s3torch.core._process import PerProcess, start_thread
from s3torch.core.errors import S3Error
from s3torch.core.transports._request_target import RequestTarget

if TYPE_CHECKING:
    from collections.abc import Hashable

    from s3torch.core.seam import TransportContext
    from s3torch.core.transports.http._connection import Connection
    from s3torch.core.transports.http._connections import Connections

# S3 closes idle connections itself after some seconds more.
_IDLE_SECONDS = 15.0
# More small requests in flight mean more threads that contend for the interpreter's lock.
_FEWEST = 4


class IdleConnections:
    """The idle connections of all transports of a process whose settings are equal.

    They outlive a transport that is dropped, because the next dataset or checkpoint of the same settings
    would have to connect again. The thread that closes what was idle for too long keeps them until then.
    """

    def __init__(self) -> None:
        # In the order in which they were given back; the last one is the warmest.
        self._connections: list[Connection] = []
        self._users: weakref.WeakSet[Connections] = weakref.WeakSet()
        # By their limits.
        self._targets: dict[int, RequestTarget] = {}
        self._is_watched = False
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.

    def join(self, user: Connections) -> None:
        with self._lock:
            self._users.add(user)

    def target(self, limit: int) -> RequestTarget:
        with self._lock:
            return self._targets.setdefault(limit, RequestTarget(limit, fewest=_FEWEST))

    def leave(self, user: Connections) -> None:
        with self._lock:
            self._users.discard(user)
            dropped: list[Connection] = []
            if not self._users:
                dropped, self._connections = self._connections, []
        _close_all(dropped)

    def take(self, origin: tuple[str, str]) -> Connection | None:
        with self._lock:
            for index in reversed(range(len(self._connections))):
                if self._connections[index].origin == origin:
                    return self._connections.pop(index)
        return None

    def keep(self, connection: Connection, limit: int) -> None:
        with self._lock:
            self._connections.append(connection)
            dropped = self._drop(len(self._connections) - limit)
            starts, self._is_watched = not self._is_watched, True
        _close_all(dropped)
        if starts:
            try:
                start_thread(self._watch, name="s3torch-idle")
            except S3Error:  # Then old ones are closed when others are given back.
                self._is_watched = False

    def _watch(self) -> None:
        """Closes what is idle for too long, on a thread that ends with the last one."""
        while self._is_watched:
            time.sleep(_IDLE_SECONDS)
            with self._lock:
                dropped = self._drop(0)
                self._is_watched = bool(self._connections)
            _close_all(dropped)

    def _drop(self, surplus: int) -> list[Connection]:
        """Takes out what was idle for too long, and the oldest beyond the limit."""
        oldest = time.monotonic() - _IDLE_SECONDS
        kept = self._connections
        count = 0
        while count < len(kept) and (count < surplus or kept[count].idle_since < oldest):
            count += 1
        dropped, self._connections = kept[:count], kept[count:]
        return dropped


class _SharedIdle:
    """The idle connections of a process, by the settings that a connection has."""

    def __init__(self) -> None:
        self._by_kind: weakref.WeakValueDictionary[Hashable, IdleConnections] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()

    def join(self, user: Connections, context: TransportContext) -> IdleConnections:
        """Returns those that a transport with these settings shares."""
        from urllib.request import getproxies

        config = context.config
        kind = (
            context.session.ca_bundle,
            config.read_timeout,
            config.low_speed_limit,
            config.low_speed_time,
            tuple(sorted(getproxies().items())),
        )
        with self._lock:
            idle = self._by_kind.get(kind)
            if idle is None:
                idle = self._by_kind[kind] = IdleConnections()
            idle.join(user)
        return idle


shared = PerProcess(_SharedIdle)


def _close_all(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()
