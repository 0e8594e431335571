"""What the kinds of readers differ in: how an object is cut, what is fetched ahead, what is let go of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError
from s3torch.core.ranges import KIB, MIB, ByteRange, plan_parts, split_range
from s3torch.core.transfer._window import IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from s3torch.core.readers._parts import PartCache

# Bytes that are kept behind the position, or in a buffer from it on, and that a plan has in flight.
_KEPT = 32 * MIB
_BUFFER = 8 * MIB
_PLANNED_AHEAD = 64 * MIB
# What is copied in no time.
_SMALL_END = 64 * KIB


class Policy(ABC):
    """Decides for one reader; a cell is what one request fetches.

    Attributes:
        parts: The cells that the reader keeps or has in flight; set by the reader.
        counts_kept: Whether cells that are kept count against the memory budget.
        follows_each_read: Whether ``follow`` is called also for a read within the same cell as the last one.
        keep_whole: Objects up to this size are kept when a read returns all of their bytes.
    """

    parts: PartCache
    counts_kept = True
    follows_each_read = False
    keep_whole = -1

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
        self.keep_whole = _KEPT if keep_behind is None else keep_behind
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
        self.parts.forget(beyond[: -max(1, _KEPT // size)])

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


class PlannedPolicy(Policy):
    """The ranges of a plan, with those that come next in flight; what is in no range as it is wanted.

    Raises:
        ConfigurationError: A range or ``max_gap`` is negative.
    """

    follows_each_read = True

    def __init__(
        self, ranges: Iterable[tuple[int, int] | ByteRange], max_gap: float | None, *, part_size: int
    ) -> None:
        if max_gap is not None and not max_gap >= 0:
            raise ConfigurationError(f"max_gap must be 0 or more, got {max_gap}")
        pieces = [piece for piece in map(_byte_range, ranges) if piece is not None]
        parts = plan_parts(pieces, part_size=part_size, max_gap=max_gap)
        self._plan = [(part.start, part.stop) for part in parts]
        # Which part of the plan comes next if it is read in order, and how far it is in flight.
        self._next = 0
        self._ahead = _PLANNED_AHEAD
        self._ahead_stop = 0

    def cells(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        part_size, known = self.parts.source.part_size, self.parts.source.known_size
        index = self._index(start)
        while start < stop:
            begin, end = self._plan[index] if index < len(self._plan) else (stop, stop)
            index += 1
            # What is in no part of the plan goes where it is wanted.
            gap = min(begin, stop)
            for part in split_range(start, gap, part_size):
                yield part.start, part.stop, False
            start = max(start, gap)
            if start < stop:
                yield begin, end if known is None else min(end, known), known is None
                start = end

    def follow(self, start: int, stop: int) -> Iterable[tuple[int, int]]:
        is_forward = self._index(start) in {self._next - 1, self._next}
        self._next = self._index(stop - 1) + 1
        # Whoever jumps about in the plan gets what he asks for and nothing that may come to be in vain.
        self._ahead = _PLANNED_AHEAD if is_forward else 0
        return self.upcoming(stop)

    def upcoming(self, position: int) -> Iterable[tuple[int, int]]:
        known, ahead = self.parts.source.known_size, 0
        self._ahead_stop = position
        for begin, end in islice(self._plan, self._index(position), None):
            ahead += end - begin
            if ahead > self._ahead or (known is not None and begin >= known):
                return
            yield begin, end
            self._ahead_stop = end

    def evict(self, position: int) -> None:
        """Lets go of the parts, but for those ahead, that were not used for longest."""
        kept, gone = 0, []
        for begin, size in reversed(list(self.parts)):
            if begin + size <= position or begin >= self._ahead_stop:
                kept += size
                if kept > _KEPT:
                    gone.append(begin)
        self.parts.forget(gone)

    def _index(self, position: int) -> int:
        """Returns which part of the plan is the first that ends behind a position."""
        return bisect_right(self._plan, position, key=lambda part: part[1])


def _byte_range(item: tuple[int, int] | ByteRange) -> ByteRange | None:
    """Checks a range; ``None`` for one without bytes."""
    start, stop = (item.start, item.stop) if isinstance(item, ByteRange) else item
    return None if start == stop else ByteRange(start, stop)
