"""Ranges of bytes: how an object is cut into requests. Pure functions of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = [
    "GIB",
    "KIB",
    "MAX_OBJECT_SIZE",
    "MAX_PARTS",
    "MAX_PART_SIZE",
    "MIB",
    "MIN_PART_SIZE",
    "TIB",
    "ByteRange",
    "Part",
    "Span",
    "plan_parts",
    "split_range",
    "upload_part_size",
]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIN_PART_SIZE = 5 * MIB
MAX_PART_SIZE = 5 * GIB
MAX_PARTS = 10_000
MAX_OBJECT_SIZE = 5 * TIB

# What a request may fetch in vain to save another one, where nobody says: about a tenth, within these.
_SMALL_GAP = 16 * KIB
_LARGEST_GAP = MIB
_WASTED_SHARE = 10

# With this step parts of 5 MiB, the smallest, reach 5 TiB within 10,000 parts.
_PARTS_PER_DOUBLING = 900


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ConfigurationError(f"expected 0 <= start < stop, got {self.start}, {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def header(self) -> str:
        """The value of an HTTP ``Range`` header, whose end is inclusive."""
        return f"bytes={self.start}-{self.stop - 1}"


def split_range(start: int, stop: int, size: int) -> Iterator[ByteRange]:
    """Cuts the bytes from ``start`` to ``stop`` into ranges of ``size`` bytes, the last one shorter."""
    for begin in range(start, stop, size):
        yield ByteRange(begin, min(begin + size, stop))


def upload_part_size(number: int, base: int) -> int:
    """Returns how large the part with this number is, in bytes.

    Parts begin at ``base`` bytes and double every 900 parts, so that an upload of unknown length reaches
    S3's 5 TiB within its 10,000 parts while all but huge objects have parts of the size that was asked for.

    Args:
        number: The number of the part, from 1.
        base: The part size of the configuration.
    """
    return min(base << ((number - 1) // _PARTS_PER_DOUBLING), MAX_PART_SIZE)


def planned_part_size(size: int, base: int) -> int:
    """Returns how large equal parts of a known size are: ``base`` bytes, or what 10,000 parts need."""
    return max(base, -(-size // MAX_PARTS // MIB) * MIB)


class Span(Protocol):
    """Some neighbouring bytes of an object."""

    @property
    def start(self) -> int:
        """Where they begin."""
        ...

    @property
    def stop(self) -> int:
        """Where they end."""
        ...


S = TypeVar("S", bound=Span)


@dataclass(frozen=True, slots=True)
class Part(Generic[S]):
    """What one request fetches.

    Attributes:
        start: Where it begins in the object.
        stop: Where it ends.
        pieces: All pieces of which it has bytes.
        is_direct: The part has bytes of one piece only, which can be received where they are wanted.
    """

    start: int
    stop: int
    pieces: tuple[S, ...]
    is_direct: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


def plan_parts(
    pieces: Sequence[S],
    *,
    part_size: int,
    max_gap: float | None,
    fitting: Callable[[int, int], int] | None = None,
) -> list[Part[S]]:
    """Decides which requests fetch some pieces of an object; pieces may repeat and overlap.

    Args:
        pieces: What is wanted, at least a byte each.
        part_size: The most that one request fetches.
        max_gap: Bytes between two pieces up to which one request fetches both. ``None`` fetches at most about
            a tenth more than what is wanted.
        fitting: Returns where a part may end that begins at the first number: at the second, or between the
            two; at the first, if what begins there would be cut. ``None`` where it may end anywhere.
    """
    parts: list[Part[S]] = []
    for group in _groups(sorted(pieces, key=lambda piece: (piece.start, piece.stop)), max_gap):
        parts += _cut(group, part_size, fitting or (lambda _, stop: stop))
    return parts


def _groups(pieces: Sequence[S], max_gap: float | None) -> Iterator[list[S]]:
    group: list[S] = []
    start = stop = 0
    for piece in pieces:
        if group:
            limit = max_gap
            if limit is None:
                share = (stop - start + piece.stop - piece.start) // _WASTED_SHARE
                limit = max(_SMALL_GAP, min(share, _LARGEST_GAP))
            if piece.start - stop > limit:
                yield group
                group = []
        if not group:
            start = stop = piece.start
        group.append(piece)
        stop = max(stop, piece.stop)
    if group:
        yield group


def _cut(group: Sequence[S], part_size: int, fitting: Callable[[int, int], int]) -> Iterator[Part[S]]:
    """Cuts neighbouring pieces into parts.

    At least half a part of one piece is a part of its own, which spares a copy, for up to twice as many
    requests as would do.
    """
    end = max(piece.stop for piece in group)
    first, position = 0, group[0].start
    while position < end:
        while group[first].stop <= position:
            first += 1
        position = max(position, group[first].start)
        longest = min(position + part_size, end)
        stop = fitting(position, longest)
        if stop == position:  # What begins here is longer than a part.
            stop = longest
        inside = _between(group, first, position, stop)
        begun = [piece for piece in inside if piece.start <= position]
        own = fitting(position, min(stop, begun[0].stop))
        alone = _between(group, first, position, min(stop, begun[0].stop))
        is_large = len(inside) == 1 or begun[0].stop - position >= part_size // 2
        if own > position and len(alone) == 1 and is_large:
            stop = own
            yield Part(position, stop, (begun[0],), is_direct=True)
        else:
            stop = min(stop, max(piece.stop for piece in inside))
            yield Part(position, stop, tuple(inside), is_direct=False)
        position = stop


def _between(group: Sequence[S], first: int, start: int, stop: int) -> list[S]:
    found = []
    for index in range(first, len(group)):
        if group[index].start >= stop:
            break
        if group[index].stop > start:
            found.append(group[index])
    return found
