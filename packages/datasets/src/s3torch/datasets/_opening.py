"""Readers of the objects of a dataset, with the downloads of the next ones in flight.

``look_ahead`` is the one bounded look-ahead of this package: of readers, of shards and of ranges.

Hedging sends second requests for late answers: only for small objects, which one request fetches whole. The
first answer wins and the other request is cancelled. The second one is sent when somebody waits for the
bytes, so there is no timer, and an object that is read ahead and not needed yet costs nothing.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from s3torch.core import SequentialS3Reader
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.ranges import split_range
from s3torch.core.transfer import default_memory_limit
from s3torch.datasets._cache import WrappedSource
from s3torch.datasets.sources._sources import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer import ObjectRange, ObjectSource, PendingRange, RangeSource

DEFAULT_PREFETCH = 128
_MIB = 1024 * 1024
_LOWEST_BYTES = 16 * _MIB
_HIGHEST_BYTES = 256 * _MIB
_GENTLE_BYTES = 64 * _MIB
_SHARE_OF_LIMIT = 4
_UNKNOWN_SIZE = _MIB
_SMALL = _MIB
_OBSERVED = 512
_ENOUGH = 32


def identity(reader: S3Reader) -> S3Reader:
    """Returns the unread reader itself as the sample.

    Datasets know this function: they start no download for a reader that they hand out, so that it can be
    pickled and holds no memory until it is read.
    """
    return reader


class Closable(Protocol):
    """What can be started ahead; ``close`` cancels what is in flight."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


@dataclass(frozen=True, slots=True)
class Ahead:
    """How many objects and bytes may be in flight ahead of a consumer; ``least`` objects of any size."""

    objects: int
    size: int = _HIGHEST_BYTES
    least: int = 2


def check_prefetch(prefetch: int | None) -> int:
    """Returns how many objects to start ahead; refuses what is no integer from 0 on."""
    value: Any = DEFAULT_PREFETCH if prefetch is None else prefetch
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"prefetch must be an integer from 0 on, got {value!r}")
    return value


def choose_ahead(prefetch: int | None, *, memory_limit: int) -> Ahead:
    """Decides how much a process starts ahead: ``prefetch`` objects within a share of its memory."""
    share = memory_limit // _SHARE_OF_LIMIT
    return Ahead(check_prefetch(prefetch), max(_LOWEST_BYTES, min(share, _HIGHEST_BYTES)))


def start_download(item: object) -> None:
    """Starts the download of what can do so on its own; other readers wait for their first read."""
    # For every object: to ask whether it is of a protocol takes longer than to start.
    prefetch = getattr(item, "prefetch", None)
    if callable(prefetch):
        prefetch()


def look_ahead(
    items: Iterable[C],
    ahead: Ahead,
    *,
    start: Callable[[C], object] = start_download,
    weigh: Callable[[C], int] = lambda _: 0,
    gently: bool = False,
) -> Generator[C]:
    """Yields items in their order while the downloads of more are in flight.

    When the iterator is closed or an error ends it, the items that were started and not yielded are closed.

    Args:
        items: Made as they are needed.
        ahead: The limits; the budget of the process also bounds the downloads of all datasets together.
        start: Starts the download of an item, unless it was started when it was made.
        weigh: Returns the bytes that an item, which was just made, starts.
        gently: Starts twice as many as were taken, and no more than 64 MiB: for a consumer that may stop at
            any time.
    """
    if gently:
        ahead = replace(ahead, size=min(ahead.size, _GENTLE_BYTES))
    if ahead.objects == 0:
        yield from items
        return
    waiting: deque[C] = deque()
    sizes: deque[int] = deque()
    weight = taken = 0
    try:
        for item in items:
            waiting.append(item)
            sizes.append(weigh(item))
            weight += sizes[-1]
            start(item)
            while (
                len(waiting) > ahead.objects
                or (len(waiting) > ahead.least and weight > ahead.size)
                or (gently and len(waiting) > 2 * (taken + 1))
            ):
                weight -= sizes.popleft()
                taken += 1
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for item in waiting:
            item.close()


@cache
def _default_limit(pid: int) -> int:  # noqa: ARG001 - a worker has another one than its parent
    """Asks once in each process, for it takes longer than to start a download."""
    return default_memory_limit()


@dataclass(slots=True)
class Opener:
    """Opens objects with one client.

    It does not refer to the dataset, so that what is read ahead does not keep a dataset alive.
    """

    client: S3Client
    reader_constructor: S3ReaderConstructorProtocol | None
    prefetch: int | None
    hedging: Hedging | None

    def open(self, item: S3BucketKeyData) -> S3Reader:
        place, facts, constructor = (item.bucket, item.key), facts_of(item), self.reader_constructor
        if self.hedging is None:
            return self.client.get_object(*place, reader_constructor=constructor, **facts)
        source = self.client.open_ranges(*place, **facts)
        make = SequentialS3Reader if constructor is None else constructor
        return make(HedgedRanges(source, self.hedging))

    def ahead(self, items: Iterable[S3BucketKeyData], *, gently: bool = False) -> Generator[S3Reader]:
        config = self.client.s3client_config
        limit = _default_limit(os.getpid()) if config.memory_limit is None else config.memory_limit
        ahead, size = choose_ahead(self.prefetch, memory_limit=limit), 0

        def opened() -> Iterator[S3Reader]:
            nonlocal size
            for item in items:
                info = item.object_info
                size = min(_UNKNOWN_SIZE if info is None else info.size, config.part_size)
                yield self.open(item)

        return look_ahead(opened(), ahead, weigh=lambda _: size, gently=gently)


class RangeInParts:
    """The bytes of an object from ``start`` to ``stop``, in flight: one request for each part."""

    def __init__(self, source: RangeSource, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        if stop - start <= source.part_size:
            self._into: memoryview | None = None
            self._pending = [source.start(start, stop)]
            return
        try:
            self._into = into = memoryview(bytearray(stop - start))
        except (MemoryError, OverflowError) as exc:
            why = f"the {stop - start} bytes from {start} on do not fit in memory"
            raise S3Error(why, bucket=source.bucket, key=source.key) from exc
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


class HedgedRanges(WrappedSource):
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
