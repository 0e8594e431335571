"""How readers cut an object: the cells that they keep, the policies, and the two kinds that users name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from s3torch.core._process import abandon
from s3torch.core.errors import ConfigurationError
from s3torch.core.ranges import KIB, MIB, split_range
from s3torch.core.readers._reader import ObjectReader
from s3torch.core.transfer._window import IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core._memory import Reservation
    from s3torch.core.transfer import PendingRange, RangeSource

# Bytes that are kept behind the position, or in a buffer from it on.
KEPT = 32 * MIB
_BUFFER = 8 * MIB
# What is copied in no time.
_SMALL_END = 64 * KIB


class Part:
    """A part in flight or here."""

    __slots__ = ("_data", "_reservation", "pending", "size")

    def __init__(
        self,
        size: int,
        reservation: Reservation | None,
        pending: PendingRange | None = None,
        data: memoryview = memoryview(b""),  # noqa: B008 - It is immutable.
    ) -> None:
        self.size = size
        self.pending = pending
        self._reservation = reservation
        self._data = data

    def wait(self) -> memoryview:
        if self.pending is not None:
            self._data = self.pending.wait()
            self.pending = None
        return self._data

    def cancel(self) -> None:
        if self.pending is not None:
            self.pending.cancel()
            self.pending = None
        if self._reservation is not None:
            self._reservation.release()


class PartCache:
    """Parts of one object by where they begin; the order is that of their last use.

    Args:
        source: The object.
        counts_kept: Whether parts count against the budget as long as they are kept; else while in flight.
    """

    def __init__(self, source: RangeSource, *, counts_kept: bool) -> None:
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
        reservation = self._try_reserve(self._length(begin, end))
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
        reservation = self._try_reserve(len(data))
        if reservation is not None and begin not in self._parts:
            self._parts[begin] = Part(len(data), reservation, data=data)

    def forget(self, begins: Iterable[int]) -> None:
        for begin in begins:
            self._parts.pop(begin).cancel()

    def drop(self) -> list[Part]:
        """Forgets all parts; returns those in flight, which still have to be cancelled."""
        parts, self._parts = list(self._parts.values()), {}
        pending = [part for part in parts if part.pending is not None]
        for part in parts:
            if part.pending is None:
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
            budget, size = self.source.budget(), self._length(begin, end)
            part = Part(size, None if budget is None else budget.reserve(size), start(begin, end))
        self._parts[begin] = part
        return part

    def _try_reserve(self, count: int) -> Reservation | None:
        budget = self.source.budget()
        return None if budget is None else budget.try_reserve(count)

    def _length(self, begin: int, end: int) -> int:
        """How many bytes a part has, or may have while the size of the object is unknown."""
        size = self.source.known_size
        return end - begin if size is None else max(0, min(end, size) - begin)


class Policy(ABC):
    """Decides for one reader; a cell is what one request fetches.

    Attributes:
        parts: The cells that the reader keeps or has in flight.
        counts_kept: Whether cells that are kept count against the memory budget.
        follows_each_read: Whether ``follow`` is called also for a read within the same cell as the last one.
        keep_whole: Objects up to this size are kept when a read returns all of their bytes.
    """

    parts: PartCache
    counts_kept = True
    follows_each_read = False
    keep_whole = -1

    def open(self, source: RangeSource) -> PartCache:
        """Takes the object; returns its cells, none yet."""
        self.parts = PartCache(source, counts_kept=self.counts_kept)
        return self.parts

    @abstractmethod
    def cells(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Yields the cells that together hold these bytes: begin, end, and whether it is kept in any case.

        One that is not is kept only if the read takes in less than all of it.
        """

    @abstractmethod
    def follow(self, start: int, stop: int) -> Iterable[tuple[int, int]]:
        """Takes note of a read; returns the cells to start when all that it wants has been started.

        The next one is asked for once the last one was started.
        """

    @abstractmethod
    def upcoming(self, position: int) -> Iterable[tuple[int, int]]:
        """Yields the cells that a read from this position on would want."""

    @abstractmethod
    def evict(self, position: int) -> None:
        """Lets go of cells; called after each read, with the position behind it."""


class SequentialPolicy(Policy):
    """Cells of the part size; a window ahead that doubles while parts are read one after the other."""

    def __init__(self, keep_behind: int | None) -> None:
        if keep_behind is not None and keep_behind < 0:
            raise ConfigurationError(f"keep_behind must be 0 or more, got {keep_behind}")
        self.keep_whole = KEPT if keep_behind is None else keep_behind
        self._window = 1
        # Negative until something was read.
        self._last_part = self._ahead_of = self._evicted_for = -1

    def cells(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        size, known = self.parts.source.part_size, self.parts.source.known_size
        for begin in range(start // size * size, stop, size):
            end = begin + size if known is None else min(begin + size, known)
            # Small objects are handed over as they came. Whoever looks at the end of a file comes back to it:
            # there are the directories of archives.
            is_end = 0 < begin - start < size and end - begin < min(size, _SMALL_END)
            yield begin, end, known is None or known <= size or is_end

    def follow(self, start: int, stop: int) -> Iterable[tuple[int, int]]:
        size, known = self.parts.source.part_size, self.parts.source.known_size or 0
        self._adapt(start // size, (stop - 1) // size, -(-known // size))
        begin = -(-stop // size) * size
        if self._window == 1 or begin == self._ahead_of:
            return ()
        self._ahead_of = begin
        ahead = self.cells(begin, min(begin + self._window * size, known))
        return ((begin, end) for begin, end, _ in ahead)

    def upcoming(self, position: int) -> Iterable[tuple[int, int]]:
        known = self.parts.source.known_size
        if known is None or position < known:
            begin, end, _ = next(self.cells(position, position + 1))
            yield begin, end

    def evict(self, position: int) -> None:
        """Lets go of the parts behind the position, and beyond the window, that were not used for longest."""
        size = self.parts.source.part_size
        current = (position - 1) // size * size
        if current == self._evicted_for:
            return
        self._evicted_for = current
        behind = [begin for begin, _ in self.parts if begin < current]
        beyond = [begin for begin, _ in self.parts if begin > current + self._window * size]
        self.parts.forget(behind[: max(0, len(behind) + -self.keep_whole // size)])
        self.parts.forget(beyond[: -max(1, KEPT // size)])

    def _adapt(self, first: int, last: int, parts: int) -> None:
        """Widens the window while parts are read one after the other, and narrows it on a jump."""
        if self._last_part < 0:
            # Whoever reads a few bytes of a large object may want no more.
            self._last_part = last
        elif first in {self._last_part, self._last_part + 1}:
            if last > self._last_part:
                self._window = min(self._window * 2, max(1, IN_FLIGHT // self.parts.source.part_size))
            self._last_part = last
        elif last < parts - 1:
            self._window = 1
            self._last_part = last


class RangedPolicy(Policy):
    """Just the ranges that are asked for; small ones from a buffer that is filled from the position on."""

    counts_kept = False

    def __init__(self, buffer_size: int | None) -> None:
        if buffer_size is not None and buffer_size < 0:
            raise ConfigurationError(f"buffer_size must be 0 or more, got {buffer_size}")
        self._buffer_size = _BUFFER if buffer_size is None else buffer_size
        # In no object, as long as there is none.
        self._buffer_start = -self._buffer_size

    def cells(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        part_size, known = self.parts.source.part_size, self.parts.source.known_size
        while start < stop:
            held = self._held(start)
            if held is not None:
                yield *held, True
                start = held[1]
                continue
            if stop - start >= self._buffer_size:
                limit = self._next_held(start, stop)
                for part in split_range(start, limit, part_size):
                    yield part.start, part.stop, False
                start = limit
                continue
            is_inside = self._buffer_start <= start < self._buffer_stop
            if not is_inside or self._buffer_size <= part_size:
                self._buffer_start = start
            end = min(start + part_size, self._next_held(start, self._buffer_stop))
            end = end if known is None else min(end, known)
            # Of a buffer of many parts those that a read takes in whole are the caller's.
            yield start, end, self._buffer_size <= part_size
            start = end

    def follow(self, start: int, stop: int) -> Iterable[tuple[int, int]]:  # noqa: ARG002
        """Fills the rest of a buffer that is larger than a part."""
        part_size, known = self.parts.source.part_size, self.parts.source.known_size or 0
        if not self._buffer_start < stop < self._buffer_stop or self._buffer_size <= part_size:
            return ()
        begin = self._buffer_start - (self._buffer_start - stop) // part_size * part_size
        parts = split_range(begin, min(self._buffer_stop, known), part_size)
        return ((part.start, part.stop) for part in parts)

    def upcoming(self, position: int) -> Iterable[tuple[int, int]]:
        known = self.parts.source.known_size
        stop = position + min(self._buffer_size, self.parts.source.part_size)
        stop = stop if known is None else min(stop, known)
        if position < stop and self._held(position) is None:
            self.parts.forget([begin for begin, _ in self.parts])
            self._buffer_start = position
            yield position, stop

    def evict(self, position: int) -> None:  # noqa: ARG002
        outside = [begin for begin, _ in self.parts if not self._buffer_start <= begin < self._buffer_stop]
        self.parts.forget(outside)

    @property
    def _buffer_stop(self) -> int:
        return self._buffer_start + self._buffer_size

    def _next_held(self, start: int, stop: int) -> int:
        """Returns where the first cell after ``start`` begins, or ``stop``."""
        return min((begin for begin, _ in self.parts if start < begin < stop), default=stop)

    def _held(self, position: int) -> tuple[int, int] | None:
        for begin, size in self.parts:
            if begin <= position < begin + size:
                return begin, begin + size
        return None


class SequentialS3Reader(ObjectReader):
    """Reads an object from front to back.

    The object is cut into parts of the configured size, each fetched by one request, at most once while it is
    kept. How many parts are in flight ahead of the position starts at one, doubles while the reading is
    sequential, and falls back on a seek; reading the tail, as torch does before it reads a file, does not
    disturb it.

    What lies behind the position is kept up to ``keep_behind`` bytes, so going back is free there, and
    objects of that size that were read with ``read`` are kept whole. Otherwise the parts that a ``read`` or
    ``readinto`` takes in whole go straight into the result and are the caller's alone: who goes back to
    them fetches them again.

    Args:
        source: The object, as ``S3Client.open_ranges`` gives it.
        keep_behind: Bytes; ``None`` for 32 MiB, 0 for reading once through.
    """

    def __init__(self, source: RangeSource, keep_behind: int | None = None) -> None:
        super().__init__(source, SequentialPolicy(keep_behind))


class RangedS3Reader(ObjectReader):
    """Reads just the ranges that are asked for.

    Reads of at least ``buffer_size`` bytes go straight into the caller's memory, in parallel parts. Smaller
    ones are served from a buffer that is filled from the position on.

    Args:
        source: The object, as ``S3Client.open_ranges`` gives it.
        buffer_size: Bytes of the buffer; ``None`` for 8 MiB, 0 for none.
    """

    def __init__(self, source: RangeSource, buffer_size: int | None = None) -> None:
        super().__init__(source, RangedPolicy(buffer_size))
