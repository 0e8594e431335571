"""An object in S3 as a source of ranges.

It is pinned to one version, with every length checked. The first answer is also the
stat: size and ETag come from its head, and every later request carries that ETag as ``If-Match``. A range
that did not arrive whole raises; it never turns into a short one.
"""

from __future__ import annotations

import operator
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core import requests
from s3torch.core.errors import (
    ChecksumMismatchError,
    ConfigurationError,
    ObjectChangedError,
    PreconditionFailedError,
    RangeNotSatisfiableError,
    S3Error,
    TruncatedError,
)
from s3torch.core.ranges import ByteRange
from s3torch.core.requests._objects import PARTIAL
from s3torch.core.requests._request import same_etag
from s3torch.core.transfer._checksums import verify
from s3torch.core.transfer._ranges import ObjectRange, RangeSource
from s3torch.core.transfer._verification import Verification

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core._client import Runtime, RuntimeHandle
    from s3torch.core._memory import MemoryBudget
    from s3torch.core.models import GetResult, HeadObjectResult
    from s3torch.core.requests import Answer, Request
    from s3torch.core.seam import Transfer
    from s3torch.core.transfer._part_sums import Sums
    from s3torch.core.transfer._window import InFlightTarget

T = TypeVar("T")


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
        self._is_whole = False
        self._verification: Verification | None = None

    @property
    def known_size(self) -> int | None:
        return self._size

    def head(self) -> Any:
        """Returns what is known of the object; one HEAD request if that is nothing."""
        if self._info is None:
            head = self._handle.call(self._head_request())
            self._learn(head)
            self._info = head
        return self._info

    def budget(self) -> MemoryBudget:
        return self._handle.get().memory.budget

    @property
    def in_flight_target(self) -> InFlightTarget | None:
        return self._handle.get().in_flight_target

    def ask_head(self) -> Transfer[HeadObjectResult]:
        """Starts a HEAD request."""
        return self._handle.get().transport.send(self._head_request())

    def _head_request(self) -> Request[HeadObjectResult]:
        return requests.head_object(self.bucket, self.key, version_id=self._version_id)

    def ask_first_part(self) -> int | None:
        """Asks for the size of the first part of which the object was made; ``None`` if nobody tells."""
        return self._ask(requests.head_first_part(self.bucket, self.key, version_id=self._version_id))

    def ask_parts(self) -> list[int] | None:
        """Asks for the sizes of all parts of which the object was made; ``None`` if nobody tells."""
        return self._ask(requests.list_part_sizes(self.bucket, self.key, version_id=self._version_id))

    def _ask(self, request: Request[T]) -> T | None:
        try:
            return self._handle.call(request)
        except S3Error:
            return None

    def verify_whole(self) -> None:
        self._is_whole = True
        if self._verification is not None:
            self._verification.restart()

    @property
    def _verifier(self) -> Verification:
        # Most objects are read with one answer and need none.
        if self._verification is None:
            self._verification = Verification(self)
        return self._verification

    def is_same(self, head: HeadObjectResult) -> bool:
        """Whether facts are of the version that is being read."""
        return head.size == self._size and (not head.etag or head.etag == self._etag)

    def start(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        pending = self.prepare(start, stop, into)
        if isinstance(pending, _Pending):
            pending.send()
        return pending

    def prepare(self, start: int, stop: int, into: memoryview | None = None) -> ObjectRange:
        if self._size is not None and start >= min(stop, self._size):
            return _NoBytes()
        runtime = self._handle.get()
        verifies = self._is_whole and runtime.config.verifies
        # The answer to a request without a range has the checksum of the object, so an object that may be
        # small is asked for so, too, as far as the transport can end the answer.
        may_be_small = verifies and self._size is None and start == 0 and stop >= self.part_size
        at_most = stop if may_be_small and runtime.ends_early else None
        whole = at_most is not None or (start == 0 and self._size is not None and stop >= self._size)
        if into is not None and self._size is not None:
            into = into[: self._size - start]
        verifier = self._verifier if verifies and not whole else None
        if verifier is not None:
            verifier.wanted(start, stop)
        request = requests.get_object(
            self.bucket,
            self.key,
            byte_range=None if whole else ByteRange(start, stop),
            if_match=self._etag,
            version_id=self._version_id,
            at_most=at_most,
            size=self._size,
        )
        return _Pending(self, runtime, request, into, start, stop, verifier)

    def check(
        self,
        result: GetResult,
        start: int,
        stop: int,
        data: memoryview,
        *,
        tells: bool,
        sums: Sums | None = None,
    ) -> None:
        """Checks an answer against all that is known of the object, and learns from it.

        Args:
            result: What came.
            start: Where the range begins that was asked for.
            stop: Where it ends.
            data: The bytes.
            tells: Whether the answer would tell the checksum of the object if the store kept one.
            sums: What was summed of the bytes already.
        """
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
        checksums = result.head.checksums
        verifies = self._handle.config.verifies
        if (
            result.length == size
            and verifies
            and (verify(data, checksums, bucket=self.bucket, key=self.key) or (tells and not checksums))
        ):
            return
        if self._is_whole and verifies and data:
            if tells or checksums:
                self._verifier.told(checksums)
            self._verifier.arrived(start, data, sums)

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
        verifier: Verification | None,
    ) -> None:
        self._source = source
        self._runtime = runtime
        self._early = _EarlySums(verifier, request, start)
        is_plain = verifier is None and request.at_most is None
        self._request = request if is_plain else request._replace(read=self._early.read)
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
            if self._start or self._stop < (self._source.known_size or 0):
                # The byte may be in another range.
                raise
        # A bit that flipped on the way is right the next time; one that flipped in the store is not.
        self.send()
        try:
            return self._receive()
        except ChecksumMismatchError as exc:
            exc.attempts = 2
            raise

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
        early = self._early
        self._source.check(result, self._start, self._stop, data, tells=early.tells, sums=early.sums)
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


class _EarlySums:
    """Sums a range on the thread that has received it; apart from the range, which would refer to itself.

    Attributes:
        sums: The sums of the last answer.
        tells: Whether it has all bytes, and so tells the checksum if the store keeps one.
    """

    def __init__(self, verifier: Verification | None, request: Request[GetResult], start: int) -> None:
        self._verifier = verifier
        self._judge = request.read
        self._start = start
        self.sums: Sums | None = None
        self.tells = request.byte_range is None

    def read(self, answer: Answer) -> GetResult:
        result = self._judge(answer)
        # Where the store did not tell a length, the transport has asked for a range after all.
        self.tells = answer.status != PARTIAL
        self.sums = None
        if self._verifier is not None and answer.view is not None:
            self.sums = self._verifier.sum_early(self._start, answer.view)
        return result


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
