"""Sources of ranges: what readers, streams and checkpoints read from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core._memory import MemoryBudget
    from s3torch.core.transfer._window import InFlightTarget


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
