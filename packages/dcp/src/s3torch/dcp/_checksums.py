"""Checksums of the pieces of what is stored: noted by the writer, compared by whoever reads.

Each item has a note where stock torch ignores it: the CRCs of what stands before the bytes of its tensor, of
each MiB of these, and of what stands behind them; of objects, and of what was transformed, of each MiB.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3torch.core.ranges import MIB
from s3torch.core.transfer import combine_crcs
from s3torch.dcp._metadata import CRC_WIDTHS, CheckpointError
from s3torch.dcp._tensors import NOTE as LAYOUT_NOTE
from s3torch.dcp._tensors import noted_layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# How much has one checksum. Parts of downloads are whole MiB, so none is cut; and of a resharded load little
# has to be fetched in addition.
PIECE_SIZE = MIB
# The attribute of torch's own storage entries with the checksums.
NOTE = "piece_checksums"
# What a note begins with: the number of the algorithm, and the sizes of a piece, of the head and of the tail.
_HEAD = struct.Struct("<B3I")
_ALGORITHMS = tuple(CRC_WIDTHS)


@dataclass(frozen=True, slots=True)
class ItemChecksums:
    """The checksums of the bytes of an item.

    Attributes:
        algorithm: That of all.
        size: How many bytes a piece has; the last one before the tail has fewer.
        head: How many bytes come before the first of these pieces, a piece of their own.
        tail: How many come behind them.
        values: The CRCs of all pieces, in order.
    """

    algorithm: str
    size: int
    head: int
    tail: int
    values: bytes

    @classmethod
    def of(cls, note: Any, length: int) -> ItemChecksums | None:
        """Reads a note of an item of so many bytes; ``None`` where there is none.

        Raises:
            CheckpointError: It is damaged.
        """
        if note is None:
            return None
        if type(note) is bytes and len(note) >= _HEAD.size:
            number, size, head, tail = _HEAD.unpack_from(note)
            within = length - head - tail
            if number < len(_ALGORITHMS) and size and within >= 0:
                algorithm = _ALGORITHMS[number]
                count = -(-within // size) + (head > 0) + (tail > 0)
                if len(note) == _HEAD.size + count * CRC_WIDTHS[algorithm]:
                    return cls(algorithm, size, head, tail, note[_HEAD.size :])
        raise CheckpointError("what the metadata notes of the checksums of an item is damaged")

    def note(self) -> bytes:
        """Returns what the metadata of a checkpoint says: of a type that every pickle may have, and short."""
        return _HEAD.pack(_ALGORITHMS.index(self.algorithm), self.size, self.head, self.tail) + self.values

    def borders(self, length: int) -> list[int]:
        """Lists where the pieces of an item of so many bytes end."""
        return _borders(length, self.head, self.tail, self.size)

    def pieces(self, length: int, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields begin, end and CRC of each piece that has some of these bytes of the item."""
        width = CRC_WIDTHS[self.algorithm]
        behind = length - self.tail
        if start == self.head and stop == behind <= start + self.size and stop > start:
            # Most tensors are one piece.
            at = width if self.head else 0
            yield start, stop, int.from_bytes(self.values[at : at + width], "big")
            return
        borders = [0, *self.borders(length)] if start < stop else [0]
        for number in range(max(bisect_right(borders, start) - 1, 0), len(borders) - 1):
            if borders[number] >= stop:
                break
            value = self.values[number * width : (number + 1) * width]
            yield borders[number], borders[number + 1], int.from_bytes(value, "big")

    def whole(self, length: int) -> int:
        """Returns the CRC of all bytes of the item."""
        crc = 0
        for start, stop, value in self.pieces(length, 0, length):
            crc = combine_crcs(self.algorithm, crc, value, stop - start) if start else value
        return crc


def _borders(length: int, head: int, tail: int, size: int) -> list[int]:
    stop = length - tail
    found = [head] if head else []
    if stop > head:
        found += [*range(head + size, stop, size), stop]
    if tail:
        found.append(length)
    return found


Pieces = tuple[str, "Sequence[tuple[int, int, int]]"]


def note_checksums(entries: Iterable[Any], found: Pieces | None) -> None:
    """Notes the checksums of the items of a file at their places in the metadata.

    Args:
        entries: torch's storage entries of the items, with the notes of their layouts.
        found: What ``S3Writer.piece_checksums`` tells of the file; ``None`` notes nothing.
    """
    if found is None:
        return
    algorithm, pieces = found
    number, width = _ALGORITHMS.index(algorithm), CRC_WIDTHS[algorithm]
    crcs = {stop: (start, crc) for start, stop, crc in pieces}
    for entry in entries:
        if getattr(entry, NOTE, None) is not None:
            # It was copied with what was noted.
            continue
        layout = noted_layout(getattr(entry, LAYOUT_NOTE, None), entry.length)
        shapes = [(layout.start, entry.length - layout.stop)] if layout is not None else []
        for head, tail in (*shapes, (0, 0)):
            values = _values(crcs, entry.offset, _borders(entry.length, head, tail, PIECE_SIZE), width)
            if values is not None:
                setattr(entry, NOTE, _HEAD.pack(number, PIECE_SIZE, head, tail) + values)
                break


def _values(
    crcs: Mapping[int, tuple[int, int]], begin: int, borders: Sequence[int], width: int
) -> bytes | None:
    """Returns the CRCs of what is between borders; ``None`` where those of the file are at other places."""
    values, at = [], begin
    for border in borders:
        start, crc = crcs.get(begin + border, (-1, 0))
        if start != at:
            return None
        at = begin + border
        values.append(crc.to_bytes(width, "big"))
    return b"".join(values)


def begin_piece(stream: Any) -> None:
    """Tells a stream, if it can be told, that what follows gets checksums of its own."""
    begin = getattr(stream, "begin_piece", None)
    if begin is not None:
        begin(PIECE_SIZE)
