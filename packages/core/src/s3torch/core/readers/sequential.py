"""The default reader: forward through the object, parts on their way ahead of the position."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from s3torch.core.ranges import MIB
from s3torch.core.readers._positioned import PositionedReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core.transfer.source import PendingRange

__all__ = ["SequentialS3Reader"]

_MAX_AHEAD = 128 * MIB
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
        self._last_part = -1

    def prefetch(self) -> None:
        """Starts the download of what comes next and returns at once."""
        self._start_reading()
        if self._remaining > 0 or self._source.known_size is None:
            self._part(self._position // self._source.part_size)

    def _first_bytes(self, count: int) -> memoryview:
        first = super()._first_bytes(count)
        size = self._source.known_size
        if not first and count != 0 and size is not None and 0 < size <= self._source.part_size:
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
        waiting: deque[tuple[int, PendingRange | None]] = deque()
        following = first
        limit = max(1, _MAX_AHEAD // size)
        try:
            while waiting or following <= last:
                while following <= last and len(waiting) < limit:
                    begin, end = following * size, (following + 1) * size
                    whole = begin >= start and min(end, self._source.known_size or 0) <= stop
                    target = None
                    if whole and following not in self._parts:
                        target = self._source.start(begin, end, view[begin - start : end - start])
                    else:
                        self._part(following)
                    waiting.append((following, target))
                    following += 1
                if following > last:
                    self._read_ahead(last + 1)
                index, target = waiting.popleft()
                if target is not None:
                    target.wait()
                    continue
                data = self._data(index)
                low, high = max(start, index * size), min(stop, index * size + len(data))
                view[low - start : high - start] = data[low - index * size : high - index * size]
        finally:
            for _, target in waiting:
                if target is not None:
                    target.cancel()
        self._evict(last)

    def _adapt(self, first: int, last: int) -> None:
        """Widens the window while parts are read one after the other, and narrows it on a jump."""
        parts = -(-(self._source.known_size or 0) // self._source.part_size)
        if first in {self._last_part, self._last_part + 1}:
            if last > self._last_part:
                self._window = min(self._window * 2, max(1, _MAX_AHEAD // self._source.part_size))
            self._last_part = last
        elif last < parts - 1:
            self._window = 1
            self._last_part = last

    def _read_ahead(self, index: int) -> None:
        budget = self._source.budget()
        size = self._source.part_size
        if budget is None or self._window == 1:
            return
        for ahead in range(index, index + self._window):
            if ahead * size >= (self._source.known_size or 0):
                return
            if ahead not in self._parts:
                if not budget.try_acquire(size):
                    return
                self._parts[ahead] = _Part(self._source.start(ahead * size, (ahead + 1) * size))

    def _part(self, index: int) -> _Part:
        part = self._parts.get(index)
        if part is None:
            size = self._source.part_size
            pending = self._source.start(index * size, (index + 1) * size)
            budget = self._source.budget()
            if budget is not None:
                budget.acquire_anyway(size)
            part = self._parts[index] = _Part(pending)
        return part

    def _data(self, index: int) -> memoryview:
        part = self._part(index)
        try:
            return part.wait()
        except BaseException:
            # The next read of these bytes asks for them again.
            self._forget(index)
            raise

    def _evict(self, current: int) -> None:
        """Lets go of parts behind the position, the furthest first, beyond what is kept."""
        kept = max(1, _KEPT_BEHIND // self._source.part_size)
        behind = sorted(index for index in self._parts if index < current)
        for index in behind[: max(0, len(behind) - kept)]:
            self._forget(index)

    def _forget(self, index: int) -> None:
        self._parts.pop(index).cancel()
        budget = self._source.budget()
        if budget is not None:
            budget.release(self._source.part_size)

    def _drop(self) -> list[Any]:
        transfers = list(self._parts.values())
        if transfers and self._birthplace is not None and self._birthplace.is_here:
            budget = self._source.budget()
            if budget is not None:
                budget.release(self._source.part_size * len(transfers))
        self._parts = {}
        return transfers


class _Part:
    """A part on its way or here."""

    __slots__ = ("_data", "_pending")

    def __init__(self, pending: PendingRange) -> None:
        self._pending: PendingRange | None = pending
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
