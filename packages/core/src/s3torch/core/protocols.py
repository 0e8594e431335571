"""The seam between s3torch and what moves the bytes: what a transport owes.

``S3Client`` is the comfort that users get; ``Transport`` is the minimum that a backend owes. A backend
may be able to do more and says so by implementing the optional protocols, ``SupportsControl`` here and those
of ``s3torch.core.abilities``.

Rules for every method of a transport:

* **Start and return.** A method of ``Transport`` starts the work and returns a ``Transfer`` at once. It
  waits neither for memory nor for the network, save where credentials have expired and are refreshed
  first. Whoever calls decides how much is in flight.
* **Threads.** Every method may be called from any thread, many at a time. Callbacks of a transfer run on
  a thread of the transport; they must not block.
* **Processes.** A transport belongs to the process that created it. It is never used in a forked child,
  which creates its own, and it is never pickled.
* **Buffers.** ``into`` belongs to the transport until the transfer is done; the transport may fill it in
  any order, and what it holds after a failure means nothing. ``body`` must not change until the transfer
  is done; the transport copies it no more often than its backend needs, and lets go of it when done.
* **Whole or failed.** A transfer succeeds only with exactly the bytes that the response announced
  (``Content-Range`` or ``Content-Length``). Shorter and longer bodies are ``TruncatedError``.
* **Retries.** Throttling (429 and 503), 500, 502, 504, and broken connections are tried again inside the
  transport with backoff and jitter, ``config.attempts`` times in all. Other errors are not. An error tells in
  ``attempts`` how often the request may have reached the store: what is refused then may be what an earlier
  attempt, whose answer was lost, has done.
* **Errors** are those of ``s3torch.core.errors``, made with ``error_from_response`` from code and status,
  and carry the operation, the bucket and the key. The original error is the ``__cause__``. Nothing is
  raised by starting; the transfer raises. The one exception is use after ``close()``, a ``ValueError``.
* **Cancelling** is prompt: once ``cancel()`` has returned, ``into`` is not touched any more, and
  ``result()`` of a transfer that was cancelled in time raises ``TransferCancelledError``.
* **Empty objects.** A range that begins at 0 of an object without bytes is no error: the result has
  ``length`` 0 and ``head.size`` 0. A range that begins behind the end is ``RangeNotSatisfiableError``.
* **Keys** arrive as they are; quoting them for the wire is the transport's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from s3torch.core.config import S3ClientConfig
    from s3torch.core.errors import S3Error
    from s3torch.core.models import (
        BucketEndpoint,
        CompletedPart,
        Credentials,
        DeleteFailure,
        GetResult,
        HeadObjectResult,
        ListObjectResult,
        MultipartUpload,
        PutOptions,
        PutResult,
    )
    from s3torch.core.ranges import ByteRange

__all__ = [
    "ControlPlane",
    "HoldsParts",
    "ResolvedSession",
    "RetryListener",
    "SupportsControl",
    "Transfer",
    "Transport",
    "TransportContext",
]

T_co = TypeVar("T_co", covariant=True)


class Transfer(Protocol[T_co]):
    """A piece of work that a transport has started; ``concurrent.futures.Future`` is one."""

    def result(self, timeout: float | None = None) -> T_co:
        """Waits for the end and returns what the work was for.

        Raises:
            S3Error: The work failed.
            TimeoutError: It has not ended after ``timeout`` seconds; it goes on.
        """
        ...

    def done(self) -> bool:
        """Tells whether the work has ended, well or not."""
        ...

    def cancel(self) -> bool:
        """Asks to stop the work; ``False`` when it has ended already."""
        ...

    def add_done_callback(self, fn: Callable[[Any], object], /) -> None:
        """Calls ``fn`` with this transfer when the work has ended, at once if it has already."""
        ...


class Transport(Protocol):
    """Moves the bytes of objects. See the rules at the top of this module."""

    def get(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        into: memoryview | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> Transfer[GetResult]:
        """Starts one GetObject request.

        Args:
            bucket: The bucket.
            key: The key.
            byte_range: The bytes that are wanted; ``None`` for all. At the end of the object the result
                may be shorter than the range.
            into: Writable bytes that take the body, at least as long as the range. ``None`` asks for the
                body in ``GetResult.data``.
            if_match: The ETag that the object must have, else ``PreconditionFailedError``.
            version_id: The version that is wanted.
        """
        ...

    def put(
        self,
        bucket: str,
        key: str,
        body: memoryview,
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Transfer[PutResult]:
        """Starts one PutObject request.

        Args:
            bucket: The bucket.
            key: The key.
            body: All bytes of the object.
            options: How the object is stored.
            checksum: The algorithm and the checksum of the body in base64.
        """
        ...

    def create_multipart_upload(
        self, bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None = None
    ) -> Transfer[MultipartUpload]:
        """Starts a CreateMultipartUpload request.

        Args:
            bucket: The bucket.
            key: The key.
            options: How the object will be stored; the conditions go with the completion.
            checksum_algorithm: The algorithm of the parts' checksums; that of the whole object is of
                type FULL_OBJECT, but with SHA256, which S3 has only as COMPOSITE.
        """
        ...

    def upload_part(
        self,
        upload: MultipartUpload,
        number: int,
        body: memoryview,
        *,
        checksum: tuple[str, str] | None = None,
    ) -> Transfer[CompletedPart]:
        """Starts one UploadPart request with the part of this number, from 1."""
        ...

    def complete_multipart_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[CompletedPart],
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Transfer[PutResult]:
        """Starts a CompleteMultipartUpload request.

        Args:
            upload: The upload.
            parts: All parts in the order of their numbers.
            options: The conditions under which the object may appear.
            checksum: The algorithm and the checksum of the whole object in base64.
        """
        ...

    def abort_multipart_upload(self, upload: MultipartUpload) -> Transfer[None]:
        """Starts an AbortMultipartUpload request; an upload that is gone already is no error."""
        ...

    def close(self) -> None:
        """Cancels what is in flight and frees connections and threads; may be called again."""
        ...


@runtime_checkable
class HoldsParts(Protocol):
    """A transport that holds a part in memory of its own until it is whole, also where ``into`` is given.

    s3torch then has fewer bytes on their way where that costs no throughput.
    """

    holds_parts: bool


class ControlPlane(Protocol):
    """What S3 does besides moving the bytes of objects; every method waits for its answer."""

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> HeadObjectResult:
        """Asks for the facts of one object, in one HeadObject request."""
        ...

    def list_objects(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        continuation_token: str | None = None,
        start_after: str | None = None,
    ) -> ListObjectResult:
        """Asks for one page of a listing, in one ListObjectsV2 request."""
        ...

    def delete_object(self, bucket: str, key: str, *, version_id: str | None = None) -> None:
        """Deletes one object, or one version of it for good; a missing one is no error."""
        ...

    def delete_objects(self, bucket: str, keys: Sequence[str]) -> list[DeleteFailure]:
        """Deletes up to 1,000 objects in one DeleteObjects request and returns those that it could not."""
        ...

    def copy_object(
        self,
        src_bucket: str,
        src_key: str,
        dst_bucket: str,
        dst_key: str,
        *,
        options: PutOptions | None = None,
        version_id: str | None = None,
        if_match: str | None = None,
    ) -> None:
        """Copies one object of up to 5 GiB within S3, in one CopyObject request.

        Args:
            src_bucket: The bucket of the source.
            src_key: Its key.
            dst_bucket: The bucket of the copy.
            dst_key: Its key.
            options: How the copy is stored. Metadata and what else describes the content are those of the
                source, unless the options say any of that; so are the tags, unless the options have some.
            version_id: The version of the source.
            if_match: The ETag that the source must have, else ``PreconditionFailedError``.
        """
        ...

    def close(self) -> None:
        """Frees connections; may be called again."""
        ...


@runtime_checkable
class SupportsGetNow(Protocol):
    """A transport that can get an object on the calling thread, for less than a transfer costs.

    A caller that has to wait for the bytes in any case asks it first.
    """

    def get_now(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        into: memoryview | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> GetResult:
        """Does what ``get(…).result()`` does."""
        ...


@runtime_checkable
class SupportsControl(Protocol):
    """A transport that has a control plane of its own; for the others the client asks S3 by boto3."""

    def control(self) -> ControlPlane:
        """Returns the control plane of what this transport reaches."""
        ...


class ResolvedSession(Protocol):
    """Where requests go and who sends them, as resolved from the configuration, AWS files and variables."""

    def endpoint(self, bucket: str) -> BucketEndpoint:
        """Tells where the requests for a bucket go; cached.

        Raises:
            ConfigurationError: There is no region or the endpoint is malformed.
        """
        ...

    def credentials(self, bucket: str | None = None) -> Credentials | None:
        """Returns keys that are valid now, refreshed where that is due; ``None`` for anonymous requests.

        Args:
            bucket: What the request is about; directory buckets have keys of their own.

        Raises:
            NoCredentialsError: No provider has any.
        """
        ...

    def renew_credentials(self, stale: Credentials | None, bucket: str | None = None) -> bool:
        """Fetches credentials anew because S3 has refused these as expired.

        Args:
            stale: The keys that were refused.
            bucket: What the request was about.

        Returns:
            Whether there are now others than ``stale``, with which the request may be tried again.
        """
        ...

    @property
    def is_encrypted(self) -> bool:
        """Tells whether requests go over TLS."""
        ...

    def boto_client(self) -> Any:
        """Returns this session's boto3 client for S3, made at the first call."""
        ...


class RetryListener(Protocol):
    """What a transport tells of its retries."""

    def __call__(
        self,
        *,
        operation: str,
        bucket: str,
        key: str,
        attempt: int,
        error: S3Error,
        seconds: float,
        transfer: Transfer[Any] | None = None,
    ) -> None:
        """Takes note that ``attempt`` (from 1) failed and the next begins in so many seconds.

        Args:
            operation: The S3 operation, as in ``"GetObject"``.
            bucket: The bucket.
            key: The key.
            attempt: Which attempt failed, from 1.
            error: Why.
            seconds: The pause before the next.
            transfer: What the transport has returned, or is about to. Without it a retry may be taken for
                one of another transfer of the same object.
        """
        ...


@dataclass(frozen=True, slots=True)
class TransportContext:
    """What a transport is given when it is created.

    Attributes:
        config: The settings of the client.
        session: Addresses and credentials.
        user_agent: The value of the ``User-Agent`` header.
        on_retry: Told of every attempt that failed and is made again; ``None`` when nobody listens. It is
            called on a thread of the transport and does not block.
    """

    config: S3ClientConfig
    session: ResolvedSession
    user_agent: str
    on_retry: RetryListener | None = None
