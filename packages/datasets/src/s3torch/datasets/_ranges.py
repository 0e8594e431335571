"""Sources of ranges in front of others: a disk cache, and second requests for late answers.

Both are a ``RangeSource`` that wraps another, so readers and formats read from either as from S3.

Hedging: only small objects are hedged, which one request fetches whole. The first answer wins and the other
request is cancelled. The second one is sent when somebody waits for the bytes, so there is no timer, and an
object that is read ahead and not needed yet costs nothing.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar

from s3torch.core import SequentialS3Reader
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.ranges import split_range
from s3torch.core.transfer import RangeSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core import S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer import MemoryBudget, ObjectRange, ObjectSource, PendingRange
    from s3torch.datasets._cache import DiskCache

_SMALL = 1024 * 1024
_OBSERVED = 512
_ENOUGH = 32


class RangeInParts:
    """The bytes of an object from ``start`` to ``stop``, in flight: one request for each part."""

    def __init__(self, source: RangeSource, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        if stop - start <= source.part_size:
            self._into: memoryview | None = None
            self._pending = [source.start(start, stop)]
            return
        self._into = into = memoryview(bytearray(stop - start))
        self._pending = [
            source.start(part.start, part.stop, into[part.start - start : part.stop - start])
            for part in split_range(start, stop, source.part_size)
        ]

    def wait(self) -> memoryview:
        """Waits for the bytes and returns them; an error cancels the other parts."""
        try:
            while self._pending:
                data = self._pending[0].wait()
                del self._pending[0]
                if self._into is None:
                    self._into = data
        except BaseException:
            self.close()
            raise
        return self._into or memoryview(b"")

    def close(self) -> None:
        for pending in self._pending:
            pending.cancel()


class _WrappedSource(RangeSource):
    """What is the same for an object wherever its bytes come from."""

    def __init__(self, source: RangeSource) -> None:
        self.bucket = source.bucket
        self.key = source.key
        self.part_size = source.part_size
        self._wrapped = source

    @property
    def known_size(self) -> int | None:
        return self._wrapped.known_size

    def head(self) -> Any:
        return self._wrapped.head()

    def budget(self) -> MemoryBudget | None:
        return self._wrapped.budget()


class CachedRanges(_WrappedSource):
    """The ranges of an object, from a cache or from another source."""

    def __init__(self, cache: DiskCache, source: RangeSource) -> None:
        super().__init__(source)
        self._cache = cache

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        info = self.head()
        etag = getattr(info, "etag", None)
        stop = min(stop, info.size)
        if not etag or stop <= start:
            return self._wrapped.start(start, stop, into)
        name = f"{self.bucket}/{self.key}\0{etag}\0{start}-{stop}"
        found = self._cache.get(name, stop - start, into)
        if found is not None:
            return _Cached(found)
        return _Stored(self._cache, name, self._wrapped.start(start, stop, into))


@dataclass(slots=True)
class _Cached:
    """A range from the cache."""

    data: memoryview

    def wait(self) -> memoryview:
        return self.data

    def cancel(self) -> None:
        """Does nothing."""


@dataclass(slots=True)
class _Stored:
    """A range in flight, which is stored in the cache when it has arrived."""

    cache: DiskCache
    name: str
    pending: PendingRange

    def wait(self) -> memoryview:
        data = self.pending.wait()
        self.cache.put(self.name, data)
        return data

    def cancel(self) -> None:
        self.pending.cancel()


@dataclass(frozen=True, slots=True)
class CachedReaders:
    """A reader constructor whose readers look into a cache first.

    The readers are those of another constructor, and the cache has the ranges that they ask for: of the
    default reader whole objects, or the parts of those that are larger than a part. With a listing, the ETag
    is known and nothing is sent for a range in the cache; for an object that was not listed, a HEAD asks for
    its ETag. Objects without an ETag are not cached.
    """

    kind: ClassVar = "disk_cache"
    cache: DiskCache
    reader_constructor: S3ReaderConstructorProtocol | None = None

    def __call__(self, source: RangeSource, /) -> S3Reader:
        make = SequentialS3Reader if self.reader_constructor is None else self.reader_constructor
        return make(CachedRanges(self.cache, source))


def check_hedge_after(value: Any) -> float | None:
    """Returns the seconds, or the quantile as a negative number; ``None`` for no hedging."""
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
    """Decides when a request is late, from the latencies of others; calls ``count`` for each second one."""

    def __init__(self, hedge_after: float | str, count: Callable[[], object]) -> None:
        self._after = check_hedge_after(hedge_after) or 0.0
        self._latencies: deque[float] = deque(maxlen=_OBSERVED)
        self.count = count

    def observe(self, seconds: float) -> None:
        if self._after < 0:
            self._latencies.append(seconds)

    def late_after(self) -> float | None:
        """Returns after how many seconds an answer is late; ``None`` before enough were seen."""
        if self._after > 0:
            return self._after
        latencies = sorted(self._latencies)
        if len(latencies) < _ENOUGH:
            return None
        return latencies[int(-self._after * len(latencies))]


class HedgedRanges(_WrappedSource):
    """The ranges of an object in S3, hedged if it is small."""

    def __init__(self, source: ObjectSource, hedging: Hedging) -> None:
        super().__init__(source)
        self._source = source
        self._hedging = hedging

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        size = self._source.known_size
        # Two requests must not write into one buffer.
        if into is None and size is not None and size <= _SMALL and size <= self.part_size:
            return _HedgedRange(lambda: self._source.start(start, stop), self._hedging)
        return self._source.start(start, stop, into)

    def verify_whole(self) -> None:
        self._source.verify_whole()


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
        late_after = self._hedging.late_after()
        try:
            if late_after is not None:
                return self._done.get(timeout=max(0.0, self._begun + late_after - time.monotonic()))
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
