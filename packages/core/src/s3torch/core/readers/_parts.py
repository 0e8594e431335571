"""What readers share that keep parts of an object: parts on their way or here, and reads that cross them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from s3torch.core.readers._positioned import PositionedReader
from s3torch.core.transfer.source import ObjectSource
from s3torch.core.transfer.window import Wanted, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core.memory import Reservation
    from s3torch.core.transfer.source import PendingRange, RangeSource


class PartsReader(PositionedReader):
    """Cuts an object into cells, each fetched by one request.

    Cells that lie whole within what a caller reads go straight into the caller's memory and are the caller's
    alone. The others are kept. Subclasses decide how the object is cut, what is fetched ahead, and what is
    let go of.
    """

    _parts: PartCache

    @abstractmethod
    def _cells(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields begin and end of the cells that together hold the bytes from ``start`` to ``stop``."""

    @abstractmethod
    def _read_ahead(self, start: int) -> None:
        """Starts what will be wanted from ``start`` on; called when all that is wanted now was started."""

    @abstractmethod
    def _evict(self, position: int) -> None:
        """Lets go of parts; called after each read, with the position behind it."""

    def _keeps(self, start: int, begin: int, end: int) -> bool:  # noqa: ARG002
        """Tells whether a cell is kept even where a read from ``start`` takes in all of it."""
        return False

    def _follow(self, start: int, stop: int) -> None:
        """Takes note of what is read next, before it is."""

    def _begin(self, start: int, count: int) -> memoryview:
        begin, end = next(self._cells(start, start + count))
        return self._parts.wait(begin, end)[start - begin :][:count]

    def _piece(self, start: int, count: int) -> memoryview:
        begin, end = next(self._cells(start, start + count))
        if start + count > end or begin not in self._parts:
            return memoryview(b"")
        self._follow(start, start + count)
        self._read_ahead(start + count)
        data = self._parts.wait(begin, end)
        self._evict(start + count)
        return data[start - begin :][:count]

    def _fill(self, start: int, view: memoryview) -> None:
        stop = start + len(view)
        self._follow(start, stop)
        kept: list[tuple[int, int]] = []
        receive(self._source, self._missing(start, view, kept))
        for begin, end in kept:
            data = self._parts.wait(begin, end)
            low, high = max(start, begin), min(stop, begin + len(data))
            view[low - start : high - start] = data[low - begin : high - begin]
        self._evict(stop)

    def _missing(self, start: int, view: memoryview, kept: list[tuple[int, int]]) -> Iterator[Wanted]:
        """Yields the cells that go straight into the view; starts the others and notes them."""
        stop = start + len(view)
        for begin, end in self._cells(start, stop):
            is_whole = begin >= start and end <= stop
            if is_whole and begin not in self._parts and not self._keeps(start, begin, end):
                yield Wanted(begin, end, view[begin - start : end - start])
            else:
                self._parts.want(begin, end)
                kept.append((begin, end))
        self._read_ahead(stop)

    def _drop(self) -> list[Any]:
        return self._parts.drop()


class PartCache:
    """Parts of one object by where they begin; the order is that of their last use.

    Args:
        source: The object.
    """

    def __init__(self, source: RangeSource) -> None:
        self._source = source
        self._parts: dict[int, _Part] = {}

    def __contains__(self, begin: int) -> bool:
        return begin in self._parts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields begin and size of all parts, the one that was not used for longest first."""
        return iter([(begin, part.size) for begin, part in self._parts.items()])

    def want(self, begin: int, end: int) -> None:
        """Starts a part that is needed now if it is not on its way."""
        self._wanted(begin, end, self._source.start)

    def _wanted(self, begin: int, end: int, start: Callable[[int, int], PendingRange]) -> _Part:
        part = self._parts.pop(begin, None)
        if part is None:
            budget = self._source.budget()
            size = self._length(begin, end)
            reservation = None if budget is None else budget.reserve(size)
            part = _Part(start(begin, end), memoryview(b""), size, reservation)
        self._parts[begin] = part
        return part

    def try_ahead(self, begin: int, end: int) -> bool:
        """Starts a part before it is needed, if the budget allows it."""
        if begin in self._parts:
            return True
        budget = self._source.budget()
        reservation = None if budget is None else budget.try_reserve(self._length(begin, end))
        if reservation is None:
            return False
        pending = self._source.start(begin, end)
        self._parts[begin] = _Part(pending, memoryview(b""), reservation.count, reservation)
        return True

    def wait(self, begin: int, end: int) -> memoryview:
        """Returns the bytes of a part, which are asked for first if they are not on their way."""
        source = self._source
        part = self._wanted(begin, end, source.prepare if isinstance(source, ObjectSource) else source.start)
        try:
            return part.wait()
        except BaseException:
            # The next read of these bytes asks for them again.
            self._parts.pop(begin).cancel()
            raise

    def keep(self, begin: int, data: memoryview) -> bool:
        """Takes in the bytes of a part that came another way, if the budget allows it."""
        budget = self._source.budget()
        reservation = None if budget is None else budget.try_reserve(len(data))
        if reservation is None or begin in self._parts:
            return False
        self._parts[begin] = _Part(None, data, len(data), reservation)
        return True

    def forget(self, begins: Iterable[int]) -> None:
        """Lets go of parts."""
        for begin in begins:
            self._parts.pop(begin).cancel()

    def clear(self) -> None:
        """Lets go of all parts."""
        self.forget(list(self._parts))

    def drop(self) -> list[Any]:
        """Forgets all parts and returns them."""
        parts, self._parts = list(self._parts.values()), {}
        return parts

    def _length(self, begin: int, end: int) -> int:
        """How many bytes a part has, or may have while the size of the object is unknown."""
        size = self._source.known_size
        return end - begin if size is None else max(0, min(end, size) - begin)


class _Part:
    """A part on its way or here."""

    __slots__ = ("_data", "_pending", "_reservation", "size")

    def __init__(
        self,
        pending: PendingRange | None,
        data: memoryview,
        size: int,
        reservation: Reservation | None,
    ) -> None:
        self.size = size
        self._pending = pending
        self._data = data
        self._reservation = reservation

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
