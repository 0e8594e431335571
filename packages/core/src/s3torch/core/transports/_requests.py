"""Requests to S3 as values: what transports send that speak HTTP themselves, and what an answer means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import quote

from s3torch.core.config import checksum_type
from s3torch.core.errors import NotFoundError, S3Error, error_from_response
from s3torch.core.models import CompletedPart, MultipartUpload, PutResult
from s3torch.core.transports._http import (
    checksum_header,
    condition_headers,
    put_headers,
    xml_fields,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from s3torch.core.models import PutOptions
    from s3torch.core.ranges import ByteRange

T = TypeVar("T")

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """A request with a short answer; its body goes apart, for it is let go of as soon as it was sent.

    Attributes:
        operation: The S3 operation.
        method: The HTTP method.
        bucket: The bucket.
        key: The key.
        finish: Makes the result of headers, with names in lower case, and body of the answer.
        query: What follows the ``?``, quoted and sorted.
        headers: The headers of the operation.
        ignored: An error that means that there is nothing to do.
    """

    operation: str
    method: str
    bucket: str
    key: str
    finish: Callable[[Mapping[str, str], bytes], T]
    query: str = ""
    headers: Sequence[tuple[str, str]] = ()
    ignored: type[S3Error] | None = None

    def recover(self, error: S3Error) -> T:
        """Makes a result of an error that is ignored, or raises it."""
        if self.ignored is not None and isinstance(error, self.ignored):
            return self.finish({}, b"")
        raise error


def get_headers(byte_range: ByteRange | None, if_match: str | None) -> Headers:
    """Gives the headers of a GetObject request."""
    headers = []
    if byte_range is not None:
        headers.append(("Range", byte_range.header))
    if byte_range is None or not byte_range.start:
        # The range may turn out to be the whole object.
        headers.append(("x-amz-checksum-mode", "ENABLED"))
    if if_match is not None:
        headers.append(("If-Match", if_match))
    return headers


def version_query(version_id: str | None) -> str:
    """Gives what follows the ``?`` where a version is wanted."""
    return "" if version_id is None else f"versionId={quote(version_id, safe='')}"


def put(
    bucket: str, key: str, *, options: PutOptions, checksum: tuple[str, str] | None
) -> Request[PutResult]:
    """Describes a PutObject request."""
    headers = [*put_headers(options), *condition_headers(options), *_checksum(checksum)]
    return Request("PutObject", "PUT", bucket, key, _put_result, headers=headers)


def create_multipart_upload(
    bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None
) -> Request[MultipartUpload]:
    """Describes a CreateMultipartUpload request."""

    def finish(_: Mapping[str, str], body: bytes) -> MultipartUpload:
        upload_id = xml_fields(body).get("UploadId")
        if not upload_id:
            raise S3Error("the answer names no upload id")
        return MultipartUpload(bucket, key, upload_id)

    headers = put_headers(options)
    if checksum_algorithm is not None:
        headers.append(("x-amz-checksum-algorithm", checksum_algorithm))
        headers.append(("x-amz-checksum-type", checksum_type(checksum_algorithm)))
    return Request("CreateMultipartUpload", "POST", bucket, key, finish, query="uploads=", headers=headers)


def upload_part(
    upload: MultipartUpload, number: int, *, checksum: tuple[str, str] | None
) -> Request[CompletedPart]:
    """Describes an UploadPart request."""

    def finish(headers: Mapping[str, str], _: bytes) -> CompletedPart:
        return CompletedPart(number, headers.get("etag", ""), checksum and checksum[1])

    return Request(
        "UploadPart",
        "PUT",
        upload.bucket,
        upload.key,
        finish,
        query=f"partNumber={number}&{_upload_id(upload)}",
        headers=_checksum(checksum),
    )


def complete_multipart_upload(
    upload: MultipartUpload, *, options: PutOptions, checksum: tuple[str, str] | None
) -> Request[PutResult]:
    """Describes a CompleteMultipartUpload request."""
    headers = [*condition_headers(options), *_checksum(checksum)]
    if checksum is not None:
        headers.append(("x-amz-checksum-type", checksum_type(checksum[0])))
    return Request(
        "CompleteMultipartUpload",
        "POST",
        upload.bucket,
        upload.key,
        _put_result,
        query=_upload_id(upload),
        headers=headers,
    )


def abort_multipart_upload(upload: MultipartUpload) -> Request[None]:
    """Describes an AbortMultipartUpload request."""
    return Request(
        "AbortMultipartUpload",
        "DELETE",
        upload.bucket,
        upload.key,
        lambda _headers, _body: None,
        query=_upload_id(upload),
        ignored=NotFoundError,
    )


def error_of_answer(
    *, operation: str, bucket: str, key: str, status: int, headers: Mapping[str, str], body: bytes | None
) -> S3Error:
    """Makes the error that an answer tells; names of headers are in lower case."""
    # White space may come before the declaration, to keep the connection alive.
    fields = xml_fields((body or b"").strip())
    return error_from_response(
        operation=operation,
        bucket=bucket,
        key=key,
        status=status,
        code=fields.get("Code"),
        message=fields.get("Message"),
        request_id=headers.get("x-amz-request-id"),
        host_id=headers.get("x-amz-id-2"),
        region=headers.get("x-amz-bucket-region") or fields.get("Region"),
    )


def _checksum(checksum: tuple[str, str] | None) -> Headers:
    return [] if checksum is None else [(checksum_header(checksum[0]), checksum[1])]


def _upload_id(upload: MultipartUpload) -> str:
    return f"uploadId={quote(upload.upload_id, safe='')}"


def _put_result(headers: Mapping[str, str], body: bytes) -> PutResult:
    etag = headers.get("etag") or xml_fields(body.strip()).get("ETag", "")
    return PutResult(etag, headers.get("x-amz-version-id"))
