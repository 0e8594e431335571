"""A disk cache of what was read from S3, for all processes of a machine, and the lock between them.

An entry is a range of one object with one ETag, in a file of its own: its bytes, followed by a checksum. A
file appears under its name only when it is complete, and a damaged one is removed and read from S3 again. The
file system has to support ``flock``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import struct
import time
import uuid
import zlib
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.core.transfer import new_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

# The name of the layout; a later release with another one leaves this folder alone.
_FOLDER = "s3torch-cache-1"
_MAGIC = b"s3tcache"
_TRAILER = struct.Struct("<8sQI")
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"
# Evicting a tenth at once spares most publications the look at all files.
_KEPT = 0.9
_PAUSE = 60.0
_ABANDONED = 60.0


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """How much a cache holds: the number of ranges, and the bytes of their files."""

    entries: int
    bytes: int


class DiskCache:
    """A cache in a folder, shared by all processes that name the same one.

    It may be used by threads, after a fork, and can be pickled. When the disk is full, or the folder cannot
    be written, one warning is logged and reading goes on from S3.

    Args:
        directory: The folder; it is made when something is stored. Everything is below ``s3torch-cache-1`` in
            it.
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
        path = self._path(name)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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
        _log.warning("removing %s: it is damaged", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, name: str, data: memoryview) -> None:
        """Stores an entry, whole or not at all; failures are logged once and are no errors."""
        size = len(data) + _TRAILER.size
        if time.monotonic() < self._paused_until or (self.limit is not None and size > self.limit):
            return
        path = self._path(name)
        try:
            if not path.exists():
                self._publish(path, data, _trailer(name, data))
                self._account(size)
        except OSError as exc:
            self._prepared = False
            self._paused_until = time.monotonic() + _PAUSE
            self._warn(exc)

    def usage(self) -> CacheUsage:
        """Counts the entries and their bytes, by looking at all files."""
        sizes = [size for _, size, _ in self._entries()]
        return CacheUsage(len(sizes), sum(sizes))

    def clear(self) -> None:
        """Removes all entries; readers that are reading some of them go on."""
        if not self._root.exists():
            return
        with self._locked():
            self._set_usage(self._evict(0))

    def _path(self, name: str) -> Path:
        digest = blake2b(name.encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
        return self._root / digest[:2] / digest[2:]

    def _publish(self, path: Path, *pieces: memoryview | bytes) -> None:
        folder = self._root / "new"
        if not self._prepared:
            folder.mkdir(parents=True, exist_ok=True)
            (self._root / "CACHEDIR.TAG").write_text(_TAG)
            self._sweep()
            self._prepared = True
        temporary = folder / uuid.uuid4().hex
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            # Whoever finds the file without this lock knows that its process has died.
            fcntl.flock(file, fcntl.LOCK_EX)
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    left = left[os.write(file, left) :]
            path.parent.mkdir(exist_ok=True)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(file)

    def _account(self, added: int) -> None:
        with self._locked():
            try:
                used = int((self._root / "usage").read_text()) + added
            except (FileNotFoundError, ValueError):
                used = self.usage().bytes
            limit = self.limit
            if limit is None:
                limit = (used + shutil.disk_usage(self._root).free) // 2
            self._set_usage(used if used <= limit else self._evict(int(limit * _KEPT)))

    def _evict(self, target: int) -> int:
        """Removes the least recently used entries, down to so many bytes; returns how many are left."""
        entries = sorted(self._entries())
        used = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if used <= target:
                break
            with contextlib.suppress(FileNotFoundError):
                Path(path).unlink()
            used -= size
        self._sweep()
        return used

    def _entries(self) -> Iterator[tuple[int, int, str]]:
        """Yields the time of last use, the size and the path of each entry."""
        for folder in self._root.glob("[0-9a-f][0-9a-f]"):
            with os.scandir(folder) as found:
                for entry in found:
                    with contextlib.suppress(FileNotFoundError):
                        facts = entry.stat()
                        yield facts.st_mtime_ns, facts.st_size, entry.path

    def _sweep(self) -> None:
        """Removes what processes that died had not published yet."""
        for path in (self._root / "new").glob("*"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError):
                if time.time() - path.stat().st_mtime < _ABANDONED:
                    continue
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return exclusive(self._root / "lock")

    def _set_usage(self, used: int) -> None:
        # Under the lock; what a crash leaves of it is no number, or is put right by the next eviction.
        (self._root / "usage").write_text(str(used))

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


@contextlib.contextmanager
def exclusive(path: Path, *, mode: int = 0o666) -> Iterator[None]:
    """Waits for the lock on a file, which is created if there is none, and holds it.

    ``mode`` is the mode of a new file, less the umask.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        unlock(descriptor)


def unlock(descriptor: int) -> None:
    """Releases a lock and closes the file.

    Closing it is not enough: a child that another thread forked meanwhile also has the file open, and would
    keep the lock until it ends.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
