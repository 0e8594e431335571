"""A multipart upload that stays when it is interrupted, and goes on with the parts that S3 has."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from s3torch.core import requests
from s3torch.core.errors import NotFoundError
from s3torch.core.models import CompletedPart
from s3torch.core.requests import same_etag
from s3torch.core.transfer._upload import Upload

if TYPE_CHECKING:
    from s3torch.core._client import RuntimeHandle
    from s3torch.core.models import MultipartUpload, PutOptions
    from s3torch.core.requests import StoredPart
    from s3torch.core.seam import Transfer

T = TypeVar("T")


def parts_of(handle: RuntimeHandle, upload: MultipartUpload) -> list[StoredPart] | None:
    """Lists the parts that S3 has of an upload; ``None`` where there is no such upload any more."""
    found: list[StoredPart] = []
    marker: str | None = None
    try:
        while True:
            page, marker = handle.call(requests.list_parts(upload, marker=marker))
            found += page
            if marker is None:
                return found
    except NotFoundError:
        return None


class ResumedUpload(Upload):
    """Sends an object through a multipart upload that was begun before.

    All bytes are written again, in the same order. A part is sent unless S3 has one with its number, size and
    checksum. A failure leaves the upload as it is, so that it can be resumed once more.

    Args:
        handle: Serves the requests.
        multipart: The upload.
        stored: The parts that S3 has of it.
        options: How the object is stored.
        expected_size: How many bytes there will be.
    """

    def __init__(
        self,
        handle: RuntimeHandle,
        multipart: MultipartUpload,
        stored: list[StoredPart],
        options: PutOptions,
        *,
        expected_size: int,
    ) -> None:
        super().__init__(handle, multipart.bucket, multipart.key, options, expected_size=expected_size)
        self._multipart = _done(multipart)
        self._stored = {part.number: part for part in stored}

    def _send_body(
        self, upload: MultipartUpload, number: int, body: memoryview, checksum: tuple[str, str] | None
    ) -> Transfer[CompletedPart]:
        stored = self._stored.get(number)
        if stored is not None and _has_bytes(stored, body, checksum):
            return _done(CompletedPart(number, stored.etag, checksum and checksum[1]))
        return super()._send_body(upload, number, body, checksum)

    def _abort_multipart(self, multipart: Transfer[MultipartUpload], *, drained: bool) -> None:
        """Leaves the parts that S3 has for the next attempt."""


def _has_bytes(part: StoredPart, body: memoryview, checksum: tuple[str, str] | None) -> bool:
    """Whether a part has these bytes, by the checksum that S3 keeps, or by an ETag that is their MD5 sum."""
    if part.size != len(body):
        return False
    algorithm, value = checksum or ("", "")
    if algorithm in part.checksums:
        return part.checksums[algorithm] == value
    return same_etag(part.etag, f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"')


def _done(value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future
