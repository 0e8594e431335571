"""Sources of ranges, which readers, streams and checkpoints read from, and ranges one after the other."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from s3torch.core import _process
from s3torch.core._process import reap, reaper
from s3torch.core.transfer._window import IN_FLIGHT, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core._memory import MemoryBudget
    from s3torch.core.transfer._window import Admission, InFlightTarget


class PendingRange(Protocol):
    """A range in flight."""

    def wait(self) -> memoryview:
        """Waits for the bytes and returns them; at the end of the object fewer than were asked for."""
        ...

    def cancel(self) -> None:
        """Stops the transfer; the buffer is not touched any more."""
        ...


class ObjectRange(PendingRange, Protocol):
    """A range of an object in S3 in flight."""

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        """Calls ``fn`` when ``wait`` will not wait any more, at once if that is so already.

        It is called on a thread of the transport and must not block.
        """
        ...


class RangeSource(Protocol):
    """One object as a source of ranges. Subclass it for the defaults of ``prepare`` and ``in_flight_target``.

    Attributes:
        bucket: The bucket.
        key: The key.
        part_size: The most bytes that one request asks for.
    """

    bucket: str
    key: str
    part_size: int

    @property
    def known_size(self) -> int | None:
        """The size of the object in bytes, if it is known already."""
        ...

    def head(self) -> Any:
        """Returns size and ETag, with a request only if nothing is known yet."""
        ...

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        """Starts one request for the bytes from ``start`` to ``stop``, at most a part.

        Args:
            start: Where the range begins.
            stop: Where it ends; the object may end before.
            into: Takes the bytes, which then come without a copy; it is not touched any more once the range
                has arrived or was cancelled.
        """
        ...

    def prepare(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        """Returns the same as ``start``, for a caller that waits at once.

        A source may send the request only then, on the thread that waits, which costs less.
        """
        return self.start(start, stop, into)

    @property
    def in_flight_target(self) -> InFlightTarget | None:
        """How much to have in flight where that costs memory; ``None`` where it costs none."""
        return None

    def budget(self) -> MemoryBudget | None:
        """The budget for read-ahead; ``None`` where there is nothing to gain from it."""
        ...

    def verify_whole(self) -> None:
        """Verifies the object when all of its bytes have come, counted from now on.

        A source that can then raises ``ChecksumMismatchError`` in place of the last ones.
        """
        return


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
