"""A transport to objects in the memory of this process: for tests, examples and trying things out.

It behaves as S3 does, with conditions, checksums, multipart uploads and listings, and has a control plane of
its own. Its buckets are made by hand::

    MemoryStore.at("http://mine").create_bucket("bucket")
    client = S3Client(s3client_config=S3ClientConfig(transport="memory", endpoint="http://mine"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core.errors import NotFoundError, TruncatedError
from s3torch.core.models import DeleteFailure, GetResult
from s3torch.core.plugins.hookspecs import hookimpl
from s3torch.core.transports._limits import check_deleted
from s3torch.core.transports._memory_rules import refusal, same_etag
from s3torch.core.transports._memory_store import MemoryStore
from s3torch.core.transports._pool import PooledTransfer, TransferPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future
    from typing import TypeVar

    from s3torch.core.config import S3ClientConfig
    from s3torch.core.models import (
        CompletedPart,
        HeadObjectResult,
        ListObjectResult,
        ListUploadsResult,
        ListVersionsResult,
        MultipartUpload,
        PutOptions,
        PutResult,
    )
    from s3torch.core.protocols import TransportContext
    from s3torch.core.ranges import ByteRange
    from s3torch.core.transports._memory_bucket import StoredObject

    T = TypeVar("T")

__all__ = ["MemoryControl", "MemoryStore", "MemoryTransport", "s3torch_create_transport"]

_THREADS = 4


@hookimpl
def s3torch_create_transport(context: TransportContext) -> MemoryTransport:
    """Creates a transport to the store of the configured endpoint."""
    return MemoryTransport(MemoryStore.at(context.config.endpoint), context.config)


class MemoryTransport:
    """Moves bytes within this process. The rules are those of ``s3torch.core.protocols``.

    Args:
        store: Where the objects are.
        config: The settings of the client; ``None`` for the defaults.
    """

    def __init__(self, store: MemoryStore, config: S3ClientConfig | None = None) -> None:
        self._store = store
        self._config = config
        self._pool = TransferPool(_THREADS, name="s3torch-memory")

    def control(self) -> MemoryControl:
        """Returns the control plane of the store."""
        return MemoryControl(self._store, self._config)

    def get(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        into: memoryview | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> Future[GetResult]:
        """Starts one GetObject request."""
        room = len(into) if into is not None else None

        def work(transfer: PooledTransfer[GetResult]) -> GetResult:
            stored = self._store.get(
                bucket, key, version_id=version_id, customer_key=_customer_key(self._config)
            )
            if if_match is not None and not same_etag(if_match, stored.etag):
                raise refusal("GetObject", bucket, key, 412, "PreconditionFailed")
            data = stored.data
            if byte_range is not None:
                if byte_range.start >= len(data) and byte_range.start > 0:
                    raise refusal("GetObject", bucket, key, 416, "InvalidRange")
                data = data[byte_range.start : byte_range.stop]
            if room is None:
                return GetResult(stored.head, len(data), data)
            if len(data) > room:
                raise TruncatedError(f"the body has {len(data)} bytes, more than the {room} asked for")
            transfer.fill(0, data)
            return GetResult(stored.head, len(data))

        return self._start("GetObject", bucket, key, work, into)

    def put(
        self,
        bucket: str,
        key: str,
        body: memoryview,
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Future[PutResult]:
        """Starts one PutObject request."""

        def work(transfer: PooledTransfer[PutResult]) -> PutResult:
            return self._store.put(
                bucket,
                key,
                transfer.copy(),
                options=options,
                checksum=checksum,
                customer_key=_customer_key(self._config),
            )

        return self._start("PutObject", bucket, key, work, body)

    def create_multipart_upload(
        self, bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None = None
    ) -> Future[MultipartUpload]:
        """Starts a CreateMultipartUpload request; the algorithm of the checksums is told with each part."""
        del checksum_algorithm
        return self._start(
            "CreateMultipartUpload",
            bucket,
            key,
            lambda _: self._store.create_upload(
                bucket, key, options=options, customer_key=_customer_key(self._config)
            ),
        )

    def upload_part(
        self,
        upload: MultipartUpload,
        number: int,
        body: memoryview,
        *,
        checksum: tuple[str, str] | None = None,
    ) -> Future[CompletedPart]:
        """Starts one UploadPart request."""

        def work(transfer: PooledTransfer[CompletedPart]) -> CompletedPart:
            return self._store.put_part(upload, number, transfer.copy(), checksum=checksum)

        return self._start("UploadPart", upload.bucket, upload.key, work, body)

    def complete_multipart_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[CompletedPart],
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Future[PutResult]:
        """Starts a CompleteMultipartUpload request."""
        return self._start(
            "CompleteMultipartUpload",
            upload.bucket,
            upload.key,
            lambda _: self._store.complete_upload(upload, parts, options=options, checksum=checksum),
        )

    def abort_multipart_upload(self, upload: MultipartUpload) -> Future[None]:
        """Starts an AbortMultipartUpload request."""

        def work(_: PooledTransfer[None]) -> None:
            try:
                self._store.abort_upload(upload)
            except NotFoundError:
                return

        return self._start("AbortMultipartUpload", upload.bucket, upload.key, work)

    def close(self) -> None:
        """Cancels what is in flight and ends the threads; the objects stay."""
        self._pool.close()

    def _start(
        self,
        operation: str,
        bucket: str,
        key: str,
        work: Callable[[PooledTransfer[T]], T],
        buffer: memoryview | None = None,
    ) -> PooledTransfer[T]:
        return self._pool.start(
            PooledTransfer(work, operation=operation, bucket=bucket, key=key, buffer=buffer)
        )


class MemoryControl:
    """The control plane of a store in memory.

    Args:
        store: Where the objects are.
        config: The settings of the client; ``None`` for the defaults.
    """

    def __init__(self, store: MemoryStore, config: S3ClientConfig | None = None) -> None:
        self._store = store
        self._config = config

    def head_object(self, bucket: str, key: str, *, version_id: str | None = None) -> HeadObjectResult:
        """Tells the facts of one object."""
        return self._get("HeadObject", bucket, key, version_id).head

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
        """Tells one page of a listing."""
        return self._store.list_objects(
            bucket,
            prefix=prefix,
            delimiter=delimiter,
            max_keys=max_keys,
            after=continuation_token or start_after or "",
        )

    def list_object_versions(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        max_keys: int = 1000,
        marker: tuple[str, str] | None = None,
    ) -> ListVersionsResult:
        """Tells one page of versions and delete markers."""
        return self._store.list_versions(
            bucket, prefix=prefix, delimiter=delimiter, max_keys=max_keys, marker=marker
        )

    def list_multipart_uploads(
        self,
        bucket: str,
        *,
        prefix: str = "",
        max_uploads: int = 1000,
        marker: tuple[str, str] | None = None,
    ) -> ListUploadsResult:
        """Tells one page of the multipart uploads in progress."""
        return self._store.list_uploads(bucket, prefix=prefix, max_uploads=max_uploads, marker=marker)

    def delete_object(self, bucket: str, key: str, *, version_id: str | None = None) -> None:
        """Deletes one object, or one version of it for good; a missing one is no error."""
        self._store.delete(bucket, key, version_id=version_id)

    def delete_objects(self, bucket: str, keys: Sequence[str]) -> list[DeleteFailure]:
        """Deletes up to 1,000 objects."""
        return self._delete(bucket, [(key, None) for key in keys])

    def delete_versions(self, bucket: str, versions: Sequence[tuple[str, str]]) -> list[DeleteFailure]:
        """Deletes up to 1,000 versions for good."""
        return self._delete(bucket, versions)

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
        """Copies one object."""
        self._store.copy(
            src_bucket,
            src_key,
            dst_bucket,
            dst_key,
            options=options,
            version_id=version_id,
            if_match=if_match,
            customer_key=_customer_key(self._config),
        )

    def upload_part_copy(
        self,
        upload: MultipartUpload,
        number: int,
        src_bucket: str,
        src_key: str,
        *,
        byte_range: ByteRange,
        version_id: str | None = None,
        if_match: str | None = None,
    ) -> CompletedPart:
        """Makes a part of bytes of another object."""
        operation = "UploadPartCopy"
        source = self._get(operation, src_bucket, src_key, version_id)
        if if_match is not None and not same_etag(if_match, source.etag):
            raise refusal(operation, src_bucket, src_key, 412, "PreconditionFailed")
        if byte_range.stop > len(source.data):
            raise refusal(operation, src_bucket, src_key, 416, "InvalidRange")
        return self._store.put_part(upload, number, source.data[byte_range.start : byte_range.stop])

    def object_tags(self, bucket: str, key: str, *, version_id: str | None = None) -> dict[str, str]:
        """Tells the tags of an object."""
        return dict(self._get("GetObjectTagging", bucket, key, version_id).options.tags)

    def _get(self, operation: str, bucket: str, key: str, version_id: str | None) -> StoredObject:
        return self._store.get(
            bucket,
            key,
            version_id=version_id,
            customer_key=_customer_key(self._config),
            operation=operation,
        )

    def _delete(self, bucket: str, versions: Sequence[tuple[str, str | None]]) -> list[DeleteFailure]:
        check_deleted(versions, bucket)
        for key, version_id in versions:
            self._store.delete(bucket, key, version_id=version_id, operation="DeleteObjects")
        return []

    def close(self) -> None:
        """Does nothing: there is nothing to free."""


def _customer_key(config: S3ClientConfig | None) -> bytes | None:
    return None if config is None or config.sse_customer_key is None else config.customer_key()
