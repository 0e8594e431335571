"""The default reader: forward through the object, parts on their way ahead of the position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.core.ranges import KIB, MIB
from s3torch.core.readers._parts import PartCache, PartsReader
from s3torch.core.transfer.window import IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SequentialS3Reader"]

_KEPT_BEHIND = 32 * MIB
# What is copied in no time.
_SMALL_END = 64 * KIB


class SequentialS3Reader(PartsReader):
    """Reads an object from front to back.

    The object is cut into parts of the configured size, each fetched by one request, at most once while it is
    kept. How many parts are on their way ahead of the position starts at one, doubles while the reading is
    sequential, and falls back on a seek; reading the tail, as torch does before it reads a file, does not
    disturb it.

    What lies behind the position is kept up to ``keep_behind`` bytes, so going back is free there, and
    objects of that size that were read with ``read`` are kept whole. Otherwise the parts that a ``read`` or
    ``readinto`` takes in whole go straight into the result and are the caller's alone: who goes back to
    them fetches them again.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``.
        keep_behind: Bytes; ``None`` for 32 MiB, 0 for reading once through.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
        keep_behind: int | None = None,
    ) -> None:
        if keep_behind is not None and keep_behind < 0:
            raise ConfigurationError(f"keep_behind must be 0 or more, got {keep_behind}")
        super().__init__(bucket, key, get_object_info, get_stream)
        self._parts = PartCache(self._source)
        self._keep_behind = _KEPT_BEHIND if keep_behind is None else keep_behind
        self._window = 1
        # Negative until something was read.
        self._last_part = self._ahead_of = self._evicted_for = -1

    def prefetch(self) -> None:
        """Starts the download of what comes next and returns at once.

        Does nothing while the memory budget of this process is used up.
        """
        self._start_reading()
        size = self._source.known_size
        if size is None or self._position < size:
            self._parts.try_ahead(*next(self._cells(self._position, self._position + 1)))

    def _first_bytes(self, count: int) -> memoryview:
        first = super()._first_bytes(count)
        size = self._source.known_size
        small = size is not None and self._position < size <= self._source.part_size
        if small and count != 0 and not first:
            # The bytes of a small object are handed over as they came.
            first = self._parts.wait(0, self._source.part_size)[self._position :]
        return first if count < 0 else first[:count]

    def _cells(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        size, end = self._source.part_size, self._source.known_size
        for begin in range(start // size * size, stop, size):
            yield begin, begin + size if end is None else min(begin + size, end)

    def _keeps(self, start: int, begin: int, end: int) -> bool:
        # Whoever looks at the end of a file comes back to it: there are the directories of archives.
        size = self._source.part_size
        return 0 < begin - start < size and end - begin < min(size, _SMALL_END)

    def _follow(self, start: int, stop: int) -> None:
        size = self._source.part_size
        self._adapt(start // size, (stop - 1) // size)

    def _remember(self, start: int, data: bytes) -> None:
        # The result of a read is immutable, so keeping it costs no copy.
        if (self._source.known_size or 0) <= self._keep_behind:
            view, stop = memoryview(data), start + len(data)
            for begin, end in self._cells(start, stop):
                if begin >= start and end <= stop:
                    self._parts.keep(begin, view[begin - start : end - start])

    def _adapt(self, first: int, last: int) -> None:
        """Widens the window while parts are read one after the other, and narrows it on a jump."""
        parts = -(-(self._source.known_size or 0) // self._source.part_size)
        if self._last_part < 0:
            # Whoever reads a few bytes of a large object may want no more.
            self._last_part = last
        elif first in {self._last_part, self._last_part + 1}:
            if last > self._last_part:
                self._window = min(self._window * 2, max(1, IN_FLIGHT // self._source.part_size))
            self._last_part = last
        elif last < parts - 1:
            self._window = 1
            self._last_part = last

    def _read_ahead(self, start: int) -> None:
        size, end = self._source.part_size, self._source.known_size or 0
        begin = -(-start // size) * size
        if self._window == 1 or begin == self._ahead_of:
            return
        self._ahead_of = begin
        for cell in self._cells(begin, min(begin + self._window * size, end)):
            if not self._parts.try_ahead(*cell):
                return

    def _evict(self, position: int) -> None:
        """Lets go of the parts behind the position, and beyond the window, that were not used for longest."""
        size = self._source.part_size
        current = (position - 1) // size * size
        if current == self._evicted_for:
            return
        self._evicted_for = current
        behind = [begin for begin, _ in self._parts if begin < current]
        beyond = [begin for begin, _ in self._parts if begin > current + self._window * size]
        self._parts.forget(behind[: max(0, len(behind) + -self._keep_behind // size)])
        self._parts.forget(beyond[: -max(1, _KEPT_BEHIND // size)])
