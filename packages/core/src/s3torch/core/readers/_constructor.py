"""Reader constructors: what a client takes to make its readers, and the reader of a plan."""

from __future__ import annotations

from bisect import bisect_right
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from s3torch.core.errors import ConfigurationError
from s3torch.core.plugins._manager import reader_kind
from s3torch.core.ranges import MIB, ByteRange, plan_parts, split_range
from s3torch.core.readers._kinds import KEPT, Policy, RangedS3Reader, SequentialS3Reader
from s3torch.core.readers._reader import ObjectReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from s3torch.core.readers._reader import S3Reader
    from s3torch.core.transfer import RangeSource

# Bytes of a plan in flight.
_PLANNED_AHEAD = 64 * MIB


@runtime_checkable
class S3ReaderConstructorProtocol(Protocol):
    """Makes a reader; the client calls it with the object as a source of ranges."""

    def __call__(self, source: RangeSource, /) -> S3Reader:
        """Returns an unread reader of one object.

        Args:
            source: The object: its ``bucket`` and ``key``, ``head()`` for size and ETag, ``start()`` for
                its bytes.
        """
        ...


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
                if kept > KEPT:
                    gone.append(begin)
        self.parts.forget(gone)

    def _index(self, position: int) -> int:
        """Returns which part of the plan is the first that ends behind a position."""
        return bisect_right(self._plan, position, key=lambda part: part[1])


def _byte_range(item: tuple[int, int] | ByteRange) -> ByteRange | None:
    """Checks a range; ``None`` for one without bytes."""
    start, stop = (item.start, item.stop) if isinstance(item, ByteRange) else item
    return None if start == stop else ByteRange(start, stop)


def planned_reader(
    source: RangeSource, ranges: Iterable[tuple[int, int] | ByteRange] = (), max_gap: float | None = None
) -> ObjectReader:
    """Returns a reader of the ranges of a plan, with those that come next in flight.

    Neighbouring ranges share a request where the gap between them is small, and large ones are cut into
    parts. The plan is advice, not a fence: it may be read in any order and more than once, and what is not
    in it is fetched when it is read. Up to 32 MiB of parts are kept behind the position; those that a read
    takes in whole go straight into the result and are not kept.
    """
    return ObjectReader(source, PlannedPolicy(ranges, max_gap, part_size=source.part_size))


class S3ReaderConstructor:
    """Makes reader constructors; what they return is a value that can be shared and pickled."""

    @staticmethod
    def sequential(keep_behind: int | None = None) -> S3ReaderConstructorProtocol:
        """For whole objects, read from front to back.

        Args:
            keep_behind: Bytes behind the position that are kept, so that going back is free; ``None`` for
                32 MiB.
        """
        if keep_behind is None:
            return partial(SequentialS3Reader)
        return partial(SequentialS3Reader, keep_behind=keep_behind)

    @staticmethod
    def default() -> S3ReaderConstructorProtocol:
        """The same as ``sequential()``."""
        return S3ReaderConstructor.sequential()

    @staticmethod
    def range_based(buffer_size: int | None = None) -> S3ReaderConstructorProtocol:
        """For sparse reads of large objects.

        Args:
            buffer_size: Bytes that are fetched at once for smaller reads; ``None`` for 8 MiB, 0 for none.
        """
        return partial(RangedS3Reader, buffer_size=buffer_size)

    @staticmethod
    def planned(
        ranges: Iterable[tuple[int, int] | ByteRange], max_gap: float | None = None
    ) -> S3ReaderConstructorProtocol:
        """For ranges of an object that are known beforehand: those that come next are in flight.

        Args:
            ranges: What will be read, as pairs of start and stop.
            max_gap: Bytes between two ranges up to which one request fetches both. ``None`` fetches at most
                about a tenth more than what is wanted.
        """
        return partial(planned_reader, ranges=tuple(ranges), max_gap=max_gap)

    @staticmethod
    def dcp_optimized(max_gap_size: float = 32 * MIB) -> Any:
        """For distributed checkpoints, where the ranges are known; needs ``s3torch-dcp``.

        Args:
            max_gap_size: Ranges that are no further apart than this many bytes share a request.

        Raises:
            ConfigurationError: ``max_gap_size`` is negative, or ``s3torch-dcp`` is not installed.
        """
        try:
            make = reader_kind("dcp_optimized")
        except ConfigurationError as exc:
            raise ConfigurationError(
                "readers for distributed checkpoints come with another package; pip install s3torch-dcp"
            ) from exc
        return make(max_gap_size=max_gap_size)

    @staticmethod
    def named(kind: str, **options: Any) -> Any:
        """For a kind of reader that a plugin has registered.

        Args:
            kind: The name of the kind.
            options: What the kind takes.

        Raises:
            ConfigurationError: No installed plugin has this kind.
        """
        return reader_kind(kind)(**options)

    @staticmethod
    def get_reader_type_string(constructor: Any) -> str:
        """Returns the kind of a constructor.

        Returns:
            ``"sequential"``, also for ``None``; ``"range_based"``; ``"planned"``; the ``kind`` that a plugin
            names; else ``"unknown"``.
        """
        made = constructor.func if isinstance(constructor, partial) else constructor
        if made is None or made is SequentialS3Reader:
            return "sequential"
        if made is RangedS3Reader:
            return "range_based"
        if made is planned_reader:
            return "planned"
        kind = getattr(constructor, "kind", None)
        return kind if isinstance(kind, str) else "unknown"
