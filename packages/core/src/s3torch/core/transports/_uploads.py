"""What transports have in common that speak HTTP themselves: every request but GetObject."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

from s3torch.core.transports import _requests
from s3torch.core.transports._http import complete_body

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from s3torch.core.models import CompletedPart, MultipartUpload, PutOptions, PutResult
    from s3torch.core.transports._requests import Request

T = TypeVar("T")


class Uploads(ABC):
    """Starts the requests that upload. The rules are those of ``s3torch.core.protocols``."""

    @abstractmethod
    def _call(self, request: Request[T], body: memoryview | None = None) -> Future[T]:
        """Starts a request."""

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
        return self._call(_requests.put(bucket, key, options=options, checksum=checksum), body)

    def create_multipart_upload(
        self, bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None = None
    ) -> Future[MultipartUpload]:
        """Starts a CreateMultipartUpload request."""
        return self._call(
            _requests.create_multipart_upload(
                bucket, key, options=options, checksum_algorithm=checksum_algorithm
            )
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
        return self._call(_requests.upload_part(upload, number, checksum=checksum), body)

    def complete_multipart_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[CompletedPart],
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Future[PutResult]:
        """Starts a CompleteMultipartUpload request."""
        body = memoryview(complete_body(parts, checksum and checksum[0]))
        request = _requests.complete_multipart_upload(upload, options=options, checksum=checksum)
        return self._call(request, body)

    def abort_multipart_upload(self, upload: MultipartUpload) -> Future[None]:
        """Starts an AbortMultipartUpload request."""
        return self._call(_requests.abort_multipart_upload(upload))
