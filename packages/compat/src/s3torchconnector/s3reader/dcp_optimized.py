"""The reader for distributed checkpoints, which is told the ranges that will be read, in their order.

``s3torch.dcp`` does not need it: its storage reader plans a load as a whole. This is for code that opens the
files of a checkpoint itself.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3torch.core import ConfigurationError, S3Reader, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from s3torchconnector.s3reader.protocol import GetStreamCallable

__all__ = ["DCPOptimizedS3Reader", "ItemRange", "RangeGroup"]

DEFAULT_MAX_GAP_SIZE = 32 * 1024 * 1024

_STRICT = "DCPOptimizedS3Reader only supports sequentially accessing provided ranges: "
_ADVICE = "; for any other order use S3ReaderConstructor.sequential()"
_NO_FULL_READ = "and a read to the end is not supported; say how many bytes of an item to read"


@dataclass(frozen=True, slots=True)
class ItemRange:
    """The bytes of one item of a file, from ``start`` up to, but not including, ``end``."""

    start: int
    end: int

    def contains(self, start: int, end: int) -> bool:
        """Tells whether all bytes from ``start`` to ``end`` are in this range."""
        return self.start <= start and end <= self.end

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class RangeGroup:
    """Neighbouring ranges that one request fetches, with the gaps between them."""

    start: int
    end: int
    item_ranges: list[ItemRange]


def _group_ranges(ranges: Iterable[ItemRange], max_gap_size: float) -> list[RangeGroup]:
    """Joins neighbours with a gap of at most ``max_gap_size`` bytes; ranges without bytes are dropped.

    Raises:
        ConfigurationError: A range is invalid, or they are not sorted, or they overlap.
    """
    groups: list[RangeGroup] = []
    members: list[ItemRange] = []
    for item in ranges:
        if item.start == item.end:
            continue
        _check_order(members[-1] if members else None, item)
        if members and item.start - members[-1].end > max_gap_size:
            groups.append(RangeGroup(members[0].start, members[-1].end, members))
            members = []
        members.append(item)
    if members:
        groups.append(RangeGroup(members[0].start, members[-1].end, members))
    return groups


def _check_order(last: ItemRange | None, item: ItemRange) -> None:
    if not 0 <= item.start < item.end:
        raise ConfigurationError(f"Invalid range: {item}")
    if last is not None and item.start < last.start:
        raise ConfigurationError(f"Unsorted ranges: {last} and {item}")
    if last is not None and item.start < last.end:
        raise ConfigurationError(f"Overlapping ranges: {last} and {item}")


class StreamExhaustedError(TruncatedError, ValueError):
    """The stream of a reader ended before the ranges that it was asked for."""


class DCPOptimizedS3Reader(S3Reader):
    """Reads given ranges of a file in their order, neighbours with one request.

    Inside the current item seeking is free. The next item may be begun at any time; earlier ones are gone.
    A read that is refused changes nothing. What lies between the items is dropped as it arrives.

    Args:
        bucket: The bucket.
        key: The key.
        item_ranges: What will be read: sorted, without overlaps. Ranges without bytes are dropped.
        get_object_info: Returns something with ``size``; not called by this reader.
        get_stream: ``get_stream(start, end)`` returns the bytes of a range, in pieces.
        max_gap_size: Bytes between two items up to which one request fetches both. ``float("inf")`` fetches
            everything with one request.

    Raises:
        ConfigurationError: The ranges are empty, invalid, unsorted or overlapping. It is a
            ``ValueError``, too.
        TypeError: ``max_gap_size`` is no number.
    """

    # Set here, too, for a reader whose construction fails.
    _stream: Iterator[bytes] | None = None

    def __init__(
        self,
        bucket: str,
        key: str,
        item_ranges: Sequence[ItemRange],
        get_object_info: Callable[[], Any],
        get_stream: GetStreamCallable,
        max_gap_size: float = DEFAULT_MAX_GAP_SIZE,
    ) -> None:
        if not bucket:
            raise ConfigurationError("Bucket should be specified")
        if not key:
            raise ConfigurationError("Key should be specified")
        if not item_ranges:
            raise ConfigurationError("item_ranges must be a non-empty List[ItemRange] object")
        check_gap(max_gap_size)
        groups = _group_ranges(item_ranges, max_gap_size)
        if not groups:
            raise ConfigurationError("No non-empty ranges to read (all ranges were length 0)")
        self._bucket = bucket
        self._key = key
        self._get_object_info = get_object_info
        self._get_stream = get_stream
        self._items = [(item, group) for group in groups for item in group.item_ranges]
        self._reached = -1
        self._item_bytes: _Pieces | None = None
        self._stream_group: RangeGroup | None = None
        self._stream_position = 0
        self._rest: memoryview | None = None
        self._position = 0

    @property
    def bucket(self) -> str:
        """The bucket."""
        return self._bucket

    @property
    def key(self) -> str:
        """The key."""
        return self._key

    def read(self, size: int | None = None) -> bytes:
        """Reads exactly ``size`` bytes of the current or the next item.

        Raises:
            ValueError: ``size`` is ``None`` or negative, the bytes are not in these items, or the reader is
                closed.
            TypeError: ``size`` is no integer.
        """
        self._check_open()
        if size is None:
            raise ConfigurationError(f"Size cannot be None, {_NO_FULL_READ}")
        if not isinstance(size, int):
            raise TypeError(f"argument should be integer or None, not {type(size)!r}")
        if size < 0:
            raise ConfigurationError(f"Size cannot be negative, {_NO_FULL_READ}")
        return b"".join(self._take(size))

    def readinto(self, buf: Any) -> int:
        """Fills a writable buffer with bytes of the current or the next item and returns their number.

        Raises:
            ValueError: The bytes are not in these items, or the reader is closed.
            TypeError: The buffer is not writable.
        """
        self._check_open()
        view = memoryview(buf)
        if view.readonly:
            raise TypeError(f"argument must be a writable bytes-like object, not {type(buf)!r}")
        view = view.cast("B")
        filled = 0
        for piece in self._take(len(view)):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves the position, also to where nothing can be read; the end of the file is not known."""
        self._check_open()
        if not isinstance(offset, int) or not isinstance(whence, int):
            wrong = whence if isinstance(offset, int) else offset
            raise TypeError(f"integer argument expected, got {type(wrong)!r}")
        if whence not in {io.SEEK_SET, io.SEEK_CUR}:
            raise ConfigurationError("whence must be SEEK_CUR or SEEK_SET integers")
        position = offset + (self._position if whence == io.SEEK_CUR else 0)
        if position < 0:
            raise ConfigurationError(f"negative seek value {position}")
        self._position = position
        return position

    def tell(self) -> int:
        """Returns the position in the file."""
        self._check_open()
        return self._position

    def close(self) -> None:
        """Cancels what is on its way and frees what was read."""
        self._drop_stream()
        self._item_bytes = None
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def _take(self, size: int) -> list[memoryview]:
        if not size:
            return []
        index = self._find(self._position, self._position + size)
        if index != self._reached or self._item_bytes is None:
            self._load(index)
        offset = self._position - self._items[index][0].start
        self._position += size
        return [] if self._item_bytes is None else self._item_bytes.slice(offset, size)

    def _find(self, start: int, end: int) -> int:
        candidates = range(max(self._reached, 0), min(self._reached + 2, len(self._items)))
        for index in candidates:
            if self._items[index][0].contains(start, end):
                return index
        allowed = " or ".join(str(self._items[index][0]) for index in candidates)
        raise ConfigurationError(f"{_STRICT}Range {start}-{end} is not in {allowed}{_ADVICE}")

    def _load(self, index: int) -> None:
        item, group = self._items[index]
        self._item_bytes = None
        try:
            if self._stream_group is not group or self._stream_position > item.start:
                self._drop_stream()
                self._stream = iter(self._get_stream(item.start, group.end))
                self._stream_group = group
                self._stream_position = item.start
            for _ in self._until(item.start, item):
                """Junk between two items."""
            pieces = _Pieces(self._until(item.end, item))
        except BaseException:
            # The next read asks again, from the first byte of the item.
            self._drop_stream()
            raise
        self._reached, self._item_bytes = index, pieces

    def _until(self, position: int, item: ItemRange) -> Iterator[memoryview]:
        while self._stream_position < position and self._stream is not None:
            piece: Any = self._rest or next(self._stream, None)
            if piece is None:
                raise StreamExhaustedError(
                    f"S3 stream exhausted at position {self._stream_position} while reading item {item}",
                    bucket=self._bucket,
                    key=self._key,
                )
            view = memoryview(piece)
            wanted = position - self._stream_position
            self._rest = view[wanted:]
            self._stream_position += min(wanted, len(view))
            yield view[:wanted]

    def _drop_stream(self) -> None:
        stream: Any = self._stream
        self._stream = None
        self._stream_group = None
        self._rest = None
        if hasattr(stream, "close"):
            stream.close()


class _Pieces:
    """The bytes of an item in the pieces in which they came, so that nothing is copied to join them."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces: list[memoryview] = []
        self._starts: list[int] = []
        size = 0
        for piece in pieces:
            self._pieces.append(piece)
            self._starts.append(size)
            size += len(piece)

    def slice(self, offset: int, size: int) -> list[memoryview]:
        """Returns views of ``size`` bytes from ``offset``; they have to be there."""
        found = []
        index = bisect_right(self._starts, offset) - 1
        while size:
            begin = offset - self._starts[index]
            view = self._pieces[index][begin : begin + size]
            found.append(view)
            offset += len(view)
            size -= len(view)
            index += 1
        return found


def check_gap(max_gap_size: object) -> None:
    if not isinstance(max_gap_size, int | float):
        raise TypeError(f"max_gap_size must be int or float, got {type(max_gap_size).__name__}")
    if not max_gap_size >= 0:
        raise ConfigurationError("max_gap_size must be non-negative")
