"""What an upload consists of: buffers, parts in flight, and how both end when it fails."""

from __future__ import annotations

import hashlib
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from s3torch.core.errors import (
    ConflictError,
    NotFoundError,
    PreconditionFailedError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    TransferCancelledError,
    TruncatedError,
)
from s3torch.core.models import CompletedPart, PutResult
from s3torch.core.requests._request import FIRST_ERROR_STATUS, quoted_etag, same_etag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from s3torch.core._memory import BufferPool
    from s3torch.core.models import HeadObjectResult, MultipartUpload, PutOptions
    from s3torch.core.seam import Transfer
    from s3torch.core.transfer._window import Admission

_GRACE_SECONDS = 1.0
_CANCEL_SECONDS = 2.0
# How long S3 may go on with a part whose connection has ended.
_PAUSES = (0.2, 0.8)
_MD5_LENGTH = 32


class PartBuffer:
    """The bytes of one part: a copy in memory of the pool, or a whole part of memory that does not change."""

    def __init__(self, memory: memoryview, admission: Admission, pool: BufferPool | None) -> None:
        self._memory = memory
        self._admission = admission
        self._pool = pool
        self._filled = 0

    @property
    def body(self) -> memoryview:
        return self._memory[: self._filled]

    @property
    def is_full(self) -> bool:
        return self._filled == len(self._memory)

    def append(self, data: memoryview) -> int:
        count = min(len(data), len(self._memory) - self._filled)
        if self._pool is not None:
            self._memory[self._filled : self._filled + count] = data[:count]
        self._filled += count
        return count

    def give_back(self, *, reusable: bool = True) -> None:
        """Lets go of the memory, which goes to the pool if nobody else can still be reading it."""
        if reusable and self._pool is not None:
            self._pool.give(self._memory)
        self._memory = memoryview(b"")
        self._admission.release()


class QueuedPart(Future[CompletedPart]):
    """The transfer of a part, which waits for another transfer first."""

    def __init__(
        self,
        created: Transfer[MultipartUpload],
        start: Callable[[MultipartUpload], Transfer[CompletedPart]],
    ) -> None:
        super().__init__()
        self._start: Callable[[MultipartUpload], Transfer[CompletedPart]] | None = start
        self._sent: Transfer[CompletedPart] | None = None
        self._cancelled = False
        self._lock = threading.Lock()
        created.add_done_callback(self._begin)

    @property
    def was_sent(self) -> bool:
        """Whether the transport was given the part."""
        with self._lock:
            return self._sent is not None

    def cancel(self) -> bool:
        """Stops the part; one that was not sent yet never is."""
        with self._lock:
            if self.done():
                return False
            self._cancelled = True
            sent = self._sent
        if sent is not None:
            sent.cancel()
        return True

    def _begin(self, created: Transfer[MultipartUpload]) -> None:
        try:
            upload = created.result(0)
            with self._lock:
                if self._cancelled or self._start is None:
                    raise TransferCancelledError(  # noqa: TRY301
                        "the transfer was cancelled",
                        operation="UploadPart",
                        bucket=upload.bucket,
                        key=upload.key,
                    )
                self._sent = sent = self._start(upload)
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self._start = None
            self.set_exception(exc)
        else:
            # The function holds the part's bytes.
            self._start = None
            sent.add_done_callback(self._finish)

    def _finish(self, sent: Transfer[CompletedPart]) -> None:
        try:
            part = sent.result(0)
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self.set_exception(exc)
        else:
            self.set_result(part)


def drain(parts: Sequence[QueuedPart]) -> bool:
    """Lets parts end, or cancels them, before their upload is aborted.

    A part that S3 is still taking while it aborts the upload may survive, and be paid for, unseen. S3 advises
    to let parts end first, or else to abort again. So parts in flight get a moment to end by themselves,
    which is all they need on a fast network; the others are cancelled.

    Returns:
        Whether all have their answers, so that none can arrive any more.
    """
    for part in parts:
        if not part.was_sent:
            part.cancel()
    sent = [part for part in parts if part.was_sent]
    wait(sent, _GRACE_SECONDS)
    for part in sent:
        part.cancel()
    wait(sent, _CANCEL_SECONDS)
    return all(_is_answered(part) for part in sent)


def abort_for_good(abort: Callable[[], object], *, drained: bool) -> None:
    """Aborts an upload, and again where a part may have come in between."""
    abort()
    for pause in () if drained else _PAUSES:
        time.sleep(pause)
        abort()


def _is_answered(part: QueuedPart) -> bool:
    if not part.done():
        return False
    error = part.exception()
    return error is None or (isinstance(error, S3Error) and error.status is not None)


def resolve_ambiguous_commit(
    error: S3Error,
    head: Callable[[], HeadObjectResult],
    *,
    options: PutOptions,
    checksum: tuple[str, str] | None,
    etag: Callable[[], str | None],
) -> PutResult:
    """Returns what was stored, if only the answer that says so was lost or is none; else raises the error.

    A request that makes an object appear may succeed while its answer is lost with the connection. The next
    attempt then meets the object of the first: the condition of a create-only upload does not hold any more,
    and the multipart upload is gone. Neither is a failure if the object that is there is the one that was
    sent: it has the same checksum, or the same ETag. The same is asked where the last attempt had no answer,
    or one that nobody can judge. An upload of another writer with the very same bytes, between two attempts
    of this one, cannot be told from it; who uses create-only uploads as locks has to write something that is
    only theirs.

    Raises:
        ConflictError: A conditional multipart upload is gone, as S3 lets it go after a conflict.
        S3Error: The error.
    """
    is_gone = isinstance(error, NotFoundError) and error.code == "NoSuchUpload"
    is_refused = is_gone or isinstance(error, PreconditionFailedError)
    if not (_is_unanswered(error) or (is_refused and (error.attempts or 1) > 1)):
        raise error
    try:
        found = head()
    except NotFoundError:
        found = None
    except S3Error as exc:
        error.add_note(f"Could not check whether an attempt was stored: {exc}")
        raise error from exc
    if found is not None and _is_same(found, checksum, etag):
        return PutResult(found.etag, found.version_id)
    if is_gone and (options.if_none_match or options.if_match):
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html: after a 409 the
        # upload has to be made again, with all of its parts.
        raise ConflictError(
            "another request changed the object or removed the upload; nothing was stored, write it again",
            operation=error.operation,
            bucket=error.bucket,
            key=error.key,
            code="ConditionalRequestConflict",
        ) from error
    raise error


def _is_same(
    found: HeadObjectResult, checksum: tuple[str, str] | None, etag: Callable[[], str | None]
) -> bool:
    algorithm, sent = checksum or ("", "")
    if algorithm in found.checksums:
        return found.checksums[algorithm] == sent
    known = etag()
    return known is not None and same_etag(found.etag, known)


def _is_unanswered(error: S3Error) -> bool:
    """Whether nobody knows what the last attempt has done."""
    if isinstance(error, ServerError):
        return error.status is not None and error.status < FIRST_ERROR_STATUS
    return isinstance(error, S3ConnectionError | S3TimeoutError | TruncatedError)


def etag_of_body(body: memoryview) -> str:
    """Computes the ETag of an object that was stored in one request, unless it is encrypted with KMS."""
    return f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'


def etag_of_parts(parts: Sequence[CompletedPart]) -> str | None:
    """Computes the ETag of an object of these parts; ``None`` where their ETags are no MD5 sums."""
    told = [quoted_etag(part.etag)[1:-1] for part in parts]
    try:
        digests = [bytes.fromhex(text) for text in told if len(text) == _MD5_LENGTH]
    except ValueError:
        return None
    if len(digests) < len(told):
        return None
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return f'"{whole}-{len(told)}"'
