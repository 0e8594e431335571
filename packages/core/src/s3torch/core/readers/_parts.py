"""The parts of an object that a reader keeps or has in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core._process import abandon

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core._memory import Reservation
    from s3torch.core.transfer import PendingRange, RangeSource


class PartCache:
    """Parts of one object by where they begin; the order is that of their last use.

    Args:
        source: The object.
        counts_kept: Whether parts count against the budget as long as they are kept; else while in flight.
    """

    def __init__(self, source: RangeSource, *, counts_kept: bool = True) -> None:
        self.source = source
        self._counts_kept = counts_kept
        self._parts: dict[int, Part] = {}

    def __contains__(self, begin: int) -> bool:
        return begin in self._parts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields begin and size of all parts, the one that was not used for longest first."""
        return iter([(begin, part.size) for begin, part in self._parts.items()])

    def want(self, begin: int, end: int) -> None:
        """Starts a part that is needed now if it is not in flight."""
        self._use(begin, end, self.source.start)

    def try_ahead(self, begin: int, end: int) -> bool:
        """Starts a part before it is needed, if the budget allows it."""
        if begin in self._parts:
            return True
        budget = self.source.budget()
        reservation = None if budget is None else budget.try_reserve(self._length(begin, end))
        if reservation is None:
            return False
        self._parts[begin] = Part(reservation.count, reservation, self.source.start(begin, end))
        return True

    def wait(self, begin: int, end: int) -> memoryview:
        """Returns the bytes of a part, which are asked for first if they are not in flight."""
        part = self._use(begin, end, self.source.prepare)
        try:
            data = part.wait()
        except BaseException:
            # The next read of these bytes asks for them again.
            self._parts.pop(begin).cancel()
            raise
        if not self._counts_kept:
            part.cancel()
        return data

    def keep(self, begin: int, data: memoryview) -> None:
        """Takes in the bytes of a part that came another way, if the budget allows it."""
        budget = self.source.budget()
        reservation = None if budget is None else budget.try_reserve(len(data))
        if reservation is not None and begin not in self._parts:
            self._parts[begin] = Part(len(data), reservation, data=data)

    def forget(self, begins: Iterable[int]) -> None:
        for begin in begins:
            self._parts.pop(begin).cancel()

    def drop(self) -> list[Part]:
        """Forgets all parts; returns those in flight, which still have to be cancelled."""
        parts, self._parts = self._parts, {}
        pending = [part for part in parts.values() if part.is_pending]
        for part in parts.values():
            if not part.is_pending:
                part.cancel()
        return pending

    def abandon(self) -> list[Part]:
        """Forgets all parts of the parent of this process without touching them; returns none."""
        parts, self._parts = self._parts, {}
        abandon(parts)
        return []

    def _use(self, begin: int, end: int, start: Callable[[int, int], PendingRange]) -> Part:
        part = self._parts.pop(begin, None)
        if part is None:
            budget = self.source.budget()
            size = self._length(begin, end)
            reservation = None if budget is None else budget.reserve(size)
            part = Part(size, reservation, start(begin, end))
        self._parts[begin] = part
        return part

    def _length(self, begin: int, end: int) -> int:
        """How many bytes a part has, or may have while the size of the object is unknown."""
        size = self.source.known_size
        return end - begin if size is None else max(0, min(end, size) - begin)


class Part:
    """A part in flight or here."""

    __slots__ = ("_data", "_pending", "_reservation", "size")

    def __init__(
        self,
        size: int,
        reservation: Reservation | None,
        pending: PendingRange | None = None,
        data: memoryview | None = None,
    ) -> None:
        self.size = size
        self._reservation = reservation
        self._pending = pending
        self._data = memoryview(b"") if data is None else data

    @property
    def is_pending(self) -> bool:
        return self._pending is not None

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


def cancel_all(parts: Iterable[Part]) -> None:
    for part in parts:
        part.cancel()
