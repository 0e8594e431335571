"""The native clients of a process, and what a fork does to them.

A fork while native threads end would leave their locks held in the child, so it waits for clients that are
ending. In a child whose parent had native clients none is ended at all: the ends of threads there were seen
to crash. What nobody holds any more is kept, and used again for the same host and settings.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from s3torch.core._process import abandon

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from awscrt.s3 import S3Client

_ENDING_SECONDS = 2.0
_LAST_THREAD_SECONDS = 0.05


class NativeClients:
    """Makes native clients and lets go of them."""

    def __init__(self) -> None:
        # Whether this process, or one that it was forked from, has had native clients.
        self._had_any = False
        self._begin(ends=True)

    def _begin(self, *, ends: bool) -> None:
        self._ends = ends
        self._lock = threading.RLock()  # The collector may drop a transport in here.
        self._made: list[tuple[weakref.ref[S3Client], threading.Event]] = []
        self._kept: dict[Hashable, list[S3Client]] = {}

    def take(self, kind: Hashable, make: Callable[[], S3Client]) -> S3Client:
        """Returns a client of this kind: one that was kept, or another."""
        with self._lock:
            kept = self._kept.get(kind)
            if kept:
                return kept.pop()
        client = make()
        with self._lock:
            self._had_any = True
            self._made.append((weakref.ref(client), client.shutdown_event))
        return client

    def let_go(self, clients: dict[Hashable, S3Client], process: int) -> None:
        """Empties a mapping of clients by kind; they end when their last request has, or are kept.

        Args:
            clients: The clients.
            process: The process that made them; in another they are left alone.
        """
        if process != os.getpid():
            abandon(clients)
            return
        while clients:
            kind, client = clients.popitem()
            if not self._ends:
                with self._lock:
                    self._kept.setdefault(kind, []).append(client)

    def before_fork(self) -> None:
        """Lets clients that nobody holds any more come to their end."""
        ending = [made for made in list(self._made) if made[0]() is None]
        for made in ending:
            made[1].wait(_ENDING_SECONDS)
            self._made.remove(made)
        if ending:
            # The CRT tells of the end before the last of its threads is gone, which may still hold locks.
            time.sleep(_LAST_THREAD_SECONDS)

    def after_fork_in_child(self) -> None:
        """Forgets the parent's clients without touching them."""
        abandon(self._kept)
        self._begin(ends=not self._had_any)


natives = NativeClients()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=natives.before_fork, after_in_child=natives.after_fork_in_child)
