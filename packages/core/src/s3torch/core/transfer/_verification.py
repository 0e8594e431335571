"""Verification of whole objects whose bytes come in ranges: in any order, and to any reader.

The checksums of the ranges are computed as they arrive, on the threads that receive them, and combined. When
all bytes of the object have come, the result is compared with the checksum that the store keeps. An answer to
a request without a range tells that; else one HEAD does, which is sent beside the data as soon as more than a
part is read from the start on, or much of the object otherwise.

A checksum of the checksums of parts (``…-N``) needs to know where the parts end. As a rule they are equal and
of whole MiB, so that their number tells; else the store is asked. A SHA-256 cannot be combined, so the bytes
of each part have to come in order.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from s3torch.core.errors import ChecksumMismatchError, S3Error
from s3torch.core.ranges import KIB
from s3torch.core.requests._objects import NO_LENGTH
from s3torch.core.transfer._checksums import (
    COMBINED,
    combine_crcs,
    compute_crc,
    encoded,
    encoded_crc,
    is_computable,
    mismatch,
    raw_crc,
)
from s3torch.core.transfer._expected import SHA256, Digests, Expected, Layout, Sums, of_checksums

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
# Smaller ranges are summed as quickly where they are handed over.
_WORTH_SUMMING = 256 * KIB
# With these a store says that it does not answer such a question.
_UNANSWERED = {400, 403, 404, 405, 501}


class PartsLearnedError(ChecksumMismatchError):
    """Nobody knows whether the bytes are right, because the parts end elsewhere than it seemed.

    Who has handed out none of the bytes can verify them by reading them again.
    """


def read_again(read: Callable[[], V]) -> V:
    """Calls what reads all of an object, and once more if the bytes do not have the checksum of the store.

    What flipped on the way is right the next time. Who hands bytes out before the last has come cannot do so.

    Raises:
        ChecksumMismatchError: The object was fetched twice and is not what was stored.
    """
    try:
        return read()
    except ChecksumMismatchError as exc:
        if exc.attempts:  # It was fetched twice already.
            raise
    try:
        return read()
    except ChecksumMismatchError as exc:
        exc.attempts = 2
        raise


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
        # What the store keeps; ``None`` where that is nothing that can be verified.
        self._expected: Expected | None = None
        self._is_known = False
        self._wanted: Spans[None] = Spans(lambda *_: None)
        self.restart()

    def restart(self) -> None:
        """Forgets the bytes that have come."""
        self._kept: list[tuple[int, memoryview]] = []
        expected = self._expected
        self._algorithms = (
            (expected.algorithm,) if expected is not None else tuple(filter(is_computable, COMBINED))
        )
        is_cut = None if expected is None or not expected.layouts else expected.is_border
        self._spans: Spans[tuple[int, ...]] = Spans(self._combine, is_cut)
        self._digests: Digests | None = None
        if expected is not None and expected.algorithm == SHA256:
            self._digests = Digests(expected.layouts[0], self._source.known_size or 0)

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
        if not self._is_known:
            self._know(Expected.among(checksums, self._source.known_size or 0))

    def sum_early(self, start: int, data: memoryview) -> Sums | None:
        """Sums a range on the thread that has received it, while it is in the processor's cache.

        Returns:
            What ``arrived`` takes with the range; ``None`` where it is not known yet what has to be summed.
        """
        if len(data) < _WORTH_SUMMING:
            return None
        expected, question = self._expected, self._question
        if not self._is_known and question is not None and question.done() and isinstance(question, Future):
            head = None if question.exception() else question.result()
            if head is not None and self._source.is_same(head):
                expected = Expected.among(head.checksums, self._source.known_size or 0)
        return None if expected is None or expected.is_open else Sums.of(expected, start, data)

    def arrived(self, start: int, data: memoryview, sums: Sums | None = None) -> None:
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
            self._take(start, data, sums)
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

    def _know(self, expected: Expected | None) -> None:
        if expected is not None and expected.is_open:
            layout = self._ask_layout(expected)
            expected = None if layout is None else expected._replace(layouts=(layout,))
        self._expected, self._is_known = expected, True
        early, kept, known = list(self._spans), self._kept, self._algorithms
        self.restart()
        if expected is None:
            return
        for start, stop, values in early:
            if expected.algorithm == SHA256:
                self._give_up("the first bytes were summed in another way")
                return
            self._spans.add(start, stop, (values[known.index(expected.algorithm)],))
        for start, data in kept:
            self._take(start, data)

    def _ask_layout(self, expected: Expected) -> Layout | None:
        """Asks where the parts end; ``None`` where nothing tells."""
        sizes = self._source.ask_parts() if expected.parts else None
        if sizes is None or (sum(sizes), len(sizes)) != (self._source.known_size, expected.parts):
            self._log_unverified("the store does not tell where its parts end")
            return None
        return Layout.of(sizes)

    def _take(self, start: int, data: memoryview, sums: Sums | None = None) -> None:
        expected = self._expected
        for begin, end in list(self._spans.missing(start, start + len(data))):
            for low, high in [(begin, end)] if expected is None else list(expected.pieces(begin, end)):
                known: Any = None
                if sums is not None and self._algorithms == (sums.algorithm,):
                    known = sums.pieces.get((low, high))
                piece = data[low - start : high - start]
                if self._digests is not None:
                    if not self._digests.add(low, high, piece, known):
                        self._give_up("a SHA-256 needs the bytes of a part in order")
                        return
                    self._spans.add(low, high, ())
                elif known is not None:
                    self._spans.add(low, high, (known,))
                else:
                    values = tuple(compute_crc(name, piece) for name in self._algorithms)
                    self._spans.add(low, high, values)

    def _give_up(self, why: str) -> None:
        self._log_unverified(why)
        self._expected = None
        self.restart()

    def _combine(self, first: tuple[int, ...], second: tuple[int, ...], size: int) -> tuple[int, ...]:
        if self._digests is not None:
            return ()
        names = self._algorithms
        return tuple(combine_crcs(*three, size) for three in zip(names, first, second, strict=True))

    def _compare(self) -> None:
        expected = self._expected
        if expected is None:
            return
        found = self._found(expected)
        self.restart()
        if expected.value in found.values():
            return
        layout = expected.layouts[0] if expected.layouts else None
        if expected.is_of_parts and not (layout and layout.ends):
            layout = self._layout_of(expected, found)
        if layout not in found:
            self._log_unverified("its parts are of unequal sizes")
            return
        raise mismatch(
            expected.algorithm,
            found[layout],
            expected.value,
            bucket=self._source.bucket,
            key=self._source.key,
        )

    def _found(self, expected: Expected) -> dict[Layout | None, str]:
        """Returns the checksum of what has come, for each way in which the parts may end."""
        algorithm = expected.algorithm
        if self._digests is not None:
            raw = self._digests.of_parts()
            layout = expected.layouts[0]
            return {layout: of_checksums(SHA256, raw) if expected.is_of_parts else encoded(raw[0])}
        if not expected.is_of_parts:
            ((_, _, (crc,)),) = self._spans
            return {None: encoded_crc(algorithm, crc)}
        each = {layout: self._of_parts(algorithm, layout) for layout in expected.layouts}
        return {layout: value for layout, value in each.items() if value is not None}

    def _layout_of(self, expected: Expected, found: Mapping[Layout | None, str]) -> Layout | None:
        """Asks where the parts end of an object that fits none of the ways that seemed possible.

        Returns:
            The way in which they do end; ``None`` where nobody knows.

        Raises:
            PartsLearnedError: It is another one.
        """
        size = self._source.known_size or 0
        told = self._ask_layout(expected)
        if told is not None:
            self._expected = expected._replace(layouts=(told,))
            self.restart()
            for layout in found:
                if layout is not None and tuple(layout.borders(0, size)) == told.ends[:-1]:
                    return layout
            raise PartsLearnedError(
                "the parts of the object end elsewhere than it seemed; read it again",
                operation="GetObject",
                bucket=self._source.bucket,
                key=self._source.key,
            )
        first = self._source.ask_first_part()
        return None if first is None else Layout(first)

    def _log_unverified(self, why: str) -> None:
        _log.debug("s3://%s/%s is not verified: %s", self._source.bucket, self._source.key, why)

    def _of_parts(self, algorithm: str, layout: Layout) -> str | None:
        """Returns the checksum of the checksums of parts; ``None`` where a range has two."""
        parts: Spans[int] = Spans(
            lambda first, second, size: combine_crcs(algorithm, first, second, size), layout.is_border
        )
        for start, stop, (crc,) in self._spans:
            if layout.borders(start, stop):
                return None
            parts.add(start, stop, crc)
        return of_checksums(algorithm, [raw_crc(algorithm, crc) for _, _, crc in parts])
