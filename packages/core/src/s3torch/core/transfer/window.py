"""What one caller has on its way: bounded in bytes and in requests, and by the budget of the process.

Every download goes through here. A window lets its first request in always, so that whoever waits for bytes
gets them however much others have in flight; more only while they fit. A refusal means "not now": the caller
waits for a request of its own, never for somebody else's.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from s3torch.core._process import Birthplace
from s3torch.core.ranges import MIB, split_range

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from s3torch.core.memory import MemoryBudget, Reservation
    from s3torch.core.transfer._pace import Pace
    from s3torch.core.transfer.source import PendingRange, RangeSource

__all__ = ["IN_FLIGHT", "Admission", "Wanted", "Window", "in_order", "receive", "receive_all"]

IN_FLIGHT = 128 * MIB
_REQUESTS = 128


class Window:
    """Counts the requests that one caller has on their way.

    Args:
        limit: Bytes.
        requests: How many.
    """

    def __init__(self, limit: int = IN_FLIGHT, *, requests: int = _REQUESTS) -> None:
        self._limit = limit
        self._requests = requests
        self._bytes = 0
        self._count = 0

    @property
    def is_empty(self) -> bool:
        """Tells whether nothing is on its way."""
        return not self._count

    def admit(self, size: int, budget: MemoryBudget | None, *, pace: Pace | None = None) -> Admission | None:
        """Lets a request in, the first one always; ``None`` for "not now".

        Args:
            size: The bytes that it asks for.
            budget: What they are counted in; with ``None`` only one request at a time is let in.
            pace: May set a lower limit.
        """
        reservation = None
        if self.is_empty:
            reservation = None if budget is None else budget.reserve(size)
        else:
            limit = self._limit if pace is None else min(self._limit, pace.limit)
            if budget is None or self._count >= self._requests or self._bytes + size > limit:
                return None
            reservation = budget.try_reserve(size)
            if reservation is None:
                return None
        self._bytes += size
        self._count += 1
        return Admission(self, size, reservation)

    def leave(self, size: int) -> None:
        """Counts a request that is not on its way any more."""
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


@runtime_checkable
class _Paced(Protocol):
    """A source that may know how much to have on its way."""

    @property
    def pace(self) -> Pace | None:
        """See ``Connection.pace``."""
        ...


class Wanted(NamedTuple):
    """The bytes from ``start`` to ``stop``, at most a part, and where they go if the caller has a place."""

    start: int
    stop: int
    into: memoryview | None = None


def in_order(
    source: RangeSource, wanted: Iterator[Wanted], *, limit: int = IN_FLIGHT
) -> Generator[memoryview]:
    """Fetches ranges one after the other, with the next ones on their way, and yields the bytes of each.

    While the size of the object is unknown only one request is sent. Close the iterator to stop early; then,
    and after an error, what is on its way is cancelled and no memory is touched any more.

    Args:
        source: The object.
        wanted: The ranges; asked for the next one when its turn to be sent has come.
        limit: The most bytes on their way.
    """
    window = Window(limit)
    birthplace = Birthplace()
    pace = source.pace if isinstance(source, _Paced) else None
    waiting: deque[tuple[PendingRange, Admission]] = deque()
    following: Wanted | None = None
    try:
        while True:
            while window.is_empty or source.known_size is not None:
                following = following or next(wanted, None)
                if following is None:
                    break
                admission = window.admit(following.stop - following.start, source.budget(), pace=pace)
                if admission is None:
                    break
                waiting.append((source.start(*following), admission))
                following = None
            if not waiting:
                return
            data = waiting[0][0].wait()
            waiting.popleft()[1].release()
            yield data
    finally:
        # A reader that was inherited through a fork leaves the parent's transfers alone.
        if birthplace.is_here:
            for pending, admission in waiting:
                pending.cancel()
                admission.release()


def receive(source: RangeSource, wanted: Iterator[Wanted]) -> None:
    """Fetches ranges into the memory that they name."""
    with closing(in_order(source, wanted)) as arrived:
        for _ in arrived:
            """The bytes are where they are wanted."""


def receive_all(source: RangeSource, start: int, view: memoryview) -> None:
    """Fills a view with the bytes from ``start``, in parts."""
    parts = split_range(start, start + len(view), source.part_size)
    receive(
        source, (Wanted(part.start, part.stop, view[part.start - start :][: len(part)]) for part in parts)
    )
