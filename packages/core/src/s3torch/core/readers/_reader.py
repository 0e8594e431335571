"""Objects as binary files: the contract that user code and torch rely on, and the one reader behind it."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from s3torch.core import _process
from s3torch.core._memory import new_bytes
from s3torch.core._process import reap, reaper
from s3torch.core.errors import ChecksumMismatchError, RangeNotSatisfiableError
from s3torch.core.transfer._ranges import Wanted, receive
from s3torch.core.transfer._verification import PartsLearnedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core.readers._kinds import Part, Policy
    from s3torch.core.transfer import RangeSource

    # What torch, Pillow and others ask for in their annotations.
    class _BinaryFile(io.BufferedIOBase, BinaryIO):
        pass
else:
    _BinaryFile = io.BufferedIOBase

A = TypeVar("A")
T = TypeVar("T")


class S3Reader(_BinaryFile, ABC):
    """A binary file that is read from S3.

    Nothing is sent before the first read or question for the size. A reader belongs to one thread at a time
    and to the process that began to read; before the first read it can be pickled.
    """

    @property
    @abstractmethod
    def bucket(self) -> str:
        """The bucket."""

    @property
    @abstractmethod
    def key(self) -> str:
        """The key."""

    @abstractmethod
    def read(self, size: int | None = None) -> bytes:
        """Reads ``size`` bytes, fewer only at the end; ``None`` and ``-1`` read to the end."""

    @abstractmethod
    def readinto(self, buf: Any) -> int:
        """Fills a writable buffer as far as there is data and returns the number of bytes."""

    @abstractmethod
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves the position and returns it."""

    @abstractmethod
    def tell(self) -> int:
        """Returns the position."""

    @property
    def size(self) -> int:
        """The size of the object in bytes."""
        position = self.tell()
        size = self.seek(0, io.SEEK_END)
        self.seek(position)
        return size

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; torch would copy every item otherwise."""
        return True

    def writable(self) -> bool:
        """False."""
        return False


class ObjectReader(S3Reader):
    """Reads an object through cells, each fetched by one request.

    Cells that lie whole within what a caller reads go straight into the caller's memory and are the caller's
    alone. The others are kept. A policy decides how the object is cut, what is fetched ahead, and what is let
    go of.
    """

    # The cell of the last small read. Of the class, because a view cannot be pickled, but an unread reader
    # can.
    _cell = memoryview(b"")
    _cell_start = 0

    def __init__(self, source: RangeSource, policy: Policy) -> None:
        super().__init__()
        self._source = source
        self._policy = policy
        self._parts = policy.open(source)
        self._position = 0
        source.verify_whole()
        self._failure: ChecksumMismatchError | None = None
        # The process that began to read.
        self._pid: int | None = None

    @property
    def bucket(self) -> str:
        return self._source.bucket

    @property
    def key(self) -> str:
        return self._source.key

    @property
    def size(self) -> int:
        """The size of the object in bytes; one HEAD request if nothing was read and no listing told it."""
        self._check_open()
        if self._source.known_size is None:
            self._source.head()
        return self._source.known_size or 0

    @property
    def etag(self) -> str | None:
        """The ETag of the object, with its quotes; asked for like ``size``."""
        self._check_open()
        return getattr(self._source.head(), "etag", None)

    @property
    def last_modified(self) -> int | None:
        """When the object was stored, in seconds since 1970; asked for like ``size``."""
        self._check_open()
        return getattr(self._source.head(), "last_modified", None)

    def read(self, size: int | None = None) -> bytes:
        if size is not None and not hasattr(type(size), "__index__"):
            raise TypeError(f"argument should be integer or None, not {type(size).__name__!r}")
        self._start_reading()
        count = -1 if size is None else size.__index__()
        return self._verified(self._read, count, count)

    def _read(self, count: int) -> bytes:
        first = self._first_bytes(count)
        total = self._remaining if count < 0 else min(count, self._remaining)
        if total <= 0:
            return b""
        first = first or self._within_cell(self._position, total)
        if len(first) >= total:
            data = _as_bytes(first[:total])
        else:
            data, view = new_bytes(total)
            view[: len(first)] = first
            self._fill(self._position + len(first), view[len(first) :])
            view.release()
            self._keep_whole_cells(self._position, data)
        self._position += total
        return data

    def readinto(self, buf: Any) -> int:
        view = _writable(buf)
        self._start_reading()
        return self._verified(self._readinto, view, len(view))

    def _readinto(self, view: memoryview) -> int:
        first = self._first_bytes(len(view))
        total = min(len(view), self._remaining)
        if total <= 0:
            return 0
        first = first or self._within_cell(self._position, total)
        ready = min(len(first), total)
        view[:ready] = first[:ready]
        if ready < total:
            self._fill(self._position + ready, view[ready:total])
        self._position += total
        return total

    def read1(self, size: int = -1, /) -> bytes:
        """Reads up to ``size`` bytes; like ``read``, for all bytes come at the same price."""
        return self.read(self._source.part_size if size is None or size < 0 else size)

    def readinto1(self, buffer: Any, /) -> int:
        return self.readinto(buffer)

    def peek(self, size: int = 0, /) -> bytes:
        """Returns some bytes from the position on without moving it, none only at the end."""
        position = self.tell()
        data = self.read(max(size, io.DEFAULT_BUFFER_SIZE))
        self._position = position
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves the position and returns it; behind the end it stays at the end.

        While the size is unknown a position behind the end cannot be told from one before it; it is put right
        at the next read.
        """
        self._check_open()
        for value in (offset, whence):
            if not hasattr(type(value), "__index__"):
                raise TypeError(f"integer argument expected, got {type(value).__name__!r}")
        if whence == io.SEEK_SET:
            target = offset
        elif whence == io.SEEK_CUR:
            target = self._position + offset
        elif whence == io.SEEK_END:
            target = self.size + offset
        else:
            raise ValueError("Seek must be passed SEEK_CUR, SEEK_SET, or SEEK_END")
        if target < 0:
            raise ValueError(f"negative seek value {target}")
        size = self._source.known_size
        self._position = target if size is None else min(target, size)
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position

    def prefetch(self) -> None:
        """Starts the download of what comes next and returns at once.

        Does nothing while the memory budget of this process is used up.
        """
        self._start_reading()
        self._start_ahead(self._policy.upcoming(self._position))

    def close(self) -> None:
        """Cancels what is in flight and frees all buffers, at once."""
        if not self.closed:
            for part in self._drop():
                part.cancel()
            self._source.verify_whole()
        super().close()

    def __del__(self) -> None:
        # A reader whose constructor raised has nothing to close.
        if hasattr(self, "_pid") and not self.closed:
            for part in self._drop():
                reap(part.cancel)
            super().close()

    def _drop(self) -> list[Part]:
        """Forgets all parts, and returns those in flight."""
        self._cell = memoryview(b"")
        is_here = self._pid is None or self._pid == _process.here
        return self._parts.drop() if is_here else self._parts.abandon()

    @property
    def _remaining(self) -> int:
        size = self._source.known_size
        return 0 if size is None else size - self._position

    def _first_bytes(self, count: int) -> memoryview:
        """Finds out the size with the first bytes, where it is unknown; puts the position right."""
        first = memoryview(b"")
        if self._source.known_size is None and count != 0:
            wanted = self._source.part_size if count < 0 else min(count, self._source.part_size)
            try:
                first = self._begin(self._position, wanted)
            except RangeNotSatisfiableError:
                self._source.head()
        size = self._source.known_size
        if size is not None:
            self._position = min(self._position, size)
        return first

    def _begin(self, start: int, count: int) -> memoryview:
        """Returns up to ``count`` bytes, at least one unless that is the end, while the size is unknown."""
        begin, end, keep = next(self._policy.cells(start, start + count))
        if keep or begin < start or start + count < end:
            return self._parts.wait(begin, end)[start - begin :][:count]
        return self._source.prepare(begin, end).wait()

    def _within_cell(self, start: int, count: int) -> memoryview:
        """Returns these bytes if they are of one cell that is kept; else none of them."""
        offset = start - self._cell_start
        if 0 <= offset <= len(self._cell) - count:
            return self._cell[offset : offset + count]
        stop = start + count
        begin, end, keep = next(self._policy.cells(start, stop))
        if stop > end or not (keep or begin < start or stop < end or begin in self._parts):
            return memoryview(b"")
        is_all = begin == 0 and end == self._source.known_size
        if not is_all:
            ahead = self._policy.follow(start, stop)
            self._parts.want(begin, end)
            self._start_ahead(ahead)
        data = self._parts.wait(begin, end)
        if not is_all:
            self._policy.evict(stop)
        if not self._policy.follows_each_read:
            self._cell, self._cell_start = data, begin
        return data[start - begin :][:count]

    def _fill(self, start: int, view: memoryview) -> None:
        """Fills the whole view with the bytes from ``start``."""
        self._cell = memoryview(b"")
        stop = start + len(view)
        kept: list[tuple[int, int]] = []
        receive(self._source, self._missing(start, view, kept))
        for begin, end in kept:
            data = self._parts.wait(begin, end)
            low, high = max(start, begin), min(stop, begin + len(data))
            view[low - start : high - start] = data[low - begin : high - begin]
        self._policy.evict(stop)

    def _missing(self, start: int, view: memoryview, kept: list[tuple[int, int]]) -> Iterator[Wanted]:
        """Yields the cells that go straight into the view; starts the others and notes them."""
        stop = start + len(view)
        ahead = self._policy.follow(start, stop)
        for begin, end, keep in self._policy.cells(start, stop):
            is_whole = begin >= start and end <= stop
            if is_whole and not keep and begin not in self._parts:
                yield Wanted(begin, end, view[begin - start : end - start])
            else:
                self._parts.want(begin, end)
                kept.append((begin, end))
        self._start_ahead(ahead)

    def _start_ahead(self, cells: Iterable[tuple[int, int]]) -> None:
        for begin, end in cells:
            if not self._parts.try_ahead(begin, end):
                return

    def _keep_whole_cells(self, start: int, data: bytes) -> None:
        # The result of a read is immutable, so keeping it costs no copy.
        if (self._source.known_size or 0) <= self._policy.keep_whole:
            view, stop = memoryview(data), start + len(data)
            for begin, end, _ in self._policy.cells(start, stop):
                if begin >= start and end <= stop:
                    self._parts.keep(begin, view[begin - start : end - start])

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._pid is not None and self._pid != _process.here:
            raise _process.forked(f"the reader of s3://{self.bucket}/{self.key}", self._pid)

    def _verified(self, take: Callable[[A], T], place: A, count: int) -> T:
        """Reads, and again where all of the object is wrong and the caller has none of it yet."""
        try:
            return take(place)
        except ChecksumMismatchError as exc:
            if exc.attempts:  # It was asked for twice, with one request.
                raise
            for part in self._drop():
                part.cancel()
            if not isinstance(exc, PartsLearnedError):
                self._failure = exc
                if self._position or 0 <= count < (self._source.known_size or 0):
                    raise
        self._source.verify_whole()
        found = take(place)
        self._failure = None
        return found

    def _start_reading(self) -> None:
        self._check_open()
        if self._failure is not None:
            # Nobody knows which of the bytes are wrong.
            raise self._failure
        if self._pid is None:
            if reaper.value is None:
                reaper.get()
            self._pid = _process.here

    def __getstate__(self) -> dict[str, Any]:
        self._check_open()
        if self._pid is not None:
            raise TypeError(
                f"the reader of s3://{self.bucket}/{self.key} has begun to read and cannot be pickled; "
                "send bucket and key, or an unread reader"
            )
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _as_bytes(view: memoryview) -> bytes:
    """Returns the object behind a view that shows all of it, else a copy."""
    whole = view.obj
    return whole if isinstance(whole, bytes) and len(whole) == len(view) else bytes(view)


def _writable(buffer: Any) -> memoryview:
    try:
        view = memoryview(buffer)
    except TypeError:
        view = None
    if view is None or view.readonly:
        kind = type(buffer).__name__
        raise TypeError(f"argument must be a writable bytes-like object, not {kind}")
    if not view.c_contiguous:
        raise TypeError("argument must be a contiguous buffer")
    return view.cast("B") if view.nbytes else memoryview(bytearray())
