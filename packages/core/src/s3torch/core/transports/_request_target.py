"""How many small requests to have in flight: few where a store answers at once, many where it takes a while.

More connections than keep an interpreter busy with answers cost handshakes, memory and the interpreter's
lock, on both sides, and bring nothing. How many that is follows from how long the quickest answer takes.
Where that asks for many, a few more are tried first: if answers then take as much longer, they wait for each
other, and more connections would not bring more of them.
"""

from __future__ import annotations

import statistics
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST = 10
# So many need no proof. The next stage is as many as the quickest answer asks for.
_UNPROVEN = 28
# About what one interpreter takes in.
_ANSWERS_PER_SECOND = 4000
# A network changes, and what was quickest must not be so for ever.
_PROBE_SECONDS = 5.0
_FEWEST_ANSWERS = 8


class RequestTarget:
    """The number of small requests to have in flight to one store; shared by all who send to it.

    Args:
        limit: The most.
        fewest: The least, also while it is found out how long an answer takes that waits for no other.
        connects: Whether the seconds that are told include those of making a connection, where one was made.
        clock: Tells the seconds.
    """

    def __init__(
        self,
        limit: int,
        *,
        fewest: int,
        connects: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self._fewest = min(fewest, limit)
        self._connects = connects
        self._clock = clock
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        # With few in flight: how many, the seconds that an answer takes, and those of the quickest.
        self._base: tuple[int, float, float] | None = None
        self._probed_at = clock()
        # Whether answers have been seen to wait for each other where many were in flight.
        self._queued = False
        self._begin(min(_FIRST, limit))

    def _begin(self, count: int) -> None:
        self.count = count
        self._since = self._clock()
        self._unseen = count if self._connects else 0
        self._seconds: list[float] = []

    def answered(self, sent_at: float) -> None:
        """Takes note of an answer that has just come, while others waited: as many as wanted were in flight.

        Args:
            sent_at: When it was asked for.
        """
        with self._lock:
            now = self._clock()
            if sent_at < self._since:
                return
            if self._unseen:
                self._unseen -= 1
                return
            self._seconds.append(now - sent_at)
            if len(self._seconds) >= max(self.count, _FEWEST_ANSWERS):
                self._judge(now)

    def stuck(self) -> None:
        """Takes note that no answer has come for a while, so that some may be stuck: others get a chance."""
        with self._lock:
            self._begin(min(2 * self.count, self.limit))

    def _judge(self, now: float) -> None:
        seconds = statistics.median(self._seconds)
        if self._base is None:
            self._base = self.count, seconds, min(self._seconds)
            self._probed_at, self._queued = now, False
        elif now - self._probed_at >= _PROBE_SECONDS:
            self._base = None
            self._begin(self._fewest)
            return
        count, quick, quickest = self._base
        # In a queue answers take as many times longer as there are more; without one, as long as before.
        if self.count >= _UNPROVEN and seconds > quick * (self.count / count) ** 0.5:
            self._queued = True
        most = _UNPROVEN if self._queued or self.count < _UNPROVEN else self.limit
        wanted = max(self._fewest, min(round(quickest * _ANSWERS_PER_SECOND), most, self.limit))
        self._seconds.clear()
        if wanted != self.count:
            self._begin(wanted)
