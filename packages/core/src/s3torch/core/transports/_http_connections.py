"""The kept connections of one ``http`` transport."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING

from s3torch.core.transports._http_connect import Connector

if TYPE_CHECKING:
    from s3torch.core.config import S3ClientConfig
    from s3torch.core.models import BucketEndpoint
    from s3torch.core.transports._http_connection import Connection

# S3 closes idle connections itself after some seconds more.
_IDLE_SECONDS = 15.0


class Connections:
    """Gives out connections and takes them back; may be used by many threads at a time.

    Args:
        config: The settings with the time-outs.
        limit: How many idle connections are kept; those in use are as many as there are threads.
    """

    def __init__(self, config: S3ClientConfig, limit: int) -> None:
        self._connector = Connector(config)
        self._limit = limit
        # In the order in which they were given back; the last one is the warmest.
        self._idle: list[Connection] = []
        # Where a client is dropped without being closed, its sockets must not be left to complain.
        weakref.finalize(self, _close_all, self._idle).atexit = False
        self._closed = False
        self._lock = threading.RLock()  # The collector may abort a dropped upload in here.

    def take(self, endpoint: BucketEndpoint, *, fresh: bool = False) -> Connection:
        """Returns a connection to the host of a bucket.

        Args:
            endpoint: The address.
            fresh: Whether it has to be a new one.

        Raises:
            OSError: None could be made.
        """
        origin = (endpoint.scheme, endpoint.host)
        while not fresh:
            kept = self._take_idle(origin)
            if kept is None:
                break
            if kept.is_alive():
                return kept
            kept.close()
        return self._connector.connect(*origin)

    def give_back(self, connection: Connection) -> None:
        """Takes a connection back; keeps it if it may be used again."""
        if not connection.is_reusable:
            connection.close()
            return
        connection.rest()
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                dropped = self._drop_surplus()
            else:
                dropped = [connection]
        for old in dropped:
            old.close()

    def close(self) -> None:
        """Closes the idle connections; those in use are closed when they come back."""
        with self._lock:
            self._closed = True
            _close_all(self._idle)

    def _take_idle(self, origin: tuple[str, str]) -> Connection | None:
        with self._lock:
            for index in reversed(range(len(self._idle))):
                if self._idle[index].origin == origin:
                    return self._idle.pop(index)
        return None

    def _drop_surplus(self) -> list[Connection]:
        """Takes out what was idle for too long, and the oldest beyond the limit."""
        oldest = time.monotonic() - _IDLE_SECONDS
        surplus = len(self._idle) - self._limit
        count = 0
        while count < surplus or self._idle[count].idle_since < oldest:
            count += 1
        dropped = self._idle[:count]
        del self._idle[:count]
        return dropped


def _close_all(idle: list[Connection]) -> None:
    while idle:
        idle.pop().close()
