"""One upload: a single PUT for what fits into a part, else a multipart upload with parts in flight.

Nothing is sent before there is a reason, nothing appears before ``complete()``, and what was begun and not
completed is aborted.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from s3torch.core import _process, requests
from s3torch.core._process import reap, reaper
from s3torch.core.errors import ConfigurationError, S3Error, TransferCancelledError
from s3torch.core.ranges import (
    MAX_PARTS,
    MIB,
    MIN_PART_SIZE,
    planned_part_size,
    split_range,
    upload_part_size,
)
from s3torch.core.transfer._checksums import (
    PartedChecksum,
    PieceChecksums,
    checksum,
    piece_algorithm,
    usable_algorithm,
)
from s3torch.core.transfer._upload_parts import (
    PartBuffer,
    QueuedPart,
    abort_for_good,
    drain,
    etag_of_body,
    etag_of_parts,
    resolve_ambiguous_commit,
)
from s3torch.core.transfer._window import UPLOAD_IN_FLIGHT, Window

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core._client import Runtime, RuntimeHandle
    from s3torch.core.models import CompletedPart, MultipartUpload, PutOptions, PutResult
    from s3torch.core.ranges import ByteRange
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transfer

    PartRequest = Callable[..., Request[CompletedPart]]

_log = logging.getLogger(__name__)

_ABORT_SECONDS = 30.0
# The most that one request copies.
COPIED_PART = 256 * MIB


class Upload:
    """Sends the bytes of a new object to S3.

    ``write`` copies into part buffers of its own and returns; full parts are sent meanwhile. A part that lies
    whole within a ``bytes`` object, which nobody can change, or within lent bytes, is sent from there without
    a copy. How many are in flight is bounded by the memory budget of the process, beyond one part that every
    upload may have. One thread writes; ``complete`` and ``abort`` may come from any.
    """

    def __init__(
        self,
        handle: RuntimeHandle,
        bucket: str,
        key: str,
        options: PutOptions,
        *,
        expected_size: int = 0,
    ) -> None:
        if not bucket:
            raise ConfigurationError("Bucket should be specified")
        self.bucket = bucket
        self.key = key
        self._pid = _process.here
        reaper.get()
        self._handle = handle
        self._options = options
        self._expected_size = expected_size
        self._planned = 0
        # Whoever asked for an algorithm that cannot be computed here hears of it at once.
        usable_algorithm(handle.config.upload_checksum)
        # That of the whole object, once it is complete; with SHA256 that of the parts' checksums.
        self.checksum: tuple[str, str] | None = None
        self._pieces: PieceChecksums | None = None
        self._written = self._summed = self._copy_at = 0
        self._is_known = True
        self._buffer: PartBuffer | None = None
        self._number = 0
        self._window = Window()
        self._multipart: Transfer[MultipartUpload] | None = None
        self._in_flight: deque[tuple[PartBuffer, QueuedPart]] = deque()
        self._parts: list[CompletedPart] = []
        self._result: PutResult | None = None
        self._error: BaseException | None = None
        # Reentrant, because a signal handler may abort in the midst of a write.
        self._lock = threading.RLock()

    def write(self, data: memoryview, *, lent: bool = False) -> int:
        """Takes bytes; returns how many, all of them.

        Args:
            data: The bytes.
            lent: Nobody changes them before the upload has ended.

        Raises:
            S3Error: A part could not be sent. The upload is aborted, and every later call raises this, too.
        """
        self._check_process()
        with self._lock:
            self._check()
            if self._result is not None:
                raise ValueError("I/O operation on closed file.")
            lent = lent or type(data.obj) is bytes
            try:
                rest = data
                while rest:
                    rest = rest[self._append(rest, lent=lent) :]
                self._written += len(data)
            except BaseException as exc:
                self._fail(exc)
                raise
            return len(data)

    def copy(self, make: PartRequest, byte_range: ByteRange, *, crc: int | None = None) -> None:
        """Takes bytes of another object, which S3 copies; they are parts of their own.

        Args:
            make: Makes the request for a part of them, from its ``byte_range``.
            byte_range: The bytes.
            crc: Their CRC in the algorithm of the upload; without it the checksum of the object is not known.

        Raises:
            S3Error: A part could not be sent. The upload is aborted, and every later call raises this, too.
        """
        self._check_process()
        size = len(byte_range)
        with self._lock:
            self._check()
            try:
                if self._buffer is not None:
                    self._send_part(self._buffer)
                most = max(COPIED_PART, 4 * self._expected_size // MAX_PARTS)
                step = -(-size // -(-size // most))
                for part in split_range(byte_range.start, byte_range.stop, step):
                    self._copy_part(partial(make, byte_range=part))
            except BaseException as exc:
                self._fail(exc)
                raise
            self._written += size
            self._summed += size
            if self._pieces is not None:
                self._pieces.skip(size)
            self._is_known = self._is_known and crc is not None
            if self._parted is not None and crc is not None:
                self._parted.add_known(crc, size)

    def expect_copy(self, size: int) -> None:
        """Tells that a copy follows after so many bytes, before which no part must be too small."""
        self._copy_at = self._written + size

    def begin_piece(self, size: int) -> None:
        """Begins a piece whose checksum is noted, and another one every ``size`` bytes."""
        with self._lock:
            if self._pieces is None:
                self._pieces = PieceChecksums(piece_algorithm(self._algorithm), self._summed)
            self._pieces.begin(self._written, size)

    @property
    def piece_checksums(self) -> tuple[str, list[tuple[int, int, int]]] | None:
        """The algorithm, and begin, end and CRC of each piece, once the object is complete."""
        if self._pieces is None or self._result is None:
            return None
        self._pieces.finish()
        return self._pieces.algorithm, self._pieces.complete

    def complete(self) -> PutResult:
        """Makes the object appear, whole, and returns its ETag; may be called again."""
        self._check_process()
        with self._lock:
            if self._result is None:
                self._check()
                try:
                    self._result = self._publish()
                except BaseException as exc:
                    self._fail(exc)
                    raise
                self._release()
            return self._result

    def abort(self) -> None:
        """Makes sure that the object does not appear; may be called again."""
        self._check_process()
        with self._lock:
            if self._result is None and self._error is None:
                self._fail(TransferCancelledError("the upload was aborted", **self._about))

    @property
    def is_complete(self) -> bool:
        return self._result is not None

    @property
    def is_open(self) -> bool:
        return self._result is None and self._error is None

    @property
    def _about(self) -> dict[str, Any]:
        return {"operation": "PutObject", "bucket": self.bucket, "key": self.key}

    @property
    def _runtime(self) -> Runtime:
        return self._handle.get()

    @cached_property
    def _algorithm(self) -> str | None:
        return usable_algorithm(self._runtime.config.upload_checksum)

    @cached_property
    def _parted(self) -> PartedChecksum | None:
        return PartedChecksum(self._algorithm) if self._algorithm else None

    def _part_size(self, size: int) -> int:
        """Returns how large the next part is, of which so many bytes are here."""
        config = self._runtime.config
        if not self._planned:
            self._planned = planned_part_size(max(size, self._expected_size), config.part_size)
        part = self._planned
        if config.growing_parts:
            in_plan = -(-self._expected_size // part)
            part = upload_part_size(max(self._number - in_plan, 0) + 1, part)
        until_copy = self._copy_at - self._summed
        return until_copy if 0 < until_copy < part + MIN_PART_SIZE else part

    def _check_process(self) -> None:
        # Before the lock is taken, which a thread of the parent may have held when it forked.
        if self.is_open and self._pid != _process.here:
            raise _process.forked(f"the writer of s3://{self.bucket}/{self.key}", self._pid)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _append(self, data: memoryview, *, lent: bool) -> int:
        if self._buffer is not None and self._buffer.is_full:
            self._send_part(self._buffer)
        if self._buffer is None:
            self._buffer = self._take_buffer(data, lent=lent)
        return self._buffer.append(data)

    def _take_buffer(self, data: memoryview, *, lent: bool) -> PartBuffer:
        size = self._part_size(len(data))
        memory = self._runtime.memory
        while self._in_flight and self._in_flight[0][1].done():
            self._finish_part()
        # Beyond what is in flight one part is being filled.
        self._window.limit = max(UPLOAD_IN_FLIGHT, size) + size
        while (admission := self._window.admit(size, memory.budget)) is None:
            self._finish_part()
        if lent and len(data) >= size:
            return PartBuffer(data[:size], admission, None)
        return PartBuffer(memory.pool.take(size), admission, memory.pool)

    def _send_part(self, buffer: PartBuffer) -> None:
        body = buffer.body
        crc = self._sum_pieces(body)
        part_checksum = self._parted.add(body, crc) if self._parted is not None else None
        self._queue(buffer, lambda upload, number: self._send_body(upload, number, body, part_checksum))
        self._buffer = None

    def _send_body(
        self, upload: MultipartUpload, number: int, body: memoryview, checksum: tuple[str, str] | None
    ) -> Transfer[CompletedPart]:
        request = requests.upload_part(upload, number, checksum=checksum)
        return self._runtime.transport.send(request, body=body)

    def _copy_part(self, make: PartRequest) -> None:
        transport, memory = self._runtime.transport, self._runtime.memory
        while (admission := self._window.admit(0, memory.budget)) is None:
            self._finish_part()
        buffer = PartBuffer(memoryview(b""), admission, None)
        self._queue(buffer, lambda upload, number: transport.send(make(upload, number)))

    def _queue(
        self, buffer: PartBuffer, send: Callable[[MultipartUpload, int], Transfer[CompletedPart]]
    ) -> None:
        """Sends a part as soon as the upload has begun."""
        if self._number == MAX_PARTS:
            raise ConfigurationError(
                f"an upload has at most {MAX_PARTS} parts; use a larger part_size", **self._about
            )
        transport = self._runtime.transport
        if self._multipart is None:
            self._multipart = transport.send(
                requests.create_multipart_upload(
                    self.bucket, self.key, options=self._options, checksum_algorithm=self._algorithm
                )
            )
        self._number += 1
        number = self._number
        transfer = QueuedPart(self._multipart, lambda upload: send(upload, number))
        self._in_flight.append((buffer, transfer))

    def _sum_pieces(self, body: memoryview) -> int | None:
        """Notes what pieces have of the bytes that follow; returns their CRC if that is what S3 is told."""
        self._summed += len(body)
        if self._pieces is None:
            return None
        crc = self._pieces.add(body)
        return crc if self._pieces.algorithm == self._algorithm else None

    def _finish_part(self) -> None:
        buffer, transfer = self._in_flight[0]
        self._parts.append(transfer.result())
        self._in_flight.popleft()
        buffer.give_back()

    def _publish(self) -> PutResult:
        if self._multipart is None:
            body = self._buffer.body if self._buffer is not None else memoryview(b"")
            self.checksum = checksum(self._algorithm, body, self._sum_pieces(body))
            put = requests.put_object(self.bucket, self.key, options=self._options, checksum=self.checksum)
            return self._appear(put, body, lambda: etag_of_body(body))
        if self._buffer is not None:
            self._send_part(self._buffer)
        while self._in_flight:
            self._finish_part()
        self.checksum = self._parted.value if self._parted is not None and self._is_known else None
        completion = requests.complete_multipart_upload(
            self._multipart.result(), self._parts, options=self._options, checksum=self.checksum
        )
        return self._appear(completion, None, lambda: etag_of_parts(self._parts))

    def _appear(
        self, request: Request[PutResult], body: memoryview | None, etag: Callable[[], str | None]
    ) -> PutResult:
        try:
            return self._runtime.send_and_wait(request, body=body)
        except S3Error as error:
            return resolve_ambiguous_commit(
                error,
                lambda: self._handle.call(requests.head_object(self.bucket, self.key)),
                options=self._options,
                checksum=self.checksum,
                etag=etag,
            )

    def _fail(self, error: BaseException) -> None:
        self._error = error
        try:
            drained = drain([part for _, part in self._in_flight])
        finally:
            self._release()
        if self._multipart is not None:
            self._abort_multipart(self._multipart, drained=drained)

    def _abort_multipart(self, multipart: Transfer[MultipartUpload], *, drained: bool) -> None:
        """Removes the parts that S3 has; an error of this must not hide the one that led here."""
        try:
            upload = multipart.result(_ABORT_SECONDS)
            transport = self._runtime.transport
            abort_for_good(
                lambda: transport.send(requests.abort_multipart_upload(upload)).result(_ABORT_SECONDS),
                drained=drained,
            )
        except (S3Error, TimeoutError, ValueError) as exc:
            if not multipart.done():
                # An upload that begins so late is aborted then.
                abort = partial(self._abort_multipart, multipart, drained=True)
                multipart.add_done_callback(lambda _: reap(abort))
            note = (
                f"The multipart upload of s3://{self.bucket}/{self.key} could not be aborted "
                f"({exc}); its parts stay until a lifecycle rule or a clean-up removes them."
            )
            _log.warning(note)
            if self._error is not None:
                self._error.add_note(note)

    def _release(self) -> None:
        for buffer, transfer in self._in_flight:
            # The transport may still be reading the buffer of a transfer that was cancelled.
            buffer.give_back(reusable=transfer.done())
        self._in_flight.clear()
        if self._buffer is not None:
            self._buffer.give_back()
            self._buffer = None
