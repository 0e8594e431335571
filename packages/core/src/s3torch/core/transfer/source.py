"""One object as a source of ranges: pinned to one version, every length checked.

The first answer is also the stat: size and ETag come from its head, and every later request carries that ETag
as ``If-Match``. A range that did not arrive whole raises; it never turns into a short one.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from s3torch.core import requests
from s3torch.core.errors import (
    ChecksumMismatchError,
    ObjectChangedError,
    PreconditionFailedError,
    RangeNotSatisfiableError,
    TruncatedError,
)
from s3torch.core.ranges import MIB, ByteRange
from s3torch.core.transfer.checksums import verify
from s3torch.core.transfer.window import Wanted, in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from s3torch.core._runtime import Runtime as Connection
    from s3torch.core._runtime import RuntimeHandle as Connector
    from s3torch.core.memory import MemoryBudget
    from s3torch.core.models import GetResult, HeadObjectResult
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transfer
    from s3torch.core.transfer._pace import Pace

__all__ = ["GetObjectStream", "ObjectRange", "ObjectSource", "PendingRange", "RangeSource"]

_STREAMED = 32 * MIB


class PendingRange(Protocol):
    """A range on its way."""

    def wait(self) -> memoryview:
        """Waits for the bytes and returns them; at the end of the object fewer than were asked for."""
        ...

    def cancel(self) -> None:
        """Stops the transfer; the buffer is not touched any more."""
        ...


class ObjectRange(PendingRange, Protocol):
    """A range of an object in S3 on its way."""

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        """Calls ``fn`` when ``wait`` will not wait any more, at once if that is so already.

        It is called on a thread of the transport and must not block.
        """
        ...


@runtime_checkable
class RangeSource(Protocol):
    """What readers read from."""

    bucket: str
    key: str
    part_size: int

    @property
    def known_size(self) -> int | None:
        """The size of the object in bytes, if it is known already."""
        ...

    def head(self) -> Any:
        """Tells size and ETag, with a request only if nothing is known yet."""
        ...

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        """Starts one request for the bytes from ``start`` to ``stop``, at most a part."""
        ...

    def budget(self) -> MemoryBudget | None:
        """The budget for read-ahead; ``None`` where there is nothing to gain from it."""
        ...


class ObjectSource:
    """One version of one object in S3.

    Args:
        connector: The client's.
        bucket: The bucket.
        key: The key.
        object_info: What a listing or a HEAD told; anything with ``size``, and with ``etag`` if it is known.
        version_id: The version to read; ``None`` for the latest.
    """

    def __init__(
        self,
        connector: Connector,
        bucket: str,
        key: str,
        *,
        object_info: Any = None,
        version_id: str | None = None,
    ) -> None:
        self.bucket = bucket
        self.key = key
        self.part_size = connector.config.part_size
        self._connector = connector
        self._version_id = version_id
        self._info = object_info
        self._size: int | None = None if object_info is None else object_info.size
        self._etag: str | None = getattr(object_info, "etag", None) or None

    def __call__(self, start: int | None = None, end: int | None = None) -> GetObjectStream:
        """Streams the bytes from ``start`` to ``end`` (exclusive), a chunk per part."""
        return GetObjectStream(self, start or 0, end)

    @property
    def known_size(self) -> int | None:
        """The size of the object in bytes, if it is known already."""
        return self._size

    def head(self) -> Any:
        """Tells what is known of the object; one HEAD request if that is nothing."""
        if self._info is None:
            head = self._connector.call(
                requests.head_object(self.bucket, self.key, version_id=self._version_id)
            )
            self._learn(head)
            self._info = head
        return self._info

    def budget(self) -> MemoryBudget:
        """The budget of this process."""
        return self._connector.get().memory.budget

    @property
    def pace(self) -> Pace | None:
        """How much to have on its way, where that costs memory."""
        return self._connector.get().pace

    def start(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        """Starts one GetObject request for the bytes from ``start`` to ``stop``, at most a part.

        Args:
            start: Where the range begins.
            stop: Where it ends; the object may end before.
            into: Takes the bytes, which then come without a copy; it is not touched any more once the range
                has arrived or was cancelled.
        """
        pending = self.prepare(start, stop, into)
        if isinstance(pending, _Pending):
            pending.send()
        return pending

    def prepare(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        """Returns the same as ``start``, but sends nothing before somebody waits, which then costs less."""
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
        return _Pending(self, self._connector.get(), request, into, start, stop)

    def settle(self, result: GetResult, start: int, stop: int, data: memoryview) -> None:
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
        """Makes the error for an object that is not the one that was begun."""
        return ObjectChangedError(
            f"the object was replaced while it was being read ({why}); open it again",
            operation="GetObject",
            bucket=self.bucket,
            key=self.key,
            code="PreconditionFailed",
            status=412,
        )

    def _learn(self, head: HeadObjectResult) -> None:
        if self._etag is not None and head.etag and head.etag != self._etag:
            raise self.changed(f"ETag {head.etag} instead of {self._etag}")
        if self._size is not None and head.size != self._size:
            raise self.changed(f"{head.size} bytes instead of {self._size}")
        self._size = head.size
        self._etag = self._etag or head.etag or None
        # The refusal of a range of an empty object tells nothing but the size.
        if self._info is None and head.etag:
            self._info = head


class GetObjectStream:
    """The bytes of an object, one ``bytes`` per part, with the next parts on their way.

    After an error the next one is asked for from where the bytes ended.
    """

    def __init__(self, source: ObjectSource, start: int, stop: int | None) -> None:
        self.bucket = source.bucket
        self.key = source.key
        self._source = source
        self._position = start
        self._stop = stop
        self._closed = False
        self._parts: Generator[memoryview] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._closed:
            raise StopIteration
        if self._parts is None:
            self._parts = in_order(self._source, self._wanted(), limit=_STREAMED)
        try:
            data = next(self._parts)
        except StopIteration:
            self.close()
            raise
        except BaseException:
            self._parts = None
            raise
        if not data:
            self.close()
            raise StopIteration
        self._position += len(data)
        return data.obj if isinstance(data.obj, bytes) else bytes(data)

    def tell(self) -> int:
        """Returns the offset in the object of the next byte."""
        return self._position

    def close(self) -> None:
        """Cancels what is on its way and ends the stream."""
        self._closed = True
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    def _wanted(self) -> Iterator[Wanted]:
        start, size = self._position, self._source.part_size
        while True:
            ends = [end for end in (self._stop, self._source.known_size) if end is not None]
            stop = min([start + size, *ends])
            if stop <= start:
                return
            yield Wanted(start, stop)
            start = stop


class _Pending:
    """A range that is asked for by ``send``, or else when somebody waits for it."""

    def __init__(
        self,
        source: ObjectSource,
        connection: Connection,
        request: Request[GetResult],
        into: memoryview | None,
        start: int,
        stop: int,
    ) -> None:
        self._source = source
        self._connection = connection
        self._request = request
        self._into = into
        self._start = start
        self._stop = stop
        self._transfer: Transfer[GetResult] | None = None

    def send(self) -> Transfer[GetResult]:
        self._transfer = transfer = self._connection.transport.send(self._request, into=self._into)
        pace = self._connection.pace
        if pace is not None:
            _tell_duration(transfer, pace)
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
        self._source.settle(result, self._start, self._stop, data)
        return data

    def _result(self) -> GetResult:
        sends_now = self._connection.sends_now
        if self._transfer is None and sends_now is not None:
            return sends_now.send_now(self._request, into=self._into)
        return (self._transfer or self.send()).result()

    def cancel(self) -> None:
        if self._transfer is not None:
            self._transfer.cancel()

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        (self._transfer or self.send()).add_done_callback(lambda _: fn())


def _tell_duration(transfer: Transfer[GetResult], pace: Pace) -> None:
    began = time.monotonic()

    def tell(ended: Transfer[GetResult]) -> None:
        # Asked so, an error is not raised here: its traceback would hold the buffers of these frames.
        if isinstance(ended, Future) and ended.exception(0) is None:
            pace.took(ended.result(0).length, time.monotonic() - began)

    transfer.add_done_callback(tell)


class _NoBytes:
    """A range that is known to have no bytes."""

    def wait(self) -> memoryview:
        return memoryview(b"")

    def cancel(self) -> None:
        """Does nothing."""

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        fn()
