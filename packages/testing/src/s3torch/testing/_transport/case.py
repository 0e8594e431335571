"""What the groups of the conformance suite of transports share: fixtures, flags, calls and questions."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import base64
import gc
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from s3torch.core import S3ClientConfig, errors, models, requests
from s3torch.core.models import BucketEndpoint, Credentials, MultipartUpload, PutOptions
from s3torch.core.seam import TransportContext
from s3torch.testing.scripted import ScriptedServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core.errors import S3Error
    from s3torch.core.requests import Request
    from s3torch.core.seam import ResolvedSession, Transfer, Transport

T = TypeVar("T")
_PLAIN = PutOptions()

# Seconds that a test waits for an answer (it is about right or wrong, not speed), or where none is due.
PATIENCE, PROMPT = 30, 5
_REFUSALS: dict[str, tuple[type[S3Error], int]] = {
    "InvalidRange": (errors.RangeNotSatisfiableError, 416),
    "NoSuchBucket": (errors.NotFoundError, 404),
    "NoSuchKey": (errors.NotFoundError, 404),
    "NoSuchUpload": (errors.NotFoundError, 404),
    "PreconditionFailed": (errors.PreconditionFailedError, 412),
}
# What it is depends on where the connection breaks, and on what a library tells of that.
CUT_OFF = (errors.TruncatedError, errors.S3ConnectionError)
NOWHERE = "s3torch-no-such-bucket"
KEYS = Credentials("AKIDOFTHESUITE", "SECRET")


class TransportCase:
    """Fixtures to override, and flags that tell what the store behind the transport can."""

    verifies_checksums = True
    """The store refuses bodies whose checksum is not the one that was sent, and keeps checksums."""

    lists_in_key_order = True
    """Listings are in the order of the UTF-8 bytes of the keys, also across ``/``."""

    forgets_aborted_uploads = True
    """After an abort, a part is refused with ``NoSuchUpload``."""

    checks_copy_conditions = True
    """A copy whose source does not have the expected ETag is refused."""

    tells_upload_times = True
    """The listing of multipart uploads tells when each was begun."""

    quotes_keys_of_uploads = True
    """Where the listing of multipart uploads says that it quotes keys, it does."""

    speaks_http = True
    """The transport speaks HTTP, so it can be pointed at a server that answers as a script says."""

    reads_http_strictly = True
    """Interim answers are left out, and bodies whose end is not told in one way are refused."""

    ends_slow_answers = True
    """A head that comes byte by byte has an end, and ``low_speed_limit`` holds."""

    unsupported_keys: frozenset[str] = frozenset()
    """Keys of ``AWKWARD_KEYS`` that the store does not keep as they are."""

    @pytest.fixture
    def transport_context(self) -> TransportContext:
        """To be overridden: settings (few attempts are best), addresses and credentials of the store."""
        raise NotImplementedError

    @pytest.fixture
    def bucket(self) -> str:
        """To be overridden: the name of a bucket that is there."""
        raise NotImplementedError

    @pytest.fixture
    def versioned_bucket(self) -> str:
        """May be overridden: the name of a bucket that keeps versions."""
        pytest.skip("no bucket with versions")

    def create_transport(self, context: TransportContext) -> Transport:
        """To be overridden: makes the transport."""
        raise NotImplementedError

    def create_context(self, session: ResolvedSession, endpoint: str, **settings: Any) -> TransportContext:
        """May be overridden: makes the context of a transport to the scripted server at this endpoint.

        The settings are those of ``S3ClientConfig``, and ``on_retry``.
        """
        on_retry = settings.pop("on_retry", None)
        config = S3ClientConfig(endpoint=endpoint, **settings)
        return TransportContext(config, session, "agent/1 (of the suite)", on_retry)

    @pytest.fixture
    def transport(self, transport_context: TransportContext) -> Iterator[TransportCalls]:
        """A transport for one test, by its operations."""
        transport = TransportCalls(self.create_transport(transport_context))
        yield transport
        transport.close()

    @pytest.fixture
    def prefix(self) -> str:
        """A prefix that no other test uses."""
        return f"{uuid.uuid4().hex}/"

    @pytest.fixture
    def key(self, prefix: str) -> str:
        """A key that no other test uses."""
        return f"{prefix}key"

    @pytest.fixture
    def script(self) -> Iterator[Script]:
        """A server that answers as a test scripts, and transports to it."""
        if not self.speaks_http:
            pytest.skip("the transport does not speak HTTP")
        with ScriptedServer() as server:
            script = Script(self, server)
            yield script
            server.release()
            script.close()


class Script:
    """Transports to a scripted server, made by ``case``, and what they told of their retries."""

    def __init__(self, case: TransportCase, server: ScriptedServer) -> None:
        self.server = server
        self.session: ResolvedSession = StaticSession(server.endpoint, KEYS)
        self.retries: list[ToldRetry] = []
        self._case = case
        self._tell = lambda **facts: self.retries.append(ToldRetry(**facts))
        self._transports: list[TransportCalls] = []

    def context(self, **settings: Any) -> TransportContext:
        """Makes the context of a transport with these settings."""
        settings = {"max_attempts": 3, "on_retry": self._tell, **settings}
        return self._case.create_context(self.session, self.server.endpoint, **settings)

    def connect(self, **settings: Any) -> TransportCalls:
        """Makes a transport with these settings."""
        transport = TransportCalls(self._case.create_transport(self.context(**settings)))
        self._transports.append(transport)
        return transport

    def close(self) -> None:
        for transport in self._transports:
            transport.close()


@dataclass(frozen=True)
class ToldRetry:
    """What ``on_retry`` was told, and on which thread."""

    operation: str
    bucket: str
    key: str
    attempt: int
    error: S3Error
    seconds: float
    transfer: Transfer[Any] | None = None
    thread: int = field(default_factory=threading.get_ident)


class StaticSession:
    """A ``ResolvedSession`` for one server with path-style addresses and known keys.

    Args:
        endpoint: The URL of the server.
        keys: The keys that requests are signed with, first those of the beginning, then those that each
            renewal brings; none for anonymous requests.

    Attributes:
        renewals: What ``renew_credentials`` was asked: the keys that were refused, and the bucket.
    """

    def __init__(self, endpoint: str, *keys: Credentials) -> None:
        scheme, _, host = endpoint.partition("://")
        self.ca_bundle: str | None = None
        self.renewals: list[tuple[Credentials | None, str | None]] = []
        self._scheme, self._host = scheme, host.rstrip("/")
        self._keys = [*keys]
        self._lock = threading.Lock()

    def endpoint(self, bucket: str) -> BucketEndpoint:
        return BucketEndpoint(self._scheme, self._host, f"/{bucket}/", "us-east-1")

    def credentials(self, bucket: str | None = None) -> Credentials | None:  # noqa: ARG002 - All have the same.
        return self._keys[0] if self._keys else None

    def renew_credentials(self, stale: Credentials | None, bucket: str | None = None) -> bool:
        with self._lock:
            self.renewals.append((stale, bucket))
            if self._keys[1:] and self._keys[0] == stale:
                del self._keys[0]
            return self.credentials() != stale

    @property
    def is_encrypted(self) -> bool:
        return self._scheme == "https"


class TransportCalls:
    """Sends the requests of ``s3torch.core.requests`` through a transport.

    Operations that move the bytes of objects return their transfer, the others wait for their result.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> Transfer[T]:
        return self.transport.send(request, body=body, into=into)

    def call(self, request: Request[T]) -> T:
        return self.transport.send(request).result(PATIENCE)

    def close(self) -> None:
        self.transport.close()

    def get(
        self, bucket: str, key: str, *, into: memoryview | None = None, **how: Any
    ) -> Transfer[models.GetResult]:
        return self.send(requests.get_object(bucket, key, **how), into=into)

    def put(
        self, bucket: str, key: str, body: memoryview, *, options: PutOptions = _PLAIN, **how: Any
    ) -> Transfer[models.PutResult]:
        return self.send(requests.put_object(bucket, key, options=options, **how), body=body)

    def create_multipart_upload(
        self, bucket: str, key: str, *, options: PutOptions = _PLAIN, **how: Any
    ) -> Transfer[MultipartUpload]:
        return self.send(requests.create_multipart_upload(bucket, key, options=options, **how))

    def upload_part(
        self, upload: MultipartUpload, number: int, body: memoryview, **how: Any
    ) -> Transfer[models.CompletedPart]:
        return self.send(requests.upload_part(upload, number, **how), body=body)

    def complete_multipart_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[models.CompletedPart],
        *,
        options: PutOptions = _PLAIN,
        **how: Any,
    ) -> Transfer[models.PutResult]:
        return self.send(requests.complete_multipart_upload(upload, parts, options=options, **how))

    def abort_multipart_upload(self, upload: MultipartUpload) -> Transfer[None]:
        return self.send(requests.abort_multipart_upload(upload))

    def head_object(self, bucket: str, key: str, **how: Any) -> models.HeadObjectResult:
        return self.call(requests.head_object(bucket, key, **how))

    def list_objects(self, bucket: str, **how: Any) -> models.ListObjectResult:
        return self.call(requests.list_objects(bucket, **how))

    def delete_object(self, bucket: str, key: str, **how: Any) -> None:
        self.call(requests.delete_object(bucket, key, **how))

    def delete_objects(self, bucket: str, keys: Sequence[str]) -> list[models.DeleteFailure]:
        return self.delete_versions(bucket, [(key, None) for key in keys])

    def delete_versions(
        self, bucket: str, versions: Sequence[tuple[str, str | None]]
    ) -> list[models.DeleteFailure]:
        return self.call(requests.delete_objects(bucket, versions)) if versions else []

    def copy_object(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str, **how: Any) -> None:
        self.call(requests.copy_object(src_bucket, src_key, dst_bucket, dst_key, **how))

    def upload_part_copy(
        self, upload: MultipartUpload, number: int, src_bucket: str, src_key: str, **how: Any
    ) -> models.CompletedPart:
        return self.call(requests.upload_part_copy(upload, number, src_bucket, src_key, **how))

    def object_tags(self, bucket: str, key: str, **how: Any) -> dict[str, str]:
        return self.call(requests.get_object_tagging(bucket, key, **how))

    def list_object_versions(self, bucket: str, **how: Any) -> models.ListVersionsResult:
        return self.call(requests.list_object_versions(bucket, **how))

    def list_multipart_uploads(self, bucket: str, **how: Any) -> models.ListUploadsResult:
        return self.call(requests.list_multipart_uploads(bucket, **how))


def put(
    transport: TransportCalls, bucket: str, key: str, data: bytes = b"data", **how: Any
) -> models.PutResult:
    """Stores an object and waits for it."""
    return transport.put(bucket, key, memoryview(data), **how).result(PATIENCE)


def get(transport: TransportCalls, bucket: str, key: str, **how: Any) -> models.GetResult:
    """Reads an object and waits for it."""
    return transport.get(bucket, key, **how).result(PATIENCE)


def begin_upload(
    transport: TransportCalls, bucket: str, key: str, algorithm: str | None = "CRC64NVME", **how: Any
) -> MultipartUpload:
    """Begins a multipart upload, usually with checksums, and waits for it."""
    begun = transport.create_multipart_upload(bucket, key, checksum_algorithm=algorithm, **how)
    return begun.result(PATIENCE)


def send_part(transport: TransportCalls, upload: MultipartUpload, data: bytes) -> models.CompletedPart:
    """Sends the first part with its checksum and waits for it."""
    return transport.upload_part(upload, 1, memoryview(data), checksum=checksum_of(data)).result(PATIENCE)


def complete(
    transport: TransportCalls,
    upload: MultipartUpload,
    parts: Sequence[models.CompletedPart],
    data: bytes | None = None,
    **how: Any,
) -> models.PutResult:
    """Completes a multipart upload, with the checksum of these bytes if they are given, and waits for it."""
    checksum = None if data is None else checksum_of(data)
    return transport.complete_multipart_upload(upload, parts, checksum=checksum, **how).result(PATIENCE)


def checksum_of(data: bytes, algorithm: str = "CRC64NVME") -> tuple[str, str]:
    """Computes a checksum as transports take it."""
    from awscrt import checksums

    function, width = {
        "CRC64NVME": (checksums.crc64nvme, 8),
        "CRC32C": (checksums.crc32c, 4),
        "CRC32": (checksums.crc32, 4),
    }[algorithm]
    return algorithm, base64.b64encode(function(data).to_bytes(width, "big")).decode()


@contextmanager
def refused(code: str, operation: str, bucket: str, key: str | None = None) -> Iterator[None]:
    """Expects an error of exactly the class and the status of this code, which tells these facts."""
    cls, status = _REFUSALS[code]
    with pytest.raises(cls) as caught:
        yield
    error = caught.value
    assert type(error) is cls
    assert (error.operation, error.bucket, error.key) == (operation, bucket, key)
    assert (error.code, error.status) == (code, status)


def wait(transfer: Transfer[Any]) -> None:
    """Waits for the end of a transfer, good or bad, without lending this thread to it."""
    ended = threading.Event()
    transfer.add_done_callback(lambda _: ended.set())
    assert ended.wait(PATIENCE), "the transfer does not end"


def failure(
    transfer: Transfer[Any],
    kind: type[S3Error] | tuple[type[S3Error], ...],
    operation: str = "GetObject",
    *,
    seconds: float = PATIENCE,
) -> S3Error:
    """Returns the error of a transfer about ``bucket`` and ``key``: of exactly this class, or of these."""
    with pytest.raises(kind) as caught:
        transfer.result(seconds)
    error = caught.value
    assert isinstance(kind, tuple) or type(error) is kind
    assert (error.operation, error.bucket, error.key) == (operation, "bucket", "key")
    return error


def expect_released(buffer: bytearray) -> None:
    """Resizes the buffer, which Python refuses as long as there is a view of it."""
    for seconds in (0.01, 0.1, 0.5, 1):
        try:
            buffer.append(0)
        except BufferError:
            # Not before it is needed: the end of a native request may be a moment later than its result.
            time.sleep(seconds)
            gc.collect()
        else:
            return
    pytest.fail("the transport still holds the buffer")
