"""The reader for sparse reads of large objects: each read is a ranged request of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.core.memory import new_bytes
from s3torch.core.ranges import MIB
from s3torch.core.readers._parts import PartCache
from s3torch.core.readers._positioned import PositionedReader
from s3torch.core.transfer.window import receive_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["RangedS3Reader"]

_DEFAULT_BUFFER = 8 * MIB


class RangedS3Reader(PositionedReader):
    """Reads just the ranges that are asked for.

    Reads of at least ``buffer_size`` bytes go straight into the caller's memory, in parallel parts. Smaller
    ones are served from a buffer that is filled from the position on.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``.
        buffer_size: Bytes of the buffer; ``None`` for 8 MiB, 0 for none.
    """

    # Of the class, because a view cannot be pickled, but an unread reader can.
    _buffer = memoryview(b"")

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
        buffer_size: int | None = None,
    ) -> None:
        if buffer_size is not None and buffer_size < 0:
            raise ConfigurationError(f"buffer_size must be 0 or more, got {buffer_size}")
        super().__init__(bucket, key, get_object_info, get_stream)
        self._buffer_size = _DEFAULT_BUFFER if buffer_size is None else buffer_size
        self._buffer_start = 0
        self._ahead = PartCache(self._source)

    def prefetch(self) -> None:
        """Starts to fill the buffer from the position on and returns at once.

        Does nothing without a buffer, and while the memory budget of this process is used up.
        """
        self._start_reading()
        start, size = self._position, self._source.known_size
        stop = start + min(self._buffer_size, self._source.part_size)
        if size is not None:
            stop = min(stop, size)
        if start < stop and not self._piece(start, 1) and start not in self._ahead:
            self._ahead.clear()
            self._ahead.try_ahead(start, stop)

    def _begin(self, start: int, count: int) -> memoryview:
        self._adopt(start)
        if self._piece(start, 1):
            return self._buffer[start - self._buffer_start :][:count]
        wanted = max(count, min(self._buffer_size, self._source.part_size))
        data = self._source.start(start, start + wanted).wait()
        if count < self._buffer_size:
            self._buffer, self._buffer_start = data, start
        return data[:count]

    def _adopt(self, start: int) -> None:
        """Makes the buffer of what was started ahead, if the position is in it."""
        for begin, size in list(self._ahead):
            if begin <= start < begin + size:
                self._buffer = memoryview(b"")
                self._buffer, self._buffer_start = self._ahead.wait(begin, begin + size), begin
        self._ahead.clear()

    def _fill(self, start: int, view: memoryview) -> None:
        if not self._piece(start, 1):
            self._adopt(start)
        ready = self._from_buffer(start, view)
        start, view = start + ready, view[ready:]
        if not view:
            return
        if len(view) >= self._buffer_size:
            receive_all(self._source, start, view)
            return
        self._refill(start)
        self._from_buffer(start, view)

    def _piece(self, start: int, count: int) -> memoryview:
        offset = start - self._buffer_start
        if not 0 <= offset <= len(self._buffer) - count:
            return memoryview(b"")
        return self._buffer[offset : offset + count]

    def _from_buffer(self, start: int, view: memoryview) -> int:
        offset = start - self._buffer_start
        if not 0 <= offset < len(self._buffer):
            return 0
        ready = self._buffer[offset : offset + len(view)]
        view[: len(ready)] = ready
        return len(ready)

    def _refill(self, start: int) -> None:
        # A buffer whose refill fails must not serve the bytes of another place.
        self._buffer = memoryview(b"")
        stop = min(start + self._buffer_size, self._source.known_size or 0)
        if stop - start <= self._source.part_size:
            self._buffer = self._source.start(start, stop).wait()
        else:
            _, view = new_bytes(stop - start)
            receive_all(self._source, start, view)
            self._buffer = view
        self._buffer_start = start

    def _drop(self) -> list[Any]:
        self._buffer = memoryview(b"")
        return self._ahead.drop()
