"""The default reader: forward through the object, parts on their way ahead of the position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.ranges import MIB
from s3torch.core.readers._positioned import PositionedReader
from s3torch.core.transfer.window import IN_FLIGHT, Wanted, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core.memory import Reservation
    from s3torch.core.transfer.source import PendingRange

__all__ = ["SequentialS3Reader"]

_KEPT_BEHIND = 32 * MIB


class SequentialS3Reader(PositionedReader):
    """Reads an object from front to back.

    The object is cut into parts of the configured size, each fetched by one request, at most once while it is
    kept. How many parts are on their way ahead of the position starts at one, doubles while the reading is
    sequential, and falls back on a seek; reading the tail, as torch does before it reads a file, does not
    disturb it. What lies behind the position is kept up to 32 MiB, so small objects are kept whole.

    A large ``readinto`` or ``read`` puts whole parts straight into the result.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
    ) -> None:
        super().__init__(bucket, key, get_object_info, get_stream)
        self._parts: dict[int, _Part] = {}
        self._window = 1
        # Negative until something was read.
        self._last_part = -1

    def prefetch(self) -> None:
        """Starts the download of what comes next and returns at once.

        Does nothing while the memory budget of this process is used up.
        """
        self._start_reading()
        size = self._source.known_size
        if size is None or self._position < size:
            self._try_part(self._position // self._source.part_size)

    def _first_bytes(self, count: int) -> memoryview:
        first = super()._first_bytes(count)
        size = self._source.known_size
        small = size is not None and self._position < size <= self._source.part_size
        if small and count != 0 and not first:
            # The bytes of a small object are handed over as they came.
            first = self._data(0)[self._position :]
        return first if count < 0 else first[:count]

    def _begin(self, start: int, count: int) -> memoryview:
        size = self._source.part_size
        index = start // size
        return self._data(index)[start - index * size :][:count]

    def _fill(self, start: int, view: memoryview) -> None:
        size = self._source.part_size
        stop = start + len(view)
        first, last = start // size, (stop - 1) // size
        self._adapt(first, last)
        kept: list[int] = []
        receive(self._source, self._missing(start, view, kept))
        for index in kept:
            data = self._data(index)
            low, high = max(start, index * size), min(stop, index * size + len(data))
            view[low - start : high - start] = data[low - index * size : high - index * size]
        self._evict(last)

    def _missing(self, start: int, view: memoryview, kept: list[int]) -> Iterator[Wanted]:
        """Yields the whole parts that go straight into the view; starts the others, which are kept."""
        size = self._source.part_size
        stop = start + len(view)
        for index in range(start // size, (stop - 1) // size + 1):
            begin, end = index * size, min((index + 1) * size, self._source.known_size or 0)
            if begin >= start and end <= stop and index not in self._parts:
                yield Wanted(begin, end, view[begin - start : end - start])
            else:
                self._part(index)
                kept.append(index)
        self._read_ahead((stop - 1) // size + 1)

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

    def _read_ahead(self, index: int) -> None:
        if self._window == 1 or self._source.budget() is None:
            return
        for ahead in range(index, index + self._window):
            if ahead * self._source.part_size >= (self._source.known_size or 0):
                return
            if not self._try_part(ahead):
                return

    def _part(self, index: int) -> _Part:
        """Returns a part that is needed now, and starts it first if it is not on its way."""
        part = self._parts.pop(index, None)
        if part is None:
            budget = self._source.budget()
            reservation = None if budget is None else budget.reserve(self._length(index))
            part = self._start(index, reservation)
        # The order of the parts is the order in which they were used last.
        self._parts[index] = part
        return part

    def _try_part(self, index: int) -> bool:
        """Starts a part ahead of its use, if the budget allows it."""
        if index in self._parts:
            return True
        budget = self._source.budget()
        if budget is None:
            return False
        reservation = budget.try_reserve(self._length(index))
        if reservation is None:
            return False
        self._parts[index] = self._start(index, reservation)
        return True

    def _start(self, index: int, reservation: Reservation | None) -> _Part:
        size = self._source.part_size
        return _Part(self._source.start(index * size, (index + 1) * size), reservation)

    def _length(self, index: int) -> int:
        """How many bytes a part has, or may have while the size of the object is unknown."""
        size, known = self._source.part_size, self._source.known_size
        return size if known is None else max(0, min(size, known - index * size))

    def _data(self, index: int) -> memoryview:
        part = self._part(index)
        try:
            return part.wait()
        except BaseException:
            # The next read of these bytes asks for them again.
            self._parts.pop(index).cancel()
            raise

    def _evict(self, current: int) -> None:
        """Lets go of the parts behind the position, and beyond the window, that were not used for longest."""
        kept = max(1, _KEPT_BEHIND // self._source.part_size)
        behind = [index for index in self._parts if index < current]
        beyond = [index for index in self._parts if index > current + self._window]
        for index in behind[:-kept] + beyond[:-kept]:
            self._parts.pop(index).cancel()

    def _drop(self) -> list[Any]:
        parts, self._parts = list(self._parts.values()), {}
        return parts


class _Part:
    """A part on its way or here."""

    __slots__ = ("_data", "_pending", "_reservation")

    def __init__(self, pending: PendingRange, reservation: Reservation | None) -> None:
        self._pending: PendingRange | None = pending
        self._reservation = reservation
        self._data = memoryview(b"")

    def wait(self) -> memoryview:
        if self._pending is not None:
            self._data = self._pending.wait()
            self._pending = None
        return self._data

    def cancel(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if self._reservation is not None:
            self._reservation.release()
