"""Operations that store objects: in one request, in parts, as copies of others."""

from __future__ import annotations

import base64
import json
from datetime import UTC
from email.utils import format_datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode
from xml.sax.saxutils import escape

from s3torch.core._config import checksum_type
from s3torch.core.errors import NotFoundError, S3Error
from s3torch.core.models import CompletedPart, MultipartUpload, PutResult
from s3torch.core.requests._request import (
    Answer,
    Request,
    promised,
    query_of,
    quoted_etag,
    result_document,
    xml_fields,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

    from s3torch.core.models import PutOptions
    from s3torch.core.ranges import ByteRange

_META = "x-amz-meta-"


def put_object(
    bucket: str, key: str, *, options: PutOptions, checksum: tuple[str, str] | None = None
) -> Request[PutResult]:
    """Stores an object of up to 5 GiB; its bytes are the ``body`` of ``Transport.send``.

    Args:
        bucket: The bucket.
        key: The key.
        options: How the object is stored.
        checksum: The algorithm and the checksum of the bytes in base64.
    """
    headers = [*put_headers(options), *condition_headers(options), *checksum_headers(checksum)]
    return Request(
        operation="PutObject", method="PUT", bucket=bucket, key=key, read=_put_result, headers=headers
    )


def _put_result(answer: Answer) -> PutResult:
    return PutResult(promised(answer.headers, "etag"), answer.headers.get("x-amz-version-id"))


def copy_object(
    src_bucket: str,
    src_key: str,
    dst_bucket: str,
    dst_key: str,
    *,
    options: PutOptions | None = None,
    version_id: str | None = None,
    if_match: str | None = None,
) -> Request[None]:
    """Copies an object of up to 5 GiB within S3.

    Args:
        src_bucket: The bucket of the source.
        src_key: Its key.
        dst_bucket: The bucket of the copy.
        dst_key: Its key.
        options: How the copy is stored. Metadata and what else describes the content are those of the source,
            unless the options say any of that; so are the tags, unless the options have some.
        version_id: The version of the source.
        if_match: The ETag that the source must have, else ``PreconditionFailedError``.
    """
    headers = source_headers(src_bucket, src_key, version_id, if_match)
    if options is not None:
        headers += [*put_headers(options), *condition_headers(options)]
        if options.describes:
            headers.append(("x-amz-metadata-directive", "REPLACE"))
        if options.tags:
            headers.append(("x-amz-tagging-directive", "REPLACE"))
    return Request(
        operation="CopyObject", method="PUT", bucket=dst_bucket, key=dst_key, read=_copied, headers=headers
    )


def _copied(answer: Answer) -> None:
    _etag_in(answer, "CopyObjectResult")


def _etag_in(answer: Answer, document: str) -> str:
    """Returns the ETag of what was stored, without which nobody knows that it was."""
    return promised(xml_fields(result_document(answer, document)), "ETag")


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
        begun = xml_fields(result_document(answer, "InitiateMultipartUploadResult"))
        return MultipartUpload(bucket, key, promised(begun, "UploadId"))

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
        return CompletedPart(number, promised(answer.headers, "etag"), checksum and checksum[1])

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
        read=lambda answer: CompletedPart(number, _etag_in(answer, "CopyPartResult")),
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
        read=_completed,
        query=query_of(uploadId=upload.upload_id),
        headers=headers,
        content="".join(_part_list(parts, checksum and checksum[0])).encode(),
    )


def _completed(answer: Answer) -> PutResult:
    # S3 begins to answer before it has completed anything, so no header tells that it has.
    etag = _etag_in(answer, "CompleteMultipartUploadResult")
    return PutResult(etag, answer.headers.get("x-amz-version-id"))


def _part_list(parts: Sequence[CompletedPart], algorithm: str | None) -> Iterator[str]:
    name = f"Checksum{algorithm}"
    yield '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    for part in parts:
        checksum = f"<{name}>{part.checksum}</{name}>" if algorithm and part.checksum else ""
        # A proxy may have made it weak; the store knows its own.
        etag = escape(part.etag.removeprefix("W/"))
        yield f"<Part><PartNumber>{part.number}</PartNumber><ETag>{etag}</ETag>{checksum}</Part>"
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


def source_headers(
    bucket: str, key: str, version_id: str | None, if_match: str | None
) -> list[tuple[str, str]]:
    """Names the source of a copy."""
    within = "/object/" if bucket.startswith("arn:") else "/"
    source = quote(f"{bucket}{within}{key}", safe="/~")
    if version_id is not None:
        source = f"{source}?{query_of(versionId=version_id)}"
    condition = [] if if_match is None else [("x-amz-copy-source-if-match", quoted_etag(if_match))]
    return [("x-amz-copy-source", source), *condition]


def checksum_headers(checksum: tuple[str, str] | None) -> list[tuple[str, str]]:
    """Returns the header that carries a checksum, of which the algorithm comes first."""
    return [] if checksum is None else [(f"x-amz-checksum-{checksum[0].lower()}", checksum[1])]


def put_headers(options: PutOptions) -> list[tuple[str, str]]:
    """Returns the headers that store an object as the options say, without the conditions."""
    headers = [(_META + name, value) for name, value in options.metadata.items()]
    given = (
        ("Content-Type", options.content_type),
        ("Cache-Control", options.cache_control),
        ("Content-Disposition", options.content_disposition),
        ("Content-Encoding", options.content_encoding),
        ("Content-Language", options.content_language),
        ("Expires", http_date(options.expires)),
        ("x-amz-storage-class", options.storage_class),
        ("x-amz-acl", options.acl),
        ("x-amz-tagging", tagging(options.tags)),
        ("x-amz-server-side-encryption", options.server_side_encryption),
        ("x-amz-server-side-encryption-aws-kms-key-id", options.kms_key_id),
        ("x-amz-server-side-encryption-context", encryption_context(options.kms_encryption_context)),
        (
            "x-amz-server-side-encryption-bucket-key-enabled",
            None if options.bucket_key is None else str(options.bucket_key).lower(),
        ),
    )
    return headers + [(name, value) for name, value in given if value is not None]


def http_date(when: datetime | None) -> str | None:
    """Writes a time as headers have it; ``None`` for none."""
    return None if when is None else format_datetime(when.astimezone(UTC), usegmt=True)


def tagging(tags: Mapping[str, str]) -> str | None:
    """Writes tags as S3 takes them in a header; ``None`` for none."""
    return urlencode(tags, quote_via=quote, safe="") or None


def encryption_context(context: Mapping[str, str]) -> str | None:
    """Writes an encryption context as S3 takes it in a header; ``None`` for none."""
    return base64.b64encode(json.dumps(dict(context)).encode()).decode() if context else None


def condition_headers(options: PutOptions) -> list[tuple[str, str]]:
    """Returns the headers of the conditions under which an object may appear."""
    conditions = (("If-None-Match", options.if_none_match), ("If-Match", options.if_match))
    return [(name, quoted_etag(value)) for name, value in conditions if value is not None]
