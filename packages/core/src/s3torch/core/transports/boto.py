"""A transport on boto3, for machines where awscrt cannot be used and as a second opinion.

botocore blocks, so every transfer takes a thread of a bounded pool. botocore tries again until a response
begins; this module does where a body breaks off, and counts all tries together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core.config import checksum_type
from s3torch.core.errors import (
    NotFoundError,
    RangeNotSatisfiableError,
    S3Error,
    TransportError,
)
from s3torch.core.models import (
    CompletedPart,
    GetResult,
    HeadObjectResult,
    MultipartUpload,
    PutResult,
)
from s3torch.core.plugins.hookspecs import hookimpl
from s3torch.core.transports._boto_body import receive, sendable
from s3torch.core.transports._boto_params import (
    checksum_params,
    condition_params,
    given_params,
    part_params,
    storage_params,
)
from s3torch.core.transports._boto_sender import BotoSender
from s3torch.core.transports._pool import PooledTransfer, TransferPool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from s3torch.core.models import PutOptions
    from s3torch.core.protocols import TransportContext
    from s3torch.core.ranges import ByteRange

__all__ = ["BotoTransport", "s3torch_create_transport"]

T = TypeVar("T")

_METHODS = {
    "GetObject": "get_object",
    "PutObject": "put_object",
    "CreateMultipartUpload": "create_multipart_upload",
    "UploadPart": "upload_part",
    "CompleteMultipartUpload": "complete_multipart_upload",
    "AbortMultipartUpload": "abort_multipart_upload",
}


@hookimpl
def s3torch_create_transport(context: TransportContext) -> BotoTransport:
    """Creates the transport."""
    return BotoTransport(context)


class BotoTransport:
    """Moves bytes with boto3. The rules are those of ``s3torch.core.protocols``."""

    def __init__(self, context: TransportContext) -> None:
        try:
            import boto3  # noqa: F401
        except ImportError as exc:
            raise TransportError(
                f"transport 'boto' needs boto3, which cannot be imported here ({exc}); "
                "install it with pip install boto3, or use transport='crt'"
            ) from exc
        self._context = context
        self._pool = TransferPool(context.config.connections, name="s3torch-boto")
        self._sender = BotoSender(context)

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
        params = given_params(IfMatch=if_match, VersionId=version_id)
        if byte_range is not None:
            params["Range"] = byte_range.header
        if byte_range is None or not byte_range.start:
            # The range may turn out to be the whole object.
            params["ChecksumMode"] = "ENABLED"
        room = len(into) if into is not None else None

        def finish(response: Any, transfer: PooledTransfer[GetResult]) -> GetResult:
            return receive(response, transfer, byte_range, room)

        def recover(error: S3Error) -> GetResult:
            # An empty object has no byte 0, so a range that begins there cannot be satisfied.
            if isinstance(error, RangeNotSatisfiableError) and (byte_range is None or byte_range.start == 0):
                head = HeadObjectResult(etag="", size=0, last_modified=0)
                return GetResult(head, 0, b"" if room is None else None)
            raise error

        return self._start("GetObject", bucket, key, params, finish, buffer=into, recover=recover)

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
        params = {**storage_params(options), **condition_params(options), **checksum_params(checksum)}
        return self._start("PutObject", bucket, key, params, _put_result, body=body)

    def create_multipart_upload(
        self, bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None = None
    ) -> Future[MultipartUpload]:
        """Starts a CreateMultipartUpload request."""
        params = storage_params(options)
        if checksum_algorithm is not None:
            params["ChecksumAlgorithm"] = checksum_algorithm
            params["ChecksumType"] = checksum_type(checksum_algorithm)

        def finish(response: Any, _: object) -> MultipartUpload:
            return MultipartUpload(bucket, key, response["UploadId"])

        return self._start("CreateMultipartUpload", bucket, key, params, finish)

    def upload_part(
        self,
        upload: MultipartUpload,
        number: int,
        body: memoryview,
        *,
        checksum: tuple[str, str] | None = None,
    ) -> Future[CompletedPart]:
        """Starts one UploadPart request."""
        params = {"UploadId": upload.upload_id, "PartNumber": number, **checksum_params(checksum)}

        def finish(response: Any, _: object) -> CompletedPart:
            return CompletedPart(number, response["ETag"], checksum and checksum[1])

        return self._start("UploadPart", upload.bucket, upload.key, params, finish, body=body)

    def complete_multipart_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[CompletedPart],
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Future[PutResult]:
        """Starts a CompleteMultipartUpload request."""
        algorithm = checksum and checksum[0]
        params: dict[str, Any] = {
            "UploadId": upload.upload_id,
            "MultipartUpload": {"Parts": [part_params(part, algorithm) for part in parts]},
            **condition_params(options),
            **checksum_params(checksum),
        }
        if checksum is not None:
            params["ChecksumType"] = checksum_type(checksum[0])
        return self._start("CompleteMultipartUpload", upload.bucket, upload.key, params, _put_result)

    def abort_multipart_upload(self, upload: MultipartUpload) -> Future[None]:
        """Starts an AbortMultipartUpload request."""

        def finish(_response: object, _transfer: object) -> None:
            return None

        def recover(error: S3Error) -> None:
            if not isinstance(error, NotFoundError):
                raise error

        params = {"UploadId": upload.upload_id}
        return self._start("AbortMultipartUpload", upload.bucket, upload.key, params, finish, recover=recover)

    def close(self) -> None:
        """Cancels what is in flight and ends the threads."""
        if self._pool.close():
            # Otherwise the events still have to stop a thread that would try again.
            self._sender.close()

    def _start(
        self,
        operation: str,
        bucket: str,
        key: str,
        params: dict[str, Any],
        finish: Callable[[Any, PooledTransfer[T]], T],
        *,
        buffer: memoryview | None = None,
        body: memoryview | None = None,
        recover: Callable[[S3Error], T] | None = None,
    ) -> PooledTransfer[T]:
        size = body.nbytes if body is not None else None

        def work(transfer: PooledTransfer[T]) -> T:
            params.update(Bucket=bucket, Key=key)

            def once(client: Any) -> T:
                if size is not None:
                    params["Body"] = sendable(transfer, size)
                return finish(getattr(client, _METHODS[operation])(**params), transfer)

            try:
                return self._sender.send(transfer, once)
            except S3Error as error:
                if recover is None:
                    raise
                return recover(error)

        transfer = PooledTransfer(
            work,
            operation=operation,
            bucket=bucket,
            key=key,
            buffer=body if body is not None else buffer,
        )
        return self._pool.start(transfer)


def _put_result(response: Any, _: object) -> PutResult:
    return PutResult(response["ETag"], response.get("VersionId"))
