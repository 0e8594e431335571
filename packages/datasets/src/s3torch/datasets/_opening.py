"""Readers of the objects of a dataset, with the downloads of the next ones in flight.

``look_ahead`` is the one bounded look-ahead of this package: of readers, of shards and of ranges.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from s3torch.core import SequentialS3Reader
from s3torch.core.errors import ConfigurationError
from s3torch.core.transfer import default_memory_limit
from s3torch.datasets._ranges import CachedRanges, CachedReaders, HedgedRanges
from s3torch.datasets.sources._sources import facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer import RangeSource
    from s3torch.datasets._cache import DiskCache
    from s3torch.datasets._ranges import Hedging

DEFAULT_PREFETCH = 128
_MIB = 1024 * 1024
_LOWEST_BYTES = 16 * _MIB
_HIGHEST_BYTES = 256 * _MIB
_GENTLE_BYTES = 64 * _MIB
_SHARE_OF_LIMIT = 4
_UNKNOWN_SIZE = _MIB
# So many indices in a row are a habit; two may be chance, or a sampler of pairs.
_HABIT = 3


class Closable(Protocol):
    """What can be started ahead; ``close`` cancels what is in flight."""

    def close(self) -> None: ...


@runtime_checkable
class SupportsPrefetch(Protocol):
    """What can start its download on its own; other readers wait for their first read."""

    def prefetch(self) -> None: ...


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
    if isinstance(item, SupportsPrefetch):
        item.prefetch()


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


def through(
    cache: DiskCache | None, reader_constructor: S3ReaderConstructorProtocol | None
) -> S3ReaderConstructorProtocol | None:
    return reader_constructor if cache is None else CachedReaders(cache, reader_constructor)


def open_ranges(
    client: S3Client, item: S3BucketKeyData, cache: DiskCache | None, **facts: Any
) -> RangeSource:
    """Returns an object as a source of ranges, through a cache if there is one.

    ``facts`` are known better than by the item, as arguments of ``S3Client.open_ranges``.
    """
    source = client.open_ranges(item.bucket, item.key, **facts_of(item) | facts)
    return source if cache is None else CachedRanges(cache, source)


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


class IndexAccess(threading.local):
    """Notices when a thread asks for one index after another, or is told what it asks for next.

    Each thread has its own, and so has a forked process.
    """

    def __init__(self) -> None:
        self._readers: Generator[S3Reader] | None = None
        self._batch: deque[int] = deque()
        self._misled = False
        self.stop()

    def stop(self) -> None:
        """Drops what was read ahead for this thread, and forgets what it has asked for."""
        self._drop()
        self._pid = os.getpid()
        self._following = -1
        self._length = 0

    def _drop(self) -> None:
        self._batch.clear()
        self._is_batch = False
        readers, self._readers = self._readers, None
        if readers is not None:
            readers.close()

    def reader(self, index: int, start: Callable[[], Generator[S3Reader]]) -> S3Reader | None:
        """Returns the reader of an index that was foreseen, else ``None``.

        ``start`` returns the readers from this index on, with more of them started.
        """
        if self._pid != os.getpid():
            self.stop()
        foreseen = index == (self._batch[0] if self._batch else self._following)
        if not foreseen:
            self._misled = self._misled or bool(self._batch)
            self.stop()
        self._length = self._length + 1 if index == self._following else 1
        self._following = index + 1
        if self._batch:
            self._batch.popleft()
        elif self._readers is None and self._length >= _HABIT:
            self._readers = start()
        # Also None after an error has ended the generator.
        reader = None if self._readers is None else next(self._readers, None)
        if reader is None or (self._is_batch and not self._batch):
            self._drop()
        return reader

    def expect(self, indices: Sequence[int], start: Callable[[], Generator[S3Reader]]) -> None:
        """Announces the batch that this thread asks for next; ``start`` returns its readers.

        A thread that once asked for something else is not believed any more.
        """
        if self._pid != os.getpid():
            self.stop()
        self._misled = self._misled or bool(self._batch)
        in_a_row = list(indices) == list(range(self._following, self._following + len(indices)))
        if self._misled or (in_a_row and self._length >= _HABIT):
            return
        self._drop()
        self._batch.extend(indices)
        self._readers, self._is_batch = start(), True

    def __reduce__(self) -> tuple[Any, ...]:
        return (IndexAccess, ())
