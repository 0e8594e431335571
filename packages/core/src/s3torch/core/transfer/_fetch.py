"""Pieces of many objects at once, for readers that know beforehand what they will want.

``plan_parts`` of ``s3torch.core.ranges`` decides which requests that takes.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from s3torch.core import _process
from s3torch.core._memory import BufferPool
from s3torch.core._process import reap, reaper
from s3torch.core.errors import RangeNotSatisfiableError, TruncatedError
from s3torch.core.ranges import Part, Span
from s3torch.core.transfer._window import FETCH_IN_FLIGHT, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from s3torch.core._memory import MemoryBudget
    from s3torch.core.transfer._ranges import ObjectRange
    from s3torch.core.transfer._window import Admission


class Piece(Span, Protocol):
    """Bytes of an object that are wanted together, and the memory where they are wanted."""

    @property
    def held(self) -> int:
        """How many bytes of new memory ``open`` takes."""
        ...

    def open(self) -> memoryview:
        """Returns the memory for all of them, the same at every call."""
        ...


class FetchSource(Protocol):
    """An object as a source of ranges that call back when they have arrived."""

    bucket: str
    key: str
    part_size: int

    def start(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        """Starts one request for the bytes from ``start`` to ``stop``, as that of ``RangeSource`` does."""
        ...

    def budget(self) -> MemoryBudget | None:
        """The budget for read-ahead."""
        ...


P = TypeVar("P", bound=Piece)


def fetch(files: Sequence[tuple[FetchSource, Sequence[Part[P]]]]) -> Fetch[P]:
    """Fetches parts of objects, many at a time, and yields each piece when all of its bytes are there.

    The bytes in flight are bounded, and so is the memory that pieces take until the caller asks for the next
    one. The first error ends all and is raised here. Close the iterator to stop early; then, and after an
    error, the memory of the pieces is not touched any more. Dropping it stops a little later.
    """
    return Fetch(files)


class Fetch(Generic[P]):
    """The iterator of ``fetch``.

    Attributes:
        failed: The source and the part of the request that has ended all.
    """

    def __init__(self, files: Sequence[tuple[FetchSource, Sequence[Part[P]]]]) -> None:
        self._waiting = deque((source, part) for source, parts in files for part in parts)
        self._missing: dict[int, int] = {}
        self._complete: deque[P] = deque()
        self._arrived: SimpleQueue[_Request[P]] = SimpleQueue()
        self._window = Window(FETCH_IN_FLIGHT)
        # The bytes of pieces that have begun, until the caller asks for the next one.
        self._held = self._handed_out = 0
        self._pool = BufferPool(FETCH_IN_FLIGHT)
        self._pid = _process.here
        self._requests: set[_Request[P]] = set()
        self.failed: tuple[FetchSource, Part[P]] | None = None
        reaper.get()

    def __iter__(self) -> Iterator[P]:
        return self

    def __next__(self) -> P:
        self._held -= self._handed_out
        self._handed_out = 0
        try:
            while not self._complete and (self._waiting or self._requests):
                self._advance()
        except BaseException:
            self.close()
            raise
        if not self._complete:
            raise StopIteration
        piece = self._complete.popleft()
        self._handed_out = piece.held
        return piece

    def start_more(self) -> None:
        """Starts what may be in flight, without waiting for anything."""
        while self._waiting and self._start(*self._waiting[0]):
            self._waiting.popleft()

    def keep(self) -> int:
        """Counts the memory of the last piece further, until ``drop`` gets what this returns."""
        kept, self._handed_out = self._handed_out, 0
        return kept

    def drop(self, kept: int) -> None:
        """Tells that memory which was kept is free."""
        self._held -= kept

    def close(self) -> None:
        """Stops what is in flight."""
        self._waiting.clear()
        self._complete.clear()
        requests, self._requests = self._requests, set()
        _cancel_all(requests)

    def __del__(self) -> None:
        if getattr(self, "_requests", None) and self._pid == _process.here:
            reap(partial(_cancel_all, self._requests))

    def _advance(self) -> None:
        """Starts what may be in flight, and takes in one answer."""
        self.start_more()
        request = self._arrived.get()
        self._requests.discard(request)
        try:
            request.finish(self._pool)
        except BaseException:
            self.failed = request.source, request.part
            raise
        for piece in request.part.pieces:
            both = min(piece.stop, request.part.stop) - max(piece.start, request.part.start)
            self._missing[id(piece)] -= both
            if not self._missing[id(piece)]:
                self._complete.append(piece)

    def _start(self, source: FetchSource, part: Part[P]) -> bool:
        """Starts a part unless there is too much in flight or in memory."""
        begun = {id(piece): piece for piece in part.pieces if id(piece) not in self._missing}
        new = sum(piece.held for piece in begun.values())
        # Pieces that have begun can always be completed: their parts come before those of new ones.
        if self._requests and new and self._held and self._held + new > FETCH_IN_FLIGHT:
            return False
        admission = self._window.admit(part.size, source.budget())
        if admission is None:
            return False
        for piece in begun.values():
            self._missing[id(piece)] = piece.stop - piece.start
        self._held += new
        request = _Request(source, part, self._pool, admission)
        self._requests.add(request)
        request.start(self._arrived.put)
        return True


def _cancel_all(requests: Iterable[_Request[P]]) -> None:
    for request in requests:
        request.cancel()


class _Request(Generic[P]):
    """One part in flight."""

    def __init__(self, source: FetchSource, part: Part[P], pool: BufferPool, admission: Admission) -> None:
        self.part = part
        self.source = source
        self._admission = admission
        # A buffer that another part can use again, but not one much larger than this part.
        self._size = source.part_size if part.size > source.part_size // 4 else part.size
        self._buffer = None if part.is_direct else pool.take(self._size)
        self._transfer: ObjectRange | None = None

    def start(self, arrived: Callable[[_Request[P]], None]) -> None:
        """Sends the request; ``arrived`` is called when it has ended."""
        if self._buffer is None:
            piece = self.part.pieces[0]
            into = piece.open()[self.part.start - piece.start : self.part.stop - piece.start]
        else:
            into = self._buffer[: self.part.size]
        self._transfer = self.source.start(self.part.start, self.part.stop, into)
        self._transfer.add_done_callback(lambda: arrived(self))

    def finish(self, pool: BufferPool) -> None:
        # It refers to this request, and to the memory of the piece, which must be free with the piece.
        transfer, self._transfer = self._transfer, None
        assert transfer is not None  # noqa: S101 - For the type checker; it was started.
        try:
            data = transfer.wait()
        except RangeNotSatisfiableError as exc:
            raise self._too_short() from exc
        finally:
            self._admission.release()
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
        self._admission.release()

    def _too_short(self) -> TruncatedError:
        return TruncatedError(
            f"the object does not have the bytes {self.part.start} to {self.part.stop} of the planned ranges",
            bucket=self.source.bucket,
            key=self.source.key,
        )
