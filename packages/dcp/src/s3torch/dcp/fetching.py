"""Fetches pieces of many files at once: which requests that takes, and where their bytes go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from s3torch.core.errors import RangeNotSatisfiableError, TruncatedError
from s3torch.core.memory import BufferPool
from s3torch.core.ranges import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from s3torch.core.memory import Reservation
    from s3torch.core.transfer.source import ObjectRange, ObjectSource

__all__ = ["Part", "Piece", "fetch", "plan_parts"]

_IN_FLIGHT = 96 * MIB
_REQUESTS = 128
_SMALL_GAP = 16 * KIB
_LARGEST_GAP = MIB
_WASTED_SHARE = 10


class Piece(Protocol):
    """Bytes of a file that are wanted together, and the memory where they are wanted."""

    @property
    def start(self) -> int:
        """Where they begin in the file."""
        ...

    @property
    def stop(self) -> int:
        """Where they end."""
        ...

    @property
    def held(self) -> int:
        """How many bytes of new memory ``open`` takes."""
        ...

    def open(self) -> memoryview:
        """Returns the memory for all of them, the same at every call."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """What one request fetches.

    Attributes:
        start: Where it begins in the file.
        stop: Where it ends.
        pieces: All pieces of which it has bytes.
        is_direct: The part has bytes of one piece only, which can be received where they are wanted.
    """

    start: int
    stop: int
    pieces: tuple[Piece, ...]
    is_direct: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start


def plan_parts(pieces: Sequence[Piece], *, part_size: int, max_gap: float | None) -> list[Part]:
    """Decides which requests fetch some pieces of a file; pieces may repeat and overlap.

    Args:
        pieces: What is wanted, at least a byte each.
        part_size: The most that one request fetches.
        max_gap: Bytes between two pieces up to which one request fetches both. ``None`` fetches at most about
            a tenth more than what is wanted.
    """
    parts: list[Part] = []
    for group in _groups(sorted(pieces, key=lambda piece: (piece.start, piece.stop)), max_gap):
        parts += _cut(group, part_size)
    return parts


def _groups(pieces: Sequence[Piece], max_gap: float | None) -> Iterator[list[Piece]]:
    group: list[Piece] = []
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


def _cut(group: Sequence[Piece], part_size: int) -> Iterator[Part]:
    """Cuts neighbouring pieces into parts, as many of them direct as that takes no more requests."""
    end = max(piece.stop for piece in group)
    first, position = 0, group[0].start
    while position < end:
        while group[first].stop <= position:
            first += 1
        position = max(position, group[first].start)
        stop = min(position + part_size, end)
        inside = _between(group, first, position, stop)
        begun = [piece for piece in inside if piece.start <= position]
        alone = _between(group, first, position, min(stop, begun[0].stop))
        if len(alone) == 1 and (len(inside) == 1 or begun[0].stop - position >= part_size // 2):
            stop = min(stop, begun[0].stop)
            yield Part(position, stop, (begun[0],), is_direct=True)
        else:
            stop = min(stop, max(piece.stop for piece in inside))
            yield Part(position, stop, tuple(inside), is_direct=False)
        position = stop


def _between(group: Sequence[Piece], first: int, start: int, stop: int) -> list[Piece]:
    found = []
    for index in range(first, len(group)):
        if group[index].start >= stop:
            break
        if group[index].stop > start:
            found.append(group[index])
    return found


def fetch(files: Sequence[tuple[ObjectSource, Sequence[Part]]]) -> Iterator[Piece]:
    """Fetches parts of files, many at a time, and yields each piece when all of its bytes are there.

    The bytes in flight are bounded, and so is the memory that pieces take until the caller asks for the next
    one. The first error ends all and is raised here. Close the iterator to stop early; then, and after an
    error, the memory of the pieces is not touched any more.

    Args:
        files: The files, and the parts of each in order.
    """
    run = _Fetch(files)
    try:
        yield from run.pieces()
    finally:
        run.cancel()


class _Fetch:
    def __init__(self, files: Sequence[tuple[ObjectSource, Sequence[Part]]]) -> None:
        self._waiting = deque((source, part) for source, parts in files for part in parts)
        self._missing: dict[int, int] = {}
        self._arrived: SimpleQueue[_Request] = SimpleQueue()
        self._requests: set[_Request] = set()
        self._in_flight = 0
        self._held = 0
        self._pool = BufferPool(_IN_FLIGHT)

    def pieces(self) -> Iterator[Piece]:
        """Yields the pieces."""
        while self._waiting or self._requests:
            while self._waiting and self._may_start(*self._waiting[0]):
                self._start(*self._waiting.popleft())
            request = self._arrived.get()
            self._requests.discard(request)
            self._in_flight -= request.part.size
            request.finish(self._pool)
            for piece in request.part.pieces:
                both = min(piece.stop, request.part.stop) - max(piece.start, request.part.start)
                self._missing[id(piece)] -= both
                if not self._missing[id(piece)]:
                    yield piece
                    self._held -= piece.held

    def cancel(self) -> None:
        """Stops what is in flight."""
        self._waiting.clear()
        while self._requests:
            self._requests.pop().cancel()

    def _may_start(self, source: ObjectSource, part: Part) -> bool:
        if not self._requests:
            return True
        new = sum(piece.held for piece in part.pieces if id(piece) not in self._missing)
        if len(self._requests) >= _REQUESTS or self._in_flight + part.size > _IN_FLIGHT:
            return False
        # Pieces that have begun can always be completed: their parts come before those of new ones.
        if new and self._held and self._held + new > _IN_FLIGHT:
            return False
        budget = source.budget()
        return budget.used + part.size <= budget.limit

    def _start(self, source: ObjectSource, part: Part) -> None:
        for piece in part.pieces:
            if id(piece) not in self._missing:
                self._missing[id(piece)] = piece.stop - piece.start
                self._held += piece.held
        self._in_flight += part.size
        request = _Request(source, part, self._pool, self._arrived.put)
        self._requests.add(request)
        request.start()


class _Request:
    """One part on its way."""

    def __init__(
        self, source: ObjectSource, part: Part, pool: BufferPool, arrived: Callable[[_Request], None]
    ) -> None:
        self.part = part
        self._source = source
        self._arrived = arrived
        self._reservation: Reservation = source.budget().reserve(part.size)
        # A buffer that another part can use again, but not one much larger than this part.
        self._size = source.part_size if part.size > source.part_size // 4 else part.size
        self._buffer = None if part.is_direct else pool.take(self._size)
        self._transfer: ObjectRange | None = None

    def start(self) -> None:
        """Sends the request."""
        if self._buffer is None:
            piece = self.part.pieces[0]
            into = piece.open()[self.part.start - piece.start : self.part.stop - piece.start]
        else:
            into = self._buffer[: self.part.size]
        self._transfer = self._source.start(self.part.start, self.part.stop, into)
        self._transfer.add_done_callback(lambda: self._arrived(self))

    def finish(self, pool: BufferPool) -> None:
        """Puts the bytes where they are wanted."""
        assert self._transfer is not None  # noqa: S101 - For the type checker; it was started.
        try:
            data = self._transfer.wait()
        except RangeNotSatisfiableError as exc:
            raise self._too_short() from exc
        finally:
            self._reservation.release()
        if len(data) != self.part.size:
            raise self._too_short()
        if self._buffer is None:
            return
        for piece in self.part.pieces:
            start, stop = max(piece.start, self.part.start), min(piece.stop, self.part.stop)
            wanted = data[start - self.part.start : stop - self.part.start]
            piece.open()[start - piece.start : stop - piece.start] = wanted
        del data
        pool.give(self._buffer)
        self._buffer = None

    def cancel(self) -> None:
        """Stops the request; the memory of its pieces is not touched any more."""
        if self._transfer is not None:
            self._transfer.cancel()
        self._reservation.release()

    def _too_short(self) -> TruncatedError:
        return TruncatedError(
            f"the file does not have the bytes {self.part.start} to {self.part.stop}, which the checkpoint's "
            "metadata says it has",
            bucket=self._source.bucket,
            key=self._source.key,
        )
