"""A disk cache of what was read from S3, for all processes of a machine, and readers through it.

An entry is a range of one object with one ETag, in a file of its own: its bytes, followed by a checksum. A
file appears under its name only when it is complete, and a damaged one is removed and read from S3 again.
Files of other users, and symbolic links, are not read. The file system has to support ``flock``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import struct
import time
import zlib
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from s3torch.core import SequentialS3Reader
from s3torch.core.errors import ChecksumMismatchError, ConfigurationError
from s3torch.core.transfer import RangeSource, new_bytes
from s3torch.datasets._private_files import PrivateFolder
from s3torch.datasets.sources._sources import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer import MemoryBudget, PendingRange

_log = logging.getLogger(__name__)

# The name of the layout; a later release with another one leaves this folder alone.
_FOLDER = "s3torch-cache-1"
_MAGIC = b"s3tcache"
_TRAILER = struct.Struct("<8sQI")
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n"
# Evicting a tenth at once spares most publications the look at all files.
_KEPT = 0.9
_PAUSE = 60.0
_ABANDONED = 60.0
_DIGITS = 20
_FOLDER_OF_ENTRIES = re.compile("[0-9a-f]{2}").fullmatch


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """How much a cache holds: the number of ranges, and the bytes of their files."""

    entries: int
    bytes: int


class DiskCache:
    """A cache in a folder, shared by all processes that name the same one.

    It may be used by threads, after a fork, and can be pickled. When the disk is full, or the folder cannot
    be written or belongs to another user, one warning is logged and reading goes on from S3.

    Args:
        directory: The folder; it is made when something is stored. Everything is below ``s3torch-cache-1`` in
            it, which is closed to other users: each has to name a folder of their own.
        limit: How many bytes it may have; what was not used for longest goes first. ``None`` for half of what
            the file system has for it.

    Raises:
        ConfigurationError: The limit is no positive number.
    """

    def __init__(self, directory: str | os.PathLike[str], *, limit: int | None = None) -> None:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ConfigurationError(f"the limit must be a positive number of bytes, got {limit!r}")
        self.directory = Path(directory)
        self.limit = limit
        self._root = self.directory / _FOLDER
        self._opened: PrivateFolder | None = None
        self._prepared = False
        self._warned = False
        self._paused_until = 0.0

    def get(self, name: str, length: int, into: memoryview | None = None) -> memoryview | None:
        """Returns the bytes of an entry and counts that as a use; ``None`` if there is none.

        Args:
            name: The name under which it was stored.
            length: How many bytes it has.
            into: Takes the bytes.
        """
        place = _place(name)
        try:
            folder = self._folder()
            file = folder.open_file(place)
        except OSError as exc:
            if not isinstance(exc, FileNotFoundError):
                self._warn(exc)
            return None
        try:
            whole, view = new_bytes(length) if into is None else (None, into[:length])
            trailer = bytearray(_TRAILER.size)
            os.preadv(file, [view, trailer], 0)
            if trailer == _trailer(name, view):
                with contextlib.suppress(OSError):
                    os.utime(file)
                return view if whole is None else memoryview(whole)
        except OSError as exc:
            self._warn(exc)
            return None
        finally:
            os.close(file)
        _log.warning("removing %s: it is damaged", folder.path / place)
        with contextlib.suppress(OSError):
            folder.unlink(place)
        return None

    def put(self, name: str, data: memoryview) -> None:
        """Stores an entry, whole or not at all; failures are logged once and are no errors."""
        size = len(data) + _TRAILER.size
        if time.monotonic() < self._paused_until or (self.limit is not None and size > self.limit):
            return
        place = _place(name)
        try:
            self._prepare()
            folder = self._folder()
            if folder.stat(place) is None:
                with folder.folder("new") as new, folder.folder(place[:2], create=True) as entries:
                    entries.publish(place[3:], data, _trailer(name, data), part_in=new)
                self._account(folder, size)
        except OSError as exc:
            self._opened, self._prepared = None, False
            self._paused_until = time.monotonic() + _PAUSE
            self._warn(exc)

    def discard(self, name: str) -> None:
        """Removes an entry, if there is one."""
        with contextlib.suppress(OSError):
            self._folder().unlink(_place(name))

    def usage(self) -> CacheUsage:
        """Counts the entries and their bytes, by looking at all files."""
        with contextlib.suppress(FileNotFoundError):
            sizes = [size for _, size, _ in _entries(self._folder())]
            return CacheUsage(len(sizes), sum(sizes))
        return CacheUsage(0, 0)

    def clear(self) -> None:
        """Removes all entries; readers that are reading some of them go on."""
        with contextlib.suppress(FileNotFoundError):
            folder = self._folder()
            with folder.locked("lock"):
                _set_usage(folder, _evict(folder, 0))

    def _folder(self) -> PrivateFolder:
        if self._opened is None:
            folder = PrivateFolder.open(self._root)
            folder.keep_out_others()
            self._opened = folder
        return self._opened

    def _prepare(self) -> None:
        """Makes the folder, unless this process has done so."""
        if not self._prepared:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            PrivateFolder.open(self._root, create=True).close()
            self._opened = None
            self._folder().write("CACHEDIR.TAG", _TAG)
            _sweep(self._folder())
            self._prepared = True

    def _account(self, folder: PrivateFolder, added: int) -> None:
        with folder.locked("lock"):
            try:
                with folder.read("usage") as file:
                    used = int(file.read(_DIGITS)) + added
            except (FileNotFoundError, ValueError):
                used = self.usage().bytes
            limit = self.limit
            if limit is None:
                limit = (used + shutil.disk_usage(self._root).free) // 2
            _set_usage(folder, used if used <= limit else _evict(folder, int(limit * _KEPT)))

    def _warn(self, exc: OSError) -> None:
        if not self._warned:
            self._warned = True
            full = " (the disk is full)" if exc.errno in {errno.ENOSPC, errno.EDQUOT} else ""
            _log.warning("the cache in %s cannot be used%s, reading from S3: %s", self._root, full, exc)

    def __reduce__(self) -> tuple[Any, ...]:
        return (partial(DiskCache, limit=self.limit), (self.directory,))

    def __repr__(self) -> str:
        return f"DiskCache({str(self.directory)!r}, limit={self.limit})"


def _trailer(name: str, data: memoryview) -> bytes:
    """Returns what follows the bytes; it depends on the name, so a file under a wrong one is damaged."""
    checksum = zlib.crc32(data, zlib.crc32(name.encode("utf-8", "surrogateescape")))
    return _TRAILER.pack(_MAGIC, len(data), checksum)


def _place(name: str) -> str:
    """Returns where an entry is, below the folder of the cache."""
    digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
    return f"{digest[:2]}/{digest[2:]}"


def _entries(folder: PrivateFolder) -> Iterator[tuple[int, int, str]]:
    """Yields the time of last use, the size and the place of each entry."""
    for name in folder.names():
        if not _FOLDER_OF_ENTRIES(name):
            continue
        with contextlib.suppress(OSError), folder.folder(name) as found:
            for entry in found.names():
                facts = found.stat(entry)
                if facts is not None:
                    yield facts.st_mtime_ns, facts.st_size, f"{name}/{entry}"


def _evict(folder: PrivateFolder, target: int) -> int:
    """Removes the least recently used entries, down to so many bytes; returns how many are left."""
    entries = sorted(_entries(folder))
    used = sum(size for _, size, _ in entries)
    for _, size, place in entries:
        if used <= target:
            break
        with contextlib.suppress(FileNotFoundError):
            folder.unlink(place)
        used -= size
    _sweep(folder)
    return used


def _sweep(folder: PrivateFolder) -> None:
    """Removes what processes that died had not published yet."""
    with folder.folder("new", create=True) as new:
        for name in new.names():
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                facts = new.stat(name)
                if facts is None or time.time() - facts.st_mtime < _ABANDONED:
                    continue
                with new.read(name) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    new.unlink(name)


def _set_usage(folder: PrivateFolder, used: int) -> None:
    # Under the lock; what a crash leaves of it is no number, or is put right by the next eviction.
    folder.write("usage", b"%d" % used)


class WrappedSource(RangeSource):
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

    def verify_whole(self) -> None:
        self._wrapped.verify_whole()


class CachedRanges(WrappedSource):
    """The ranges of an object, from a cache or from another source."""

    def __init__(self, cache: DiskCache, source: RangeSource) -> None:
        super().__init__(source)
        self._cache = cache
        # What has been stored and not been verified as a whole.
        self._stored: list[str] = []

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
        return _Stored(self._cache, name, self._wrapped.start(start, stop, into), self._stored)


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
    others: list[str]

    def wait(self) -> memoryview:
        try:
            data = self.pending.wait()
        except ChecksumMismatchError:
            # Any of those that have come before may be wrong.
            while self.others:
                self.cache.discard(self.others.pop())
            raise
        self.cache.put(self.name, data)
        self.others.append(self.name)
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
