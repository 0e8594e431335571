"""Reads through a disk cache: what was read once with an ETag is not asked of S3 again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core import SequentialS3Reader
from s3torch.core.errors import ConfigurationError
from s3torch.datasets.disk_cache import DiskCache
from s3torch.datasets.versions import facts_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.memory import MemoryBudget
    from s3torch.core.transfer.source import PendingRange, RangeSource

__all__ = ["CachedRanges", "CachedReaders", "make_cache", "open_ranges", "through"]


class CachedReaders:
    """A reader constructor whose readers look into a cache first.

    The readers are those of another constructor, and the cache has the ranges that they ask for: of the
    default reader whole objects, or the parts of those that are larger than a part. With a listing, the ETag
    is known and nothing is sent for a range in the cache; for an object that no listing told of, a HEAD asks
    for its ETag. Objects without an ETag are not cached.

    Args:
        cache: The cache.
        reader_constructor: Makes the readers; ``None`` for sequential ones.
    """

    kind = "disk_cache"

    def __init__(
        self, cache: DiskCache, reader_constructor: S3ReaderConstructorProtocol | None = None
    ) -> None:
        self.cache = cache
        self.reader_constructor = reader_constructor

    def __call__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Any,
    ) -> S3Reader:
        """Returns an unread reader."""
        make = SequentialS3Reader if self.reader_constructor is None else self.reader_constructor
        source = CachedRanges(self.cache, get_stream)
        return make(bucket=bucket, key=key, get_object_info=get_object_info, get_stream=source)


class CachedRanges:
    """An object as a source of ranges, from a cache or from another source.

    Args:
        cache: The cache.
        source: The other source, as ``S3Client.open_ranges`` returns it.
    """

    def __init__(self, cache: DiskCache, source: RangeSource) -> None:
        self.bucket = source.bucket
        self.key = source.key
        self.part_size = source.part_size
        self._cache = cache
        self._source = source

    @property
    def known_size(self) -> int | None:
        """The size of the object in bytes, if it is known already."""
        return self._source.known_size

    def head(self) -> Any:
        """Tells size and ETag, with a request only if nothing is known yet."""
        return self._source.head()

    def budget(self) -> MemoryBudget | None:
        """The budget for read-ahead."""
        return self._source.budget()

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        """Returns the range from the cache, or starts one request, whose bytes are stored when they come."""
        info = self.head()
        etag = getattr(info, "etag", None)
        stop = min(stop, info.size)
        if not etag or stop <= start:
            return self._source.start(start, stop, into)
        name = f"{self.bucket}/{self.key}\0{etag}\0{start}-{stop}"
        found = self._cache.get(name, stop - start, into)
        if found is not None:
            return _Here(found)
        return _Stored(self._cache, name, self._source.start(start, stop, into))

    def __call__(self, start: int | None = None, end: int | None = None) -> Iterator[bytes]:
        """Streams the bytes from ``start`` to ``end`` (exclusive), a chunk per part."""
        stop = self.head().size if end is None else min(end, self.head().size)
        for begin in range(start or 0, stop, self.part_size):
            yield bytes(self.start(begin, min(begin + self.part_size, stop)).wait())


class _Here:
    """A range from the cache."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def wait(self) -> memoryview:
        return self._data

    def cancel(self) -> None:
        """Does nothing."""


class _Stored:
    """A range on its way, which goes into the cache when it is here."""

    def __init__(self, cache: DiskCache, name: str, pending: PendingRange) -> None:
        self._cache = cache
        self._name = name
        self._pending = pending

    def wait(self) -> memoryview:
        data = self._pending.wait()
        self._cache.put(self._name, data)
        return data

    def cancel(self) -> None:
        self._pending.cancel()


def make_cache(cache_dir: str | os.PathLike[str] | None, cache_limit: int | None) -> DiskCache | None:
    """Returns the cache that the options of a dataset ask for, if any.

    Raises:
        ConfigurationError: The limit is no positive number, or there is no folder for it.
    """
    if cache_dir is not None:
        return DiskCache(cache_dir, limit=cache_limit)
    if cache_limit is not None:
        raise ConfigurationError("cache_limit needs cache_dir")
    return None


def through(
    cache: DiskCache | None, reader_constructor: S3ReaderConstructorProtocol | None
) -> S3ReaderConstructorProtocol | None:
    """Puts a cache before a reader constructor, if there is one."""
    return reader_constructor if cache is None else CachedReaders(cache, reader_constructor)


def open_ranges(
    client: S3Client, item: S3BucketKeyData, cache: DiskCache | None, **facts: Any
) -> RangeSource:
    """Returns an object as a source of ranges, through a cache if there is one.

    Args:
        client: The client.
        item: The object.
        cache: The cache.
        facts: What is known better than by the item, as arguments of ``S3Client.open_ranges``.
    """
    source = client.open_ranges(item.bucket, item.key, **facts_of(item) | facts)
    return source if cache is None else CachedRanges(cache, source)
