"""What one caller has in flight: bounded in bytes and in requests, and by the budget of the process.

Every transfer of parts is admitted here. A window lets its first request in always, so that whoever waits for
bytes gets them however much others have in flight; more only while they fit. A refusal means "not now": the
caller waits for a request of its own, never for somebody else's.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from s3torch.core import _process
from s3torch.core._process import reap, reaper, submit
from s3torch.core.ranges import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core._memory import MemoryBudget, Reservation
    from s3torch.core.transfer._ranges import PendingRange, RangeSource

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


class Wanted(NamedTuple):
    """The bytes from ``start`` to ``stop``, at most a part, and where they go if the caller has a place."""

    start: int
    stop: int
    into: memoryview | None = None


class InOrder:
    """Iterates over the bytes of ranges one after the other, with the next ones in flight.

    While the size of the object is unknown only one request is sent. Close it to stop early; then, and after
    an error, what is in flight is cancelled and no memory is touched any more. Dropping it cancels a little
    later.
    """

    def __init__(self, source: RangeSource, wanted: Iterable[Wanted], *, limit: int = IN_FLIGHT) -> None:
        self._source = source
        self._wanted = iter(wanted)
        self._following: Wanted | None = None
        self._window = Window(limit)
        self._pid = _process.here
        reaper.get()
        self._waiting: deque[tuple[PendingRange, Admission]] = deque()

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        try:
            self._start_ahead()
            data = self._waiting[0][0].wait() if self._waiting else None
        except BaseException:
            self.close()
            raise
        if data is None:
            raise StopIteration
        self._waiting.popleft()[1].release()
        return data

    def close(self) -> None:
        """Cancels what is in flight."""
        self._wanted = iter(())
        self._following = None
        waiting, self._waiting = self._waiting, deque()
        # An iterator that was inherited through a fork leaves the parent's transfers alone.
        if self._pid == _process.here:
            _cancel_all(waiting)

    def __del__(self) -> None:
        if getattr(self, "_waiting", None) and self._pid == _process.here:
            reap(partial(_cancel_all, self._waiting))

    def _start_ahead(self) -> None:
        source, window = self._source, self._window
        while window.is_empty or source.known_size is not None:
            following = self._following or next(self._wanted, None)
            if following is None:
                return
            self._following = following
            size = following.stop - following.start
            admission = window.admit(size, source.budget(), target=source.in_flight_target)
            if admission is None:
                return
            self._waiting.append((source.start(*following), admission))
            self._following = None


def _cancel_all(waiting: Iterable[tuple[PendingRange, Admission]]) -> None:
    for pending, admission in waiting:
        pending.cancel()
        admission.release()


def receive(source: RangeSource, wanted: Iterable[Wanted]) -> None:
    """Fetches ranges into the buffers that they name, and returns when all bytes are there."""
    with closing(InOrder(source, wanted)) as arrived:
        for _ in arrived:
            """The bytes are where they are wanted."""


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
