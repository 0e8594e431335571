"""A reader with a position over a source of ranges: everything but where the bytes come from."""

from __future__ import annotations

import io
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from s3torch.core._process import Birthplace, abandon
from s3torch.core.errors import ConfigurationError, RangeNotSatisfiableError
from s3torch.core.memory import new_bytes
from s3torch.core.readers._streams import StreamSource
from s3torch.core.readers.base import S3Reader
from s3torch.core.transfer.source import ObjectSource, RangeSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class PositionedReader(S3Reader):
    """Implements the file interface on two questions that subclasses answer.

    ``_begin`` reads what is at a position while the size of the object is unknown, after which it is known;
    ``_fill`` fills a buffer that lies within the object.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
    ) -> None:
        if not bucket:
            raise ConfigurationError("Bucket should be specified")
        super().__init__()
        self._source: RangeSource = (
            get_stream
            # A protocol is slow to check, and this is asked for every object: the usual class comes first.
            if isinstance(get_stream, ObjectSource | RangeSource)
            else StreamSource(bucket, key, get_object_info, get_stream)
        )
        self._bucket = bucket
        self._key = key
        self._position = 0
        self._birthplace: Birthplace | None = None

    @abstractmethod
    def _begin(self, start: int, count: int) -> memoryview:
        """Returns up to ``count`` bytes from ``start``, at least one unless that is the end."""

    @abstractmethod
    def _fill(self, start: int, view: memoryview) -> None:
        """Fills the whole view with the bytes from ``start``."""

    @abstractmethod
    def _piece(self, start: int, count: int) -> memoryview:
        """Returns these bytes if they are here, or on their way, in one piece; else none of them."""

    @abstractmethod
    def _drop(self) -> list[Any]:
        """Forgets all buffers and transfers, and returns the transfers."""

    def _remember(self, start: int, data: bytes) -> None:
        """Takes note of bytes that were read whole."""

    @property
    def bucket(self) -> str:
        """The bucket."""
        return self._bucket

    @property
    def key(self) -> str:
        """The key."""
        return self._key

    @property
    def size(self) -> int:
        """The size of the object in bytes; one HEAD request if nothing was read and no listing told it."""
        self._check_open()
        if self._source.known_size is None:
            self._source.head()
        size = self._source.known_size
        return 0 if size is None else size

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
        """Reads ``size`` bytes, fewer only at the end; ``None`` and ``-1`` read to the end."""
        if size is not None and not hasattr(type(size), "__index__"):
            raise TypeError(f"argument should be integer or None, not {type(size).__name__!r}")
        self._start_reading()
        count = -1 if size is None else size.__index__()
        first = self._first_bytes(count)
        total = self._remaining if count < 0 else min(count, self._remaining)
        if total <= 0:
            return b""
        first = first or self._piece(self._position, total)
        if len(first) >= total:
            data = _as_bytes(first[:total])
        else:
            data, view = new_bytes(total)
            view[: len(first)] = first
            self._fill(self._position + len(first), view[len(first) :])
            view.release()
            self._remember(self._position, data)
        self._position += total
        return data

    def readinto(self, buf: Any) -> int:
        """Fills a writable contiguous buffer as far as there is data and returns the number of bytes."""
        view = _writable(buf)
        self._start_reading()
        first = self._first_bytes(len(view))
        total = min(len(view), self._remaining)
        if total <= 0:
            return 0
        first = first or self._piece(self._position, total)
        ready = min(len(first), total)
        view[:ready] = first[:ready]
        if ready < total:
            self._fill(self._position + ready, view[ready:total])
        self._position += total
        return total

    def read1(self, size: int = -1, /) -> bytes:
        """Reads up to ``size`` bytes; like ``read``, for all bytes come at the same price."""
        if size is None or size < 0:
            size = self._source.part_size
        return self.read(size)

    def readinto1(self, buffer: Any, /) -> int:
        """Fills a buffer; like ``readinto``."""
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
        """Returns the position."""
        self._check_open()
        return self._position

    def close(self) -> None:
        """Cancels what is on its way and frees all buffers, at once."""
        if not self.closed:
            transfers = self._drop()
            if self._birthplace is None or self._birthplace.is_here:
                for transfer in transfers:
                    transfer.cancel()
            else:
                abandon(transfers)
        super().close()

    def __del__(self) -> None:
        # A reader whose constructor raised has nothing to close.
        if hasattr(self, "_birthplace"):
            self.close()

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

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        if self._birthplace is not None:
            self._birthplace.check(f"the reader of s3://{self._bucket}/{self._key}")

    def _start_reading(self) -> None:
        self._check_open()
        if self._birthplace is None:
            self._birthplace = Birthplace()

    def __getstate__(self) -> dict[str, Any]:
        self._check_open()
        if self._birthplace is not None:
            raise TypeError(
                f"the reader of s3://{self._bucket}/{self._key} has begun to read and cannot be pickled; "
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
