"""Verification of whole objects whose bytes come in ranges: in any order, and to any reader.

The checksums of the ranges are computed as they arrive and combined. When all bytes of the object have come,
the result is compared with the checksum that the store keeps. An answer to a request without a range tells
that; else one HEAD does, which is sent beside the data as soon as more than a part is read from the start on,
or much of the object otherwise. A SHA-256 cannot be combined and is verified only where one answer has all
bytes; so are checksums of the checksums of parts (``…-N``) whose sizes are neither equal nor whole MiB.
"""

from __future__ import annotations

import base64
import logging
from bisect import bisect_right
from concurrent.futures import Future
from itertools import pairwise
from typing import TYPE_CHECKING, Generic, TypeVar

from s3torch.core.errors import S3Error
from s3torch.core.ranges import MIB
from s3torch.core.requests._objects import NO_LENGTH
from s3torch.core.transfer._checksums import (
    COMBINED,
    combine_crcs,
    compute_crc,
    encoded_crc,
    is_computable,
    mismatch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from s3torch.core.models import HeadObjectResult
    from s3torch.core.seam import Transfer
    from s3torch.core.transfer._source import ObjectSource

_log = logging.getLogger(__name__)

V = TypeVar("V")

# Parts' worth of bytes, wherever they are, after which the store is asked for the checksum.
_ASKED_AFTER = 4
# Parts' worth of bytes that are kept, while nobody knows which checksum they need, instead of computing all.
_KEPT = 2
_MOST_PART_SIZES = 64
# With these a store says that it does not answer such a question.
_UNANSWERED = {400, 403, 404, 405, 501}


class Spans(Generic[V]):
    """Ranges of an object that do not overlap, each with a value; neighbours become one where that can be.

    Args:
        join: Returns the value of two neighbours, of which the second one has so many bytes.
        is_cut: Whether ranges end at a position in any case.
    """

    def __init__(self, join: Callable[[V, V, int], V], is_cut: Callable[[int], bool] | None = None) -> None:
        self._join = join
        self._is_cut = is_cut
        self._starts: list[int] = []
        self._rest: list[tuple[int, V]] = []
        self.size = 0

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return ((start, stop, value) for start, (stop, value) in zip(self._starts, self._rest, strict=True))

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yields what no range has of these bytes."""
        index = bisect_right(self._starts, start)
        if index:
            start = max(start, self._rest[index - 1][0])
        for begin, (end, _) in zip(self._starts[index:], self._rest[index:], strict=True):
            if begin >= stop:
                break
            if start < begin:
                yield start, begin
            start = end
        if start < stop:
            yield start, stop

    def add(self, start: int, stop: int, value: V) -> None:
        """Adds a range of which no other one has a byte."""
        self.size += stop - start
        index = bisect_right(self._starts, start)
        if index and self._rest[index - 1][0] == start and not self._cuts(start):
            index -= 1
            value = self._join(self._rest[index][1], value, stop - start)
            start = self._starts.pop(index)
            self._rest.pop(index)
        if index < len(self._starts) and self._starts[index] == stop and not self._cuts(stop):
            end, following = self._rest.pop(index)
            value = self._join(value, following, end - stop)
            self._starts.pop(index)
            stop = end
        self._starts.insert(index, start)
        self._rest.insert(index, (stop, value))

    def _cuts(self, position: int) -> bool:
        return self._is_cut is not None and self._is_cut(position)


class Verification:
    """What has come of one object, with which checksums, until all has and is compared."""

    def __init__(self, source: ObjectSource) -> None:
        self._source = source
        self._question: Transfer[HeadObjectResult] | None = None
        # What the store keeps: algorithm and value, neither where it keeps nothing that can be verified.
        self._expected: tuple[str, str] | None = None
        self._is_known = False
        # How large the parts may be, for a checksum of checksums.
        self._part_sizes: list[int] = []
        self._wanted: Spans[None] = Spans(lambda *_: None)
        self.restart()

    def restart(self) -> None:
        """Forgets the bytes that have come."""
        self._kept: list[tuple[int, memoryview]] = []
        self._algorithms = (
            (self._expected[0],) if self._expected is not None else tuple(filter(is_computable, COMBINED))
        )
        self._spans: Spans[tuple[int, ...]] = Spans(self._combine, self._is_cut)

    def wanted(self, start: int, stop: int) -> None:
        """Takes note of a request for a range; asks for the checksum where all of the object may follow."""
        if self._is_known or self._question is not None:
            return
        for begin, end in list(self._wanted.missing(start, stop)):
            self._wanted.add(begin, end, None)
        part_size, size = self._source.part_size, self._source.known_size
        first_start, first_stop, _ = next(iter(self._wanted))
        goes_on = first_start == 0 and first_stop > part_size
        if size and (goes_on or self._wanted.size >= min(size, _ASKED_AFTER * part_size)):
            self._question = self._source.ask_head()

    def told(self, checksums: Mapping[str, str]) -> None:
        """Takes what an answer tells of the checksum of the whole object; nothing if there is none."""
        self._is_known = True
        for algorithm in filter(is_computable, COMBINED):
            value = checksums.get(algorithm)
            # One of all bytes is better than one of checksums.
            if value is not None and (self._expected is None or "-" in self._expected[1]):
                self._expected = algorithm, value
        if self._expected is not None and "-" in self._expected[1]:
            self._part_sizes = _part_sizes(self._expected[1], self._source.known_size or 0)
            if not self._part_sizes:
                self._expected = None
        early, kept, known = list(self._spans), self._kept, self._algorithms
        self.restart()
        if self._expected is None:
            return
        for start, stop, values in early:
            self._spans.add(start, stop, (values[known.index(self._expected[0])],))
        for start, data in kept:
            self._take(start, data)

    def arrived(self, start: int, data: memoryview) -> None:
        """Takes bytes that are about to be handed over.

        Raises:
            ChecksumMismatchError: They are the last ones, and the object is not what was stored.
            S3Error: The store could not be asked what that was.
        """
        size, room = self._source.known_size, _KEPT * self._source.part_size
        if not self._is_known and (len(data) == size or self._question is not None):
            self._ask()
        if self._is_known and self._expected is None:
            return
        room -= sum(len(kept) for _, kept in self._kept)
        if not self._is_known and isinstance(data.obj, bytes) and len(data) <= room:
            self._kept.append((start, data))
        else:
            self._take(start, data)
        if self._spans.size == size:
            self._compare()

    def _ask(self) -> None:
        question, self._question = self._question or self._source.ask_head(), None
        # Asked so, an error is not raised here: its traceback would hold the buffers of these frames.
        error = question.exception() if isinstance(question, Future) else None
        if isinstance(error, S3Error) and (error.status in _UNANSWERED or error.code == NO_LENGTH):
            self._log_unverified(str(error))
            self.told({})
            return
        head = question.result()
        # Of another version than that of the bytes it tells nothing.
        self.told(head.checksums if self._source.is_same(head) else {})

    def _take(self, start: int, data: memoryview) -> None:
        for begin, end in list(self._spans.missing(start, start + len(data))):
            cuts = {cut for size in self._part_sizes for cut in range(-(-begin // size) * size, end, size)}
            edges = sorted({begin, end, *cuts})
            for low, high in pairwise(edges):
                piece = data[low - start : high - start]
                self._spans.add(low, high, tuple(compute_crc(name, piece) for name in self._algorithms))

    def _combine(self, first: tuple[int, ...], second: tuple[int, ...], size: int) -> tuple[int, ...]:
        names = self._algorithms
        return tuple(combine_crcs(*three, size) for three in zip(names, first, second, strict=True))

    def _is_cut(self, position: int) -> bool:
        return any(position % size == 0 for size in self._part_sizes)

    def _compare(self) -> None:
        if self._expected is None:
            return
        algorithm, value = self._expected
        if "-" not in value:
            ((_, _, (crc,)),) = self._spans
            found = {0: encoded_crc(algorithm, crc)}
        else:
            each = {size: self._of_parts(algorithm, size) for size in self._part_sizes}
            found = {size: one for size, one in each.items() if one is not None}
        self.restart()
        if value in found.values():
            return
        size = 0 if "-" not in value else self._source.ask_first_part()
        if size is None or size not in found:
            self._log_unverified("its parts are of unequal sizes")
            return
        raise mismatch(algorithm, found[size], value, bucket=self._source.bucket, key=self._source.key)

    def _log_unverified(self, why: str) -> None:
        _log.debug("s3://%s/%s is not verified: %s", self._source.bucket, self._source.key, why)

    def _of_parts(self, algorithm: str, part_size: int) -> str | None:
        """Returns the checksum of the checksums of parts of this size; ``None`` where a range has two."""
        parts: Spans[int] = Spans(
            lambda first, second, size: combine_crcs(algorithm, first, second, size),
            lambda position: position % part_size == 0,
        )
        for start, stop, (crc,) in self._spans:
            if start // part_size != (stop - 1) // part_size:
                return None
            parts.add(start, stop, crc)
        crcs = [crc for _, _, crc in parts]
        whole = b"".join(base64.b64decode(encoded_crc(algorithm, crc)) for crc in crcs)
        return f"{encoded_crc(algorithm, compute_crc(algorithm, memoryview(whole)))}-{len(crcs)}"


def _part_sizes(value: str, size: int) -> list[int]:
    """Returns the whole MiB that N equal parts may have that make an object, of which the last is shorter."""
    _, _, text = value.partition("-")
    count = int(text) if text.isdecimal() else 0
    if count < 2:
        return [size] * count
    fewest, most, step = -(-size // count), (size - 1) // (count - 1), MIB
    # Of two or three large parts the size may be anything; those that people choose are round.
    while (most - fewest) // step > _MOST_PART_SIZES:
        step *= 2
    return list(range(-(-fewest // step) * step, most + 1, step))
