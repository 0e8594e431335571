"""Sources of ranges: what readers, streams and checkpoints read from, in order with look-ahead.

An object in S3 as a source is pinned to one version, with every length checked. The first answer is also the
stat: size and ETag come from its head, and every later request carries that ETag as ``If-Match``. A range
that did not arrive whole raises; it never turns into a short one.
"""

from __future__ import annotations

import operator
import time
from collections import deque
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from s3torch.core import _process, requests
from s3torch.core._process import reap, reaper
from s3torch.core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    ObjectChangedError,
    PreconditionFailedError,
    RangeNotSatisfiableError,
    TruncatedError,
)
from s3torch.core.ranges import ByteRange
from s3torch.core.requests._request import same_etag
from s3torch.core.transfer._checksums import verify
from s3torch.core.transfer._window import IN_FLIGHT, Admission, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core._memory import MemoryBudget
    from s3torch.core._runtime import Runtime, RuntimeHandle
    from s3torch.core.models import GetResult, HeadObjectResult
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transfer
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
    with closing(InOrder(source, wanted)) as arrived:
        for _ in arrived:
            """The bytes are where they are wanted."""


class ObjectSource(RangeSource):
    """One version of one object in S3."""

    def __init__(
        self,
        handle: RuntimeHandle,
        bucket: str,
        key: str,
        *,
        object_info: Any = None,
        version_id: str | None = None,
    ) -> None:
        check_info(object_info)
        self.bucket = bucket
        self.key = key
        self.part_size = handle.config.part_size
        self._handle = handle
        self._version_id = version_id
        self._info = object_info
        self._size: int | None = None if object_info is None else object_info.size
        self._etag: str | None = getattr(object_info, "etag", None) or None

    @property
    def known_size(self) -> int | None:
        return self._size

    def head(self) -> Any:
        """Returns what is known of the object; one HEAD request if that is nothing."""
        if self._info is None:
            head = self._handle.call(requests.head_object(self.bucket, self.key, version_id=self._version_id))
            self._learn(head)
            self._info = head
        return self._info

    def budget(self) -> MemoryBudget:
        return self._handle.get().memory.budget

    @property
    def in_flight_target(self) -> InFlightTarget | None:
        return self._handle.get().in_flight_target

    def start(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        pending = self.prepare(start, stop, into)
        if isinstance(pending, _Pending):
            pending.send()
        return pending

    def prepare(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        if self._size is not None and start >= min(stop, self._size):
            return _NoBytes()
        whole = start == 0 and self._size is not None and stop >= self._size
        if into is not None and self._size is not None:
            into = into[: self._size - start]
        request = requests.get_object(
            self.bucket,
            self.key,
            # The answer to a request without a range has the checksum of the object.
            byte_range=None if whole else ByteRange(start, stop),
            if_match=self._etag,
            version_id=self._version_id,
        )
        return _Pending(self, self._handle.get(), request, into, start, stop)

    def check(self, result: GetResult, start: int, stop: int, data: memoryview) -> None:
        """Checks an answer against all that is known of the object, and learns from it."""
        self._learn(result.head)
        size = self._size or 0
        expected = max(0, min(stop, size) - start)
        if result.length != expected:
            raise TruncatedError(
                f"got {result.length} of {expected} bytes from {start}",
                operation="GetObject",
                bucket=self.bucket,
                key=self.key,
            )
        if result.length == size:
            verify(data, result.head.checksums, bucket=self.bucket, key=self.key)

    def changed(self, why: str) -> ObjectChangedError:
        """Returns the error for an object that is not the one that was begun."""
        return ObjectChangedError(
            f"the object was replaced while it was being read ({why}); open it again",
            operation="GetObject",
            bucket=self.bucket,
            key=self.key,
            code="PreconditionFailed",
            status=412,
        )

    def _learn(self, head: HeadObjectResult) -> None:
        if self._etag is not None and head.etag and not same_etag(head.etag, self._etag):
            raise self.changed(f"ETag {head.etag} instead of {self._etag}")
        if self._size is not None and head.size != self._size:
            raise self.changed(f"{head.size} bytes instead of {self._size}")
        self._size = head.size
        self._etag = self._etag or head.etag or None
        # The refusal of a range of an empty object tells nothing but the size.
        if self._info is None and head.etag:
            self._info = head


class _Pending:
    """A range that is asked for by ``send``, or else when somebody waits for it."""

    def __init__(
        self,
        source: ObjectSource,
        runtime: Runtime,
        request: Request[GetResult],
        into: memoryview | None,
        start: int,
        stop: int,
    ) -> None:
        self._source = source
        self._runtime = runtime
        self._request = request
        self._into = into
        self._start = start
        self._stop = stop
        self._transfer: Transfer[GetResult] | None = None

    def send(self) -> Transfer[GetResult]:
        self._transfer = transfer = self._runtime.transport.send(self._request, into=self._into)
        target = self._runtime.in_flight_target
        if target is not None:
            _record_duration(transfer, target)
        return transfer

    def wait(self) -> memoryview:
        try:
            return self._receive()
        except ChecksumMismatchError:
            # A bit that flipped on the way is right the next time; one that flipped in the store is not.
            self.send()
            return self._receive()

    def _receive(self) -> memoryview:
        try:
            result = self._result()
        except PreconditionFailedError as exc:
            raise self._source.changed("If-Match failed") from exc
        except RangeNotSatisfiableError as exc:
            if self._source.known_size is None:
                raise
            raise self._source.changed("it became shorter") from exc
        into = self._into
        data = memoryview(result.data or b"") if into is None else into[: result.length]
        self._source.check(result, self._start, self._stop, data)
        return data

    def _result(self) -> GetResult:
        sends_now = self._runtime.sends_now
        if self._transfer is None and sends_now is not None:
            return sends_now.send_now(self._request, into=self._into)
        return (self._transfer or self.send()).result()

    def cancel(self) -> None:
        if self._transfer is not None:
            self._transfer.cancel()

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        (self._transfer or self.send()).add_done_callback(lambda _: fn())


def _record_duration(transfer: Transfer[GetResult], target: InFlightTarget) -> None:
    began = time.monotonic()

    def record(ended: Transfer[GetResult]) -> None:
        # Asked so, an error is not raised here: its traceback would hold the buffers of these frames.
        if isinstance(ended, Future) and ended.exception(0) is None:
            size = ended.result(0).length
            if size >= target.part_size:
                target.took(size, time.monotonic() - began)

    transfer.add_done_callback(record)


class _NoBytes:
    """A range that is known to have no bytes."""

    def wait(self) -> memoryview:
        return memoryview(b"")

    def cancel(self) -> None:
        """Does nothing."""

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        fn()


def check_info(object_info: Any) -> None:
    """Refuses what tells no size of an object; a wrong one would be taken for its end."""
    if object_info is None:
        return
    try:
        size = object_info.size
        is_size = size is None or operator.index(size) >= 0
    except (AttributeError, TypeError):
        is_size = False
    if not is_size:
        raise ConfigurationError(
            f"object_info must have the size of the object, as listings and head_object tell it, "
            f"got {object_info!r}"
        )
