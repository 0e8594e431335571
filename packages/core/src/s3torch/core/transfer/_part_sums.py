"""Where the parts end of which an object was made, and the checksums of parts and of other pieces."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from s3torch.core.ranges import MIB
from s3torch.core.transfer._checksums import compute_crc, encoded, encoded_crc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from s3torch.core.transfer._verification import Expected

SHA256 = "SHA256"
_MOST_PART_SIZES = 64


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


def equal_part_sizes(count: int, size: int) -> list[int]:
    """Returns the whole MiB that equal parts may have that make an object, of which the last is shorter."""
    if count < 2:
        return []
    fewest, most, step = -(-size // count), (size - 1) // (count - 1), MIB
    # Of two or three large parts the size may be anything; those that people choose are round.
    while (most - fewest) // step > _MOST_PART_SIZES:
        step *= 2
    return list(range(-(-fewest // step) * step, most + 1, step))
