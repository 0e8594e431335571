"""The reader that is told beforehand which ranges will be read."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.core.ranges import MIB, ByteRange, plan_parts, split_range
from s3torch.core.readers._parts import PartCache, PartsReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["PlannedS3Reader"]

_AHEAD = 64 * MIB
_KEPT = 32 * MIB


class PlannedS3Reader(PartsReader):
    """Reads the ranges of a plan, with those that come next on their way.

    Neighbouring ranges share a request where the gap between them is small, and large ones are cut into
    parts. The plan is advice, not a fence: it may be read in any order and more than once, and what is not
    in it is fetched when it is read. Up to 32 MiB of parts are kept behind the position; those that a read
    takes in whole go straight into the result and are not kept.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``.
        ranges: What will be read, as pairs of start and stop; they may be unsorted and overlap.
        max_gap: Bytes between two ranges up to which one request fetches both. ``None`` fetches at most about
            a tenth more than what is wanted.

    Raises:
        ConfigurationError: A range or ``max_gap`` is negative.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
        ranges: Iterable[tuple[int, int] | ByteRange] = (),
        max_gap: float | None = None,
    ) -> None:
        if max_gap is not None and not max_gap >= 0:
            raise ConfigurationError(f"max_gap must be 0 or more, got {max_gap}")
        pieces = [piece for piece in map(_byte_range, ranges) if piece is not None]
        super().__init__(bucket, key, get_object_info, get_stream)
        self._parts = PartCache(self._source)
        parts = plan_parts(pieces, part_size=self._source.part_size, max_gap=max_gap)
        self._plan = [(part.start, part.stop) for part in parts]
        self._planned = {begin for begin, _ in self._plan}
        # Which part of the plan comes next if it is read in order, and how far it is on its way.
        self._next = 0
        self._ahead = _AHEAD
        self._ahead_stop = 0

    def prefetch(self) -> None:
        """Starts the download of what the plan has next and returns at once.

        Does nothing while the memory budget of this process is used up.
        """
        self._start_reading()
        self._read_ahead(self._position)

    def _begin(self, start: int, count: int) -> memoryview:
        begin, end = next(self._cells(start, start + count))
        if begin not in self._planned:
            return self._source.start(begin, end).wait()
        return super()._begin(start, count)

    def _cells(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        size = self._source.known_size
        index = self._index(start)
        while start < stop:
            begin, end = self._plan[index] if index < len(self._plan) else (stop, stop)
            index += 1
            # What is in no part of the plan goes where it is wanted.
            gap = min(begin, stop)
            for part in split_range(start, gap, self._source.part_size):
                yield part.start, part.stop
            start = max(start, gap)
            if start < stop:
                yield begin, end if size is None else min(end, size)
                start = end

    def _index(self, position: int) -> int:
        """Tells which part of the plan is the first that ends behind a position."""
        return bisect_right(self._plan, position, key=lambda part: part[1])

    def _follow(self, start: int, stop: int) -> None:
        index = self._index(start)
        is_forward = index in {self._next - 1, self._next}
        self._next = self._index(stop - 1) + 1
        # Whoever jumps about in the plan gets what he asks for and nothing that may come to be in vain.
        self._ahead = _AHEAD if is_forward else 0

    def _read_ahead(self, start: int) -> None:
        size, ahead = self._source.known_size, 0
        self._ahead_stop = start
        for begin, end in islice(self._plan, self._index(start), None):
            ahead += end - begin
            if ahead > self._ahead or (size is not None and begin >= size):
                return
            if not self._parts.try_ahead(begin, end):
                return
            self._ahead_stop = end

    def _evict(self, position: int) -> None:
        """Lets go of the parts, but for those ahead, that were not used for longest."""
        kept, gone = 0, []
        for begin, size in reversed(list(self._parts)):
            if begin + size <= position or begin >= self._ahead_stop:
                kept += size
                if kept > _KEPT:
                    gone.append(begin)
        self._parts.forget(gone)


def _byte_range(item: tuple[int, int] | ByteRange) -> ByteRange | None:
    """Checks a range; ``None`` for one without bytes."""
    start, stop = (item.start, item.stop) if isinstance(item, ByteRange) else item
    return None if start == stop else ByteRange(start, stop)
