"""One object in S3 as a source of ranges: pinned to one version, every length checked.

The first answer is also the stat: size and ETag come from its head, and every later request carries that ETag
as ``If-Match``. A range that did not arrive whole raises; it never turns into a short one.
"""

from __future__ import annotations

import operator
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from s3torch.core import requests
from s3torch.core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    ObjectChangedError,
    PreconditionFailedError,
    RangeNotSatisfiableError,
    TruncatedError,
)
from s3torch.core.ranges import ByteRange
from s3torch.core.transfer._checksums import verify
from s3torch.core.transfer._source import GetObjectStream, RangeSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core._memory import MemoryBudget
    from s3torch.core._runtime import Runtime, RuntimeHandle
    from s3torch.core.models import GetResult, HeadObjectResult
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transfer
    from s3torch.core.transfer._source import ObjectRange
    from s3torch.core.transfer._window import InFlightTarget


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

    def __call__(self, start: int | None = None, end: int | None = None) -> GetObjectStream:
        """Streams the bytes from ``start`` to ``end`` (exclusive), a chunk per part."""
        return GetObjectStream(self, start or 0, end)

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
        if self._etag is not None and head.etag and head.etag != self._etag:
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
            target.took(ended.result(0).length, time.monotonic() - began)

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
