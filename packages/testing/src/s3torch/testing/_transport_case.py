"""What the groups of the conformance suite of transports share: fixtures, flags and questions."""

# ruff: noqa: S101 - In tests, assert is how they tell.

from __future__ import annotations

import base64
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from s3torch.core.models import PutOptions
from s3torch.testing._calls import PATIENCE, TransportCalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.errors import S3Error
    from s3torch.core.models import GetResult, MultipartUpload, PutResult
    from s3torch.core.seam import Transport, TransportContext


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


def put(
    transport: TransportCalls,
    bucket: str,
    key: str,
    data: bytes = b"data",
    *,
    options: PutOptions | None = None,
    checksum: tuple[str, str] | None = None,
) -> PutResult:
    """Stores an object and waits for it."""
    transfer = transport.put(
        bucket, key, memoryview(data), options=options or PutOptions(), checksum=checksum
    )
    return transfer.result(PATIENCE)


def get(transport: TransportCalls, bucket: str, key: str, **how: Any) -> GetResult:
    """Reads an object and waits for it."""
    return transport.get(bucket, key, **how).result(PATIENCE)


def begin_upload(
    transport: TransportCalls, bucket: str, key: str, *, options: PutOptions | None = None
) -> MultipartUpload:
    """Begins a multipart upload with checksums and waits for it."""
    transfer = transport.create_multipart_upload(
        bucket, key, options=options or PutOptions(), checksum_algorithm="CRC64NVME"
    )
    return transfer.result(PATIENCE)


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
def refused(
    cls: type[S3Error],
    *,
    operation: str,
    bucket: str,
    key: str | None = None,
    code: str | None = None,
    status: int | None = None,
) -> Iterator[None]:
    """Expects an error of exactly this class that tells these facts."""
    with pytest.raises(cls) as caught:
        yield
    error = caught.value
    assert type(error) is cls
    assert (error.operation, error.bucket, error.key) == (operation, bucket, key)
    assert (error.code, error.status) == (code, status)
