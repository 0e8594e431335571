"""One method for each S3 operation on a bare transport, so that tests read as what they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core import requests
from s3torch.core.models import PutOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from s3torch.core.models import (
        CompletedPart,
        DeleteFailure,
        GetResult,
        HeadObjectResult,
        ListObjectResult,
        ListUploadsResult,
        ListVersionsResult,
        MultipartUpload,
        PutResult,
    )
    from s3torch.core.requests import Request
    from s3torch.core.seam import Transfer, Transport

T = TypeVar("T")

# How long a test waits for an answer, in seconds: the suite is about right or wrong, not about speed.
PATIENCE = 30


class TransportCalls:
    """Sends the requests of ``s3torch.core.requests`` through a transport.

    Operations that move the bytes of objects return their transfer, the others wait for their result.

    Args:
        transport: What moves them.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> Transfer[T]:
        """Starts a request."""
        return self.transport.send(request, body=body, into=into)

    def call(self, request: Request[T]) -> T:
        """Sends a request and waits for its result."""
        return self.transport.send(request).result(PATIENCE)

    def close(self) -> None:
        """Closes the transport."""
        self.transport.close()

    def get(
        self, bucket: str, key: str, *, into: memoryview | None = None, **how: Any
    ) -> Transfer[GetResult]:
        """Starts a GetObject request."""
        return self.send(requests.get_object(bucket, key, **how), into=into)

    def put(
        self,
        bucket: str,
        key: str,
        body: memoryview,
        *,
        options: PutOptions | None = None,
        checksum: tuple[str, str] | None = None,
    ) -> Transfer[PutResult]:
        """Starts a PutObject request."""
        options = options or PutOptions()
        return self.send(requests.put_object(bucket, key, options=options, checksum=checksum), body=body)

    def create_multipart_upload(self, bucket: str, key: str, **how: Any) -> Transfer[MultipartUpload]:
        """Starts a CreateMultipartUpload request."""
        return self.send(requests.create_multipart_upload(bucket, key, **how))

    def upload_part(
        self, upload: MultipartUpload, number: int, body: memoryview, **how: Any
    ) -> Transfer[CompletedPart]:
        """Starts an UploadPart request."""
        return self.send(requests.upload_part(upload, number, **how), body=body)

    def complete_multipart_upload(
        self, upload: MultipartUpload, parts: Sequence[CompletedPart], **how: Any
    ) -> Transfer[PutResult]:
        """Starts a CompleteMultipartUpload request."""
        return self.send(requests.complete_multipart_upload(upload, parts, **how))

    def abort_multipart_upload(self, upload: MultipartUpload) -> Transfer[None]:
        """Starts an AbortMultipartUpload request."""
        return self.send(requests.abort_multipart_upload(upload))

    def head_object(self, bucket: str, key: str, **how: Any) -> HeadObjectResult:
        """Asks for the metadata of an object."""
        return self.call(requests.head_object(bucket, key, **how))

    def list_objects(self, bucket: str, **how: Any) -> ListObjectResult:
        """Asks for one page of a listing."""
        return self.call(requests.list_objects(bucket, **how))

    def delete_object(self, bucket: str, key: str, **how: Any) -> None:
        """Deletes an object or a version."""
        self.call(requests.delete_object(bucket, key, **how))

    def delete_objects(self, bucket: str, keys: Sequence[str]) -> list[DeleteFailure]:
        """Deletes many objects in one request."""
        return self.delete_versions(bucket, [(key, None) for key in keys])

    def delete_versions(self, bucket: str, versions: Sequence[tuple[str, str | None]]) -> list[DeleteFailure]:
        """Deletes many objects or versions in one request; none of them need no request."""
        return self.call(requests.delete_objects(bucket, versions)) if versions else []

    def copy_object(self, src_bucket: str, src_key: str, dst_bucket: str, dst_key: str, **how: Any) -> None:
        """Copies an object."""
        self.call(requests.copy_object(src_bucket, src_key, dst_bucket, dst_key, **how))

    def upload_part_copy(
        self, upload: MultipartUpload, number: int, src_bucket: str, src_key: str, **how: Any
    ) -> CompletedPart:
        """Makes a part of bytes of another object."""
        return self.call(requests.upload_part_copy(upload, number, src_bucket, src_key, **how))

    def object_tags(self, bucket: str, key: str, **how: Any) -> dict[str, str]:
        """Asks for the tags of an object."""
        return self.call(requests.get_object_tagging(bucket, key, **how))

    def list_object_versions(self, bucket: str, **how: Any) -> ListVersionsResult:
        """Asks for one page of versions."""
        return self.call(requests.list_object_versions(bucket, **how))

    def list_multipart_uploads(self, bucket: str, **how: Any) -> ListUploadsResult:
        """Asks for one page of the multipart uploads in progress."""
        return self.call(requests.list_multipart_uploads(bucket, **how))
