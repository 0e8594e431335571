"""A second request for an answer that is late: the first answer wins, the other request is cancelled.

Only small objects are hedged, which one request fetches whole. The second one is sent when somebody waits for
the bytes, so there is no timer, and an object that is read ahead and not needed yet costs nothing.
"""

from __future__ import annotations

import time
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError, S3Error

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.memory import MemoryBudget
    from s3torch.core.transfer.source import ObjectRange, ObjectSource, PendingRange

__all__ = ["Hedging", "check_hedge_after"]

_SMALL = 1024 * 1024
_OBSERVED = 512
_ENOUGH = 32


def check_hedge_after(value: Any) -> float | None:
    """Returns the seconds, or the quantile as a negative number; ``None`` for no hedging.

    Raises:
        ConfigurationError: It is neither a positive number nor a quantile like ``"p95"``.
    """
    if value is None:
        return None
    if isinstance(value, str) and value.startswith("p") and value[1:].replace(".", "", 1).isdecimal():
        quantile = float(value[1:]) / 100
        if 0 < quantile < 1:
            return -quantile
    elif isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    raise ConfigurationError(
        f"hedge_after must be seconds above 0 or a quantile of latencies like 'p95', got {value!r}"
    )


class Hedging:
    """Decides when a request is late, from what other requests took.

    Args:
        hedge_after: Seconds, or a quantile of the last latencies, as in ``"p95"``.
        count: Called for each second request.
    """

    def __init__(self, hedge_after: float | str, count: Callable[[], object]) -> None:
        self._after = check_hedge_after(hedge_after) or 0.0
        self._latencies: deque[float] = deque(maxlen=_OBSERVED)
        self.count = count

    def source(self, source: ObjectSource) -> HedgedSource:
        """Returns a source whose small ranges are hedged."""
        return HedgedSource(source, self)

    def observe(self, seconds: float) -> None:
        """Notes the latency of an answer."""
        if self._after < 0:
            self._latencies.append(seconds)

    def patience(self) -> float | None:
        """Returns after how many seconds an answer is late; ``None`` before enough were seen."""
        if self._after > 0:
            return self._after
        latencies = sorted(self._latencies)
        if len(latencies) < _ENOUGH:
            return None
        return latencies[int(-self._after * len(latencies))]


class HedgedSource:
    """An object as a source of ranges, the small ones hedged. It has the methods of ``ObjectSource``."""

    def __init__(self, source: ObjectSource, hedging: Hedging) -> None:
        self.bucket = source.bucket
        self.key = source.key
        self.part_size = source.part_size
        self._source = source
        self._hedging = hedging

    def __call__(self, start: int | None = None, end: int | None = None) -> Any:
        """Streams the bytes, unhedged."""
        return self._source(start, end)

    @property
    def known_size(self) -> int | None:
        """The size of the object in bytes, if it is known already."""
        return self._source.known_size

    def head(self) -> Any:
        """Tells what is known of the object."""
        return self._source.head()

    def budget(self) -> MemoryBudget:
        """The budget of this process."""
        return self._source.budget()

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        """Starts one request for the bytes from ``start`` to ``stop``."""
        size = self._source.known_size
        # Two requests must not write into one buffer.
        if into is None and size is not None and size <= _SMALL and size <= self.part_size:
            return _HedgedRange(lambda: self._source.start(start, stop), self._hedging)
        return self._source.start(start, stop, into)


class _HedgedRange:
    def __init__(self, start: Callable[[], ObjectRange], hedging: Hedging) -> None:
        self._start = start
        self._hedging = hedging
        self._begun = time.monotonic()
        self._done: SimpleQueue[ObjectRange] = SimpleQueue()
        self._running: set[ObjectRange] = set()
        self._add()

    def wait(self) -> memoryview:
        ready = self._first_done()
        while True:
            self._running.discard(ready)
            try:
                data = ready.wait()
            except S3Error:
                # The other request may still have an answer.
                if not self._running:
                    raise
                ready = self._done.get()
            else:
                self.cancel()
                return data

    def cancel(self) -> None:
        running, self._running = self._running, set()
        for pending in running:
            pending.cancel()

    def _first_done(self) -> ObjectRange:
        patience = self._hedging.patience()
        try:
            if patience is not None:
                return self._done.get(timeout=max(0.0, self._begun + patience - time.monotonic()))
        except Empty:
            self._hedging.count()
            self._add()
        return self._done.get()

    def _add(self) -> None:
        pending, begun = self._start(), time.monotonic()
        self._running.add(pending)

        def arrived() -> None:
            self._hedging.observe(time.monotonic() - begun)
            self._done.put(pending)

        pending.add_done_callback(arrived)
