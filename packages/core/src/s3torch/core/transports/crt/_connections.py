"""Native clients, which are shared, and kept with their connections.

A fork while native threads end would leave their locks held in the child, so it waits for clients that are
ending. In a child whose parent had native clients none is ended at all: the ends of threads there were seen
to crash. What nobody holds any more is kept, and used again for the same host and settings.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from s3torch.core._process import abandon
from s3torch.core.transports.crt._watch import timer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from awscrt.s3 import S3Client

    from s3torch.core.transports.crt._transport import Turns

# S3 closes idle connections after some seconds itself.
_KEPT_SECONDS = 15.0
_ENDING_SECONDS = 2.0
_LAST_THREAD_SECONDS = 0.05


@dataclass(frozen=True, eq=False)
class SharedClient:
    """A native client, and the turns of the small requests that it is sent."""

    native: S3Client
    turns: Turns


class NativeClients:
    """The native clients of a process: those who ask for the same kind share one, and its connections.

    A client that nobody holds any more is kept for a while, because the next dataset or checkpoint of the
    same settings would have to connect again.
    """

    def __init__(self) -> None:
        # Whether this process, or one that it was forked from, has had native clients.
        self._had_any = False
        self._begin(ends=True)

    def _begin(self, *, ends: bool) -> None:
        self._ends = ends
        self._made: list[tuple[weakref.ref[S3Client], threading.Event]] = []
        self._shared: WeakValueDictionary[Hashable, SharedClient] = WeakValueDictionary()
        # With the time until which they are kept.
        self._kept: dict[Hashable, tuple[SharedClient, float]] = {}
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.

    def take(self, kind: Hashable, make: Callable[[], SharedClient]) -> SharedClient:
        """Returns the client of this kind."""
        with self._lock:
            client = self._shared.get(kind)
            if client is None:
                client = self._shared[kind] = make()
                self._had_any = True
                self._made.append((weakref.ref(client.native), client.native.shutdown_event))
                if len(self._shared) == 1:
                    self._end_kept()
        return client

    def let_go(self, clients: dict[Hashable, SharedClient], process: int, *, at_once: bool = False) -> None:
        """Empties a mapping of clients by kind; those that nobody else holds end when their last request has.

        Without a lock: finalizers call it.

        Args:
            clients: The clients.
            process: The process that made them; in another they are left alone.
            at_once: Whether they end now, and not after a while.
        """
        if process != os.getpid():
            abandon(clients)
            return
        while clients:
            kind, client = clients.popitem()
            if not self._ends:
                self._kept[kind] = client, math.inf
            elif at_once:
                self._kept.pop(kind, None)
            else:
                self._kept[kind] = client, time.monotonic() + _KEPT_SECONDS

    def _end_kept(self) -> None:
        """Lets go of those whose time is over; a finalizer could not start the thread that calls this."""
        now = time.monotonic()
        for kind, (_, until) in list(self._kept.items()):
            if until <= now:
                self._kept.pop(kind, None)
        if self._shared:
            timer.get().call_later(_KEPT_SECONDS, self._end_kept)

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
