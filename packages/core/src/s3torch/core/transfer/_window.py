"""What one caller has in flight, bounded in bytes and in requests and by the budget of the process.

Every transfer of parts is admitted here. A window lets its first request in always, so that whoever waits for
bytes gets them however much others have in flight; more only while they fit. A refusal means "not now": the
caller waits for a request of its own, never for somebody else's.

``fetch`` fills a window with pieces of many objects, for those who know beforehand what they will want;
``plan_parts`` of ``s3torch.core.ranges`` decides which requests that takes.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from s3torch.core import _process
from s3torch.core._memory import BufferPool
from s3torch.core._process import reap, reaper, submit
from s3torch.core.errors import RangeNotSatisfiableError, TruncatedError
from s3torch.core.ranges import MIB, Part, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from s3torch.core._memory import MemoryBudget, Reservation
    from s3torch.core.transfer._ranges import ObjectRange

A = TypeVar("A")
T = TypeVar("T")

# The most bytes in flight of one caller: a read, a stream, a planned load, an upload.
IN_FLIGHT = 128 * MIB
FETCH_IN_FLIGHT = 96 * MIB
UPLOAD_IN_FLIGHT = 64 * MIB
_REQUESTS = 128
_MEASURED_PARTS = 64
_FEWEST_PARTS = 4


class Window:
    """Counts the requests that one caller has in flight."""

    def __init__(self, limit: int = IN_FLIGHT, *, requests: int = _REQUESTS) -> None:
        self.limit = limit
        self._requests = requests
        self._bytes = 0
        self._count = 0

    @property
    def is_empty(self) -> bool:
        return not self._count

    def admit(
        self, size: int, budget: MemoryBudget | None, *, target: InFlightTarget | None = None
    ) -> Admission | None:
        """Lets a request in, the first one always; ``None`` for "not now".

        Args:
            size: The bytes that it asks for.
            budget: What they are counted in; with ``None`` only one request at a time is let in.
            target: May set a lower limit.
        """
        reservation = None
        if self.is_empty:
            reservation = None if budget is None else budget.reserve(size)
        else:
            limit = self.limit if target is None else min(self.limit, target.limit)
            if budget is None or self._count >= self._requests or self._bytes + size > limit:
                return None
            reservation = budget.try_reserve(size)
            if reservation is None:
                return None
        self._bytes += size
        self._count += 1
        return Admission(self, size, reservation)

    def leave(self, size: int) -> None:
        """Counts a request that is not in flight any more."""
        self._bytes -= size
        self._count -= 1


class Admission:
    """A request's place in a window; given back once."""

    __slots__ = ("_reservation", "_size", "_window")

    def __init__(self, window: Window, size: int, reservation: Reservation | None) -> None:
        self._window: Window | None = window
        self._size = size
        self._reservation = reservation

    def release(self) -> None:
        """Gives the place and its bytes back; may be called again."""
        window, self._window = self._window, None
        if window is not None:
            window.leave(self._size)
        if self._reservation is not None:
            self._reservation.release()


class InFlightTarget:
    """How many bytes to have in flight to reach a throughput, by Little's law: throughput times duration.

    For transports that hold each part in memory of their own until it is whole, so that every part in flight
    costs memory, also where the bytes are for the caller's. On a fast network nearby it is a few parts. Where
    a part takes 0.1 seconds, which is what it takes in a region, 10 gigabits per second need 120 MiB.
    """

    def __init__(self, gbps: float, part_size: int) -> None:
        self._bytes_per_second = gbps * 1e9 / 8
        self.part_size = part_size
        self._seconds: deque[float] = deque(maxlen=_MEASURED_PARTS)

    def took(self, size: int, seconds: float) -> None:
        """Records how long a request took; one that was smaller than a part tells nothing of parts."""
        if size >= self.part_size:
            self._seconds.append(seconds)

    @property
    def limit(self) -> int:
        """The bytes, at least those of four parts."""
        # The fastest has waited least for others: a longer queue must not ask for a longer queue.
        fastest = min(tuple(self._seconds), default=0.0)
        return max(math.ceil(self._bytes_per_second * fastest), _FEWEST_PARTS * self.part_size)


def run_ahead(function: Callable[[A], T], items: Iterable[A], *, workers: int, name: str) -> Iterator[T]:
    """Maps a blocking function over items on some threads; yields the results in the order of the items.

    It takes no more items than there are threads to work on them, so that memory stays bounded. When a call
    fails, that is raised in its turn; those that have begun come to their end, and no others begin. A
    single item needs no thread.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2:
        yield from map(function, first)
        return
    pool = ThreadPoolExecutor(workers, name)
    running: deque[Future[T]] = deque()
    try:
        for item in chain(first, rest):
            running.append(submit(pool, function, item))
            if len(running) == workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


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
