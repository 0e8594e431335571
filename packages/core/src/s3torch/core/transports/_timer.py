"""One thread of the process that calls functions later; all waiting of the ``crt`` transport is done here."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

from s3torch.core._process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)


class Timer:
    """Calls functions at their time on one thread, which is started by the first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        # Reentrant, because the collector may run what calls back here.
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Calls ``function`` after so many seconds; it must not block."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), function))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="s3torch-timer", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            function = self._next()
            try:
                function()
            except Exception:  # noqa: BLE001 - The others must still be called.
                _log.exception("a function that was called later failed")
            del function

    def _next(self) -> Callable[[], object]:
        with self._changed:
            while not self._due or self._due[0][0] > time.monotonic():
                wait = self._due[0][0] - time.monotonic() if self._due else None
                self._changed.wait(wait if wait is None else max(0.0, wait))
            return heapq.heappop(self._due)[2]


# Threads do not survive a fork; the child starts its own.
timer = PerProcess(Timer)
