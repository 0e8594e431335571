"""Operations of multipart uploads."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from s3torch.core._config import checksum_type
from s3torch.core.errors import NotFoundError, S3Error
from s3torch.core.models import CompletedPart, MultipartUpload, PutResult
from s3torch.core.requests._headers import checksum_headers, condition_headers, put_headers
from s3torch.core.requests._objects import promised, put_result, source_headers
from s3torch.core.requests._request import Answer, Request, query_of, xml_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core.models import PutOptions
    from s3torch.core.ranges import ByteRange


def create_multipart_upload(
    bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None = None
) -> Request[MultipartUpload]:
    """Begins a multipart upload.

    Args:
        bucket: The bucket.
        key: The key.
        options: How the object will be stored; the conditions go with the completion.
        checksum_algorithm: The algorithm of the parts' checksums; that of the whole object is of type
            FULL_OBJECT, but with SHA256, which S3 has only as COMPOSITE.
    """

    def read(answer: Answer) -> MultipartUpload:
        upload_id = xml_fields(answer.body).get("UploadId")
        if not upload_id:
            raise S3Error("the answer names no upload id")
        return MultipartUpload(bucket, key, upload_id)

    headers = put_headers(options)
    if checksum_algorithm is not None:
        headers.append(("x-amz-checksum-algorithm", checksum_algorithm))
        headers.append(("x-amz-checksum-type", checksum_type(checksum_algorithm)))
    return Request(
        operation="CreateMultipartUpload",
        method="POST",
        bucket=bucket,
        key=key,
        read=read,
        query="uploads=",
        headers=headers,
    )


def upload_part(
    upload: MultipartUpload, number: int, *, checksum: tuple[str, str] | None = None
) -> Request[CompletedPart]:
    """Stores the part with this number, from 1; its bytes are the ``body`` of ``Transport.send``."""

    def read(answer: Answer) -> CompletedPart:
        return CompletedPart(number, promised(answer.headers.get("etag")), checksum and checksum[1])

    return Request(
        operation="UploadPart",
        method="PUT",
        bucket=upload.bucket,
        key=upload.key,
        read=read,
        query=query_of(partNumber=number, uploadId=upload.upload_id),
        headers=checksum_headers(checksum),
    )


def upload_part_copy(
    upload: MultipartUpload,
    number: int,
    src_bucket: str,
    src_key: str,
    *,
    byte_range: ByteRange,
    version_id: str | None = None,
    if_match: str | None = None,
) -> Request[CompletedPart]:
    """Makes a part of up to 5 GiB of bytes of another object.

    Args:
        upload: The upload.
        number: The number of the part, from 1.
        src_bucket: The bucket of the source.
        src_key: Its key.
        byte_range: The bytes of the source.
        version_id: The version of the source.
        if_match: The ETag that the source must have, else ``PreconditionFailedError``.
    """
    headers = source_headers(src_bucket, src_key, version_id, if_match)
    return Request(
        operation="UploadPartCopy",
        method="PUT",
        bucket=upload.bucket,
        key=upload.key,
        read=lambda answer: CompletedPart(number, promised(xml_fields(answer.body).get("ETag"))),
        query=query_of(partNumber=number, uploadId=upload.upload_id),
        headers=[*headers, ("x-amz-copy-source-range", byte_range.header)],
    )


def complete_multipart_upload(
    upload: MultipartUpload,
    parts: Sequence[CompletedPart],
    *,
    options: PutOptions,
    checksum: tuple[str, str] | None = None,
) -> Request[PutResult]:
    """Makes the object of a multipart upload appear.

    Args:
        upload: The upload.
        parts: All parts in the order of their numbers.
        options: The conditions under which the object may appear.
        checksum: The algorithm and the checksum of the whole object in base64.
    """
    headers = [*condition_headers(options), *checksum_headers(checksum)]
    if checksum is not None:
        headers.append(("x-amz-checksum-type", checksum_type(checksum[0])))
    return Request(
        operation="CompleteMultipartUpload",
        method="POST",
        bucket=upload.bucket,
        key=upload.key,
        read=put_result,
        query=query_of(uploadId=upload.upload_id),
        headers=headers,
        content="".join(_part_list(parts, checksum and checksum[0])).encode(),
    )


def _part_list(parts: Sequence[CompletedPart], algorithm: str | None) -> Iterator[str]:
    name = f"Checksum{algorithm}"
    yield '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    for part in parts:
        checksum = f"<{name}>{part.checksum}</{name}>" if algorithm and part.checksum else ""
        yield (
            f"<Part><PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>{checksum}</Part>"
        )
    yield "</CompleteMultipartUpload>"


def abort_multipart_upload(upload: MultipartUpload) -> Request[None]:
    """Removes the parts of an upload; one that is gone already is no error."""

    def recover(error: S3Error, _: bytes | None) -> None:
        if not isinstance(error, NotFoundError):
            raise error

    return Request(
        operation="AbortMultipartUpload",
        method="DELETE",
        bucket=upload.bucket,
        key=upload.key,
        read=lambda _: None,
        query=query_of(uploadId=upload.upload_id),
        recover=recover,
    )
