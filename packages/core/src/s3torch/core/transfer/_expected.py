"""The checksum that a store keeps of an object, and what has to be summed to compare with it."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from s3torch.core.ranges import MIB
from s3torch.core.transfer._checksums import COMBINED, compute_crc, encoded, encoded_crc, is_computable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

SHA256 = "SHA256"
_MOST_PART_SIZES = 64
# There are at most 10,000 parts.
_DIGITS = 5


class Layout(NamedTuple):
    """Where the parts end of which an object was made.

    Attributes:
        part_size: The size of all of them but the last.
        ends: Their ends one by one, where the store has told them.
    """

    part_size: int = 0
    ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, sizes: Iterable[int]) -> Layout:
        """Makes that of parts of these sizes."""
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + size)
        return cls(ends=tuple(ends[1:]))

    def borders(self, start: int, stop: int) -> Iterable[int]:
        """Returns the ends of parts between two positions, without these."""
        if self.ends:
            return self.ends[bisect_right(self.ends, start) : bisect_left(self.ends, stop)]
        return range(start // self.part_size * self.part_size + self.part_size, stop, self.part_size)

    def is_border(self, position: int) -> bool:
        """Whether a part ends or begins there."""
        return bool(self.borders(position - 1, position + 1)) or not position


class Expected(NamedTuple):
    """The checksum that the store keeps.

    Attributes:
        algorithm: The algorithm.
        value: The checksum in base64, with ``-N`` if it is one of those of N parts.
        layouts: Where the parts may end; none where that does not matter, or has to be asked for.
    """

    algorithm: str
    value: str
    layouts: tuple[Layout, ...] = ()

    @classmethod
    def among(cls, checksums: Mapping[str, str], size: int) -> Expected | None:
        """Chooses what is verified best; ``None`` where nothing can be."""
        usable = [name for name in (*COMBINED, SHA256) if name in checksums and is_computable(name)]
        if not usable:
            return None
        # One of all bytes is better than one of checksums.
        algorithm = min(usable, key=lambda name: ("-" in checksums[name], name == SHA256))
        value = checksums[algorithm]
        if "-" in value:
            expected = cls(algorithm, value)
            if expected.parts == 1:
                return expected._replace(layouts=(Layout.of([size]),))
            sizes = _part_sizes(expected.parts, size)
            return expected._replace(layouts=tuple(Layout(part_size) for part_size in sizes))
        return cls(algorithm, value, (Layout(size),) if algorithm == SHA256 and size else ())

    @property
    def parts(self) -> int:
        """Of how many parts it is; 0 where it does not say that."""
        count = self.value.partition("-")[2]
        return int(count) if count.isdecimal() and len(count) <= _DIGITS else 0

    @property
    def is_of_parts(self) -> bool:
        """Whether it is a checksum of checksums."""
        return "-" in self.value

    @property
    def is_open(self) -> bool:
        """Whether it has to be asked where the parts end."""
        return self.is_of_parts and (len(self.layouts) != 1 if self.algorithm == SHA256 else not self.layouts)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields what of a range has to be summed apart."""
        edges = {start, stop, *(border for layout in self.layouts for border in layout.borders(start, stop))}
        return pairwise(sorted(edges))

    def is_border(self, position: int) -> bool:
        """Whether no piece may go beyond this position."""
        return any(layout.is_border(position) for layout in self.layouts)


class Sums(NamedTuple):
    """Checksums of pieces of a range, each by where the piece begins and ends."""

    algorithm: str
    pieces: dict[tuple[int, int], int | bytes]

    @classmethod
    def of(cls, expected: Expected, start: int, data: memoryview) -> Sums:
        """Computes those that can be without what comes before the range, with the GIL free."""
        pieces: dict[tuple[int, int], int | bytes] = {}
        for low, high in expected.pieces(start, start + len(data)):
            piece = data[low - start : high - start]
            if expected.algorithm != SHA256:
                pieces[low, high] = compute_crc(expected.algorithm, piece)
            elif expected.is_border(low) and expected.is_border(high):
                pieces[low, high] = hashlib.sha256(piece).digest()
        return cls(expected.algorithm, pieces)


class Digests:
    """The SHA-256 of each part of an object; the bytes of a part come in order.

    Args:
        layout: Where the parts end.
        size: The size of the object.
    """

    def __init__(self, layout: Layout, size: int) -> None:
        self._layout = layout
        self._size = size
        # By where parts begin, and by the position up to which the bytes of a part have come.
        self._whole: dict[int, bytes] = {}
        self._begun: dict[int, tuple[int, hashlib._Hash]] = {}

    def add(self, low: int, high: int, piece: memoryview, digest: bytes | None = None) -> bool:
        """Takes a piece, and its digest where that is known; ``False`` if others have to come first."""
        if digest is not None and self._layout.is_border(low) and self._layout.is_border(high):
            self._whole[low] = digest
            return True
        if self._layout.is_border(low):
            begin, running = low, hashlib.sha256()
        elif low in self._begun:
            begin, running = self._begun.pop(low)
        else:
            return False
        running.update(piece)
        if high == self._size or self._layout.is_border(high):
            self._whole[begin] = running.digest()
        else:
            self._begun[high] = begin, running
        return True

    def of_parts(self) -> list[bytes]:
        """Returns those of all parts in order."""
        return [self._whole[begin] for begin in sorted(self._whole)]


def of_checksums(algorithm: str, raw: list[bytes]) -> str:
    """Returns the checksum of the checksums of parts, as S3 writes it."""
    joined = b"".join(raw)
    if algorithm == SHA256:
        value = encoded(hashlib.sha256(joined).digest())
    else:
        value = encoded_crc(algorithm, compute_crc(algorithm, memoryview(joined)))
    return f"{value}-{len(raw)}"


def _part_sizes(count: int, size: int) -> list[int]:
    """Returns the whole MiB that equal parts may have that make an object, of which the last is shorter."""
    if count < 2:
        return []
    fewest, most, step = -(-size // count), (size - 1) // (count - 1), MIB
    # Of two or three large parts the size may be anything; those that people choose are round.
    while (most - fewest) // step > _MOST_PART_SIZES:
        step *= 2
    return list(range(-(-fewest // step) * step, most + 1, step))
