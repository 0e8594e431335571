"""Operations on objects."""

from __future__ import annotations

import base64
import hashlib
import re
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.sax.saxutils import escape

from s3torch.core.errors import ConfigurationError, RangeNotSatisfiableError, S3Error, TruncatedError
from s3torch.core.models import DeleteFailure, GetResult, HeadObjectResult, PutResult, RestoreStatus
from s3torch.core.requests._headers import checksum_headers, condition_headers, put_headers
from s3torch.core.requests._request import Answer, Request, local_name, query_of, xml_fields, xml_root

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from s3torch.core.models import PutOptions
    from s3torch.core.ranges import ByteRange

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
MAX_DELETED = 1000
_OWN = "x-amz-"
_OF_ALL_ANSWERS = {"x-amz-request-id", "x-amz-id-2"}
_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-"
_CHECKSUM_TYPE = "x-amz-checksum-type"
# The ETag of an object of several parts.
_OF_PARTS = re.compile(r'-(?!1"?$)\d+"?$')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_RESTORE = re.compile(r'ongoing-request="(true|false)"(?:, expiry-date="([^"]*)")?')
_EMPTY = HeadObjectResult(etag="", size=0, last_modified=0)
# What an XML parser would change.
_ENTITIES = {"\r": "&#13;", "\n": "&#10;", "\t": "&#9;"}


def get_object(
    bucket: str,
    key: str,
    *,
    byte_range: ByteRange | None = None,
    if_match: str | None = None,
    version_id: str | None = None,
    at_most: int | None = None,
    checksums: bool = True,
) -> Request[GetResult]:
    """Reads an object or a range of it.

    Args:
        bucket: The bucket.
        key: The key.
        byte_range: The bytes that are wanted; ``None`` for all. At the end of the object the result may be
            shorter than the range.
        if_match: The ETag that the object must have, else ``PreconditionFailedError``.
        version_id: The version that is wanted.
        at_most: How many bytes of the whole object are wanted, from its start; only for transports that
            ``ends_early``.
        checksums: Whether the answer should tell the checksum of the object.
    """
    return Request(
        operation="GetObject",
        method="GET",
        bucket=bucket,
        key=key,
        read=partial(_get_result, byte_range, at_most),
        query="" if version_id is None else query_of(versionId=version_id),
        headers=get_headers(byte_range, if_match, checksums=checksums),
        byte_range=byte_range,
        if_match=if_match,
        streams=True,
        at_most=at_most,
        recover=_empty_object if byte_range is None or not byte_range.start else None,
    )


def _get_result(byte_range: ByteRange | None, at_most: int | None, answer: Answer) -> GetResult:
    announced = announced_length(answer.headers, byte_range)
    if announced is not None and at_most is not None:
        announced = min(announced, at_most)
    if announced is not None and announced != answer.length:
        raise TruncatedError(f"got {answer.length} of {announced} bytes")
    return GetResult(head_from_headers(answer.headers), answer.length, answer.body)


def _empty_object(error: S3Error, body: bytes | None) -> GetResult:
    """An empty object has no byte 0, so a range that begins there cannot be satisfied."""
    if isinstance(error, RangeNotSatisfiableError):
        return GetResult(_EMPTY, 0, body)
    raise error


def get_headers(
    byte_range: ByteRange | None, if_match: str | None, *, checksums: bool = True
) -> list[tuple[str, str]]:
    """Returns the headers of a GetObject request."""
    headers = []
    if byte_range is not None:
        headers.append(("Range", byte_range.header))
    if checksums and (byte_range is None or not byte_range.start):
        # The range may turn out to be the whole object.
        headers.append(("x-amz-checksum-mode", "ENABLED"))
    if if_match is not None:
        headers.append(("If-Match", if_match))
    return headers


def head_object(bucket: str, key: str, *, version_id: str | None = None) -> Request[HeadObjectResult]:
    """Asks for the metadata of an object."""
    return Request(
        operation="HeadObject",
        method="HEAD",
        bucket=bucket,
        key=key,
        read=lambda answer: head_from_headers(answer.headers),
        query=query_of(versionId=version_id),
        headers=[("x-amz-checksum-mode", "ENABLED")],
    )


def head_first_part(bucket: str, key: str, *, version_id: str | None = None) -> Request[int | None]:
    """Asks how many bytes the first part has, of which an object was made; ``None`` where nothing tells."""

    def read(answer: Answer) -> int | None:
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        return None if found is None else int(found[2]) + 1 - int(found[1])

    query = query_of(partNumber=1, versionId=version_id)
    return Request(operation="HeadObject", method="HEAD", bucket=bucket, key=key, read=read, query=query)


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
        operation="PutObject", method="PUT", bucket=bucket, key=key, read=put_result, headers=headers
    )


def put_result(answer: Answer) -> PutResult:
    """Reads the answer of what makes an object appear."""
    etag = promised(answer.headers.get("etag") or xml_fields(answer.body).get("ETag"))
    return PutResult(etag, answer.headers.get("x-amz-version-id"))


def promised(etag: str | None) -> str:
    """Returns the ETag of what was stored, without which nobody knows that it was.

    Raises:
        S3Error: The answer has none.
    """
    if not etag:
        raise S3Error("the answer has no ETag, so nothing tells that the bytes were stored")
    return etag


def delete_object(bucket: str, key: str, *, version_id: str | None = None) -> Request[None]:
    """Deletes an object, or one version of it for good; a missing one is no error."""
    return Request(
        operation="DeleteObject",
        method="DELETE",
        bucket=bucket,
        key=key,
        read=_nothing,
        query=query_of(versionId=version_id),
    )


def delete_objects(bucket: str, targets: Sequence[tuple[str, str | None]]) -> Request[list[DeleteFailure]]:
    """Deletes up to 1,000 objects, or versions of them for good; returns those that could not be deleted.

    Args:
        bucket: The bucket.
        targets: Keys that XML can hold, each with a version or ``None``.

    Raises:
        ConfigurationError: There are more than 1,000 of them.
    """
    if len(targets) > MAX_DELETED:
        raise ConfigurationError(
            f"one request deletes up to {MAX_DELETED} objects, got {len(targets)}", bucket=bucket
        )
    objects = "".join(
        f"<Object><Key>{escape(key, _ENTITIES)}</Key>"
        f"{'' if version is None else f'<VersionId>{escape(version)}</VersionId>'}</Object>"
        for key, version in targets
    )
    content = (
        f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Quiet>true</Quiet>{objects}</Delete>'
    ).encode()
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    return Request(
        operation="DeleteObjects",
        method="POST",
        bucket=bucket,
        key="",
        read=_delete_failures,
        query="delete=",
        # S3 wants a checksum of this body, and this is the one that all stores know.
        headers=[("Content-MD5", digest), ("Content-Type", "application/xml")],
        content=content,
    )


def _delete_failures(answer: Answer) -> list[DeleteFailure]:
    root = xml_root(answer.body)
    errors = [] if root is None else [child for child in root if local_name(child) == "Error"]
    told = [{local_name(fact): fact.text or "" for fact in error} for error in errors]
    return [
        DeleteFailure(
            one.get("Key", ""), one.get("Code", ""), one.get("Message", ""), one.get("VersionId") or None
        )
        for one in told
    ]


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
    promised(xml_fields(answer.body).get("ETag"))


def source_headers(
    bucket: str, key: str, version_id: str | None, if_match: str | None
) -> list[tuple[str, str]]:
    """Names the source of a copy."""
    within = "/object/" if bucket.startswith("arn:") else "/"
    source = quote(f"{bucket}{within}{key}", safe="/~")
    if version_id is not None:
        source = f"{source}?{query_of(versionId=version_id)}"
    condition = [] if if_match is None else [("x-amz-copy-source-if-match", if_match)]
    return [("x-amz-copy-source", source), *condition]


def get_object_tagging(bucket: str, key: str, *, version_id: str | None = None) -> Request[dict[str, str]]:
    """Asks for the tags of an object."""

    def read(answer: Answer) -> dict[str, str]:
        root = xml_root(answer.body)
        tags = [] if root is None else [element for element in root.iter() if local_name(element) == "Tag"]
        pairs = [{local_name(fact): fact.text or "" for fact in tag} for tag in tags]
        return {pair["Key"]: pair["Value"] for pair in pairs}

    query = query_of(tagging="", versionId=version_id)
    return Request(operation="GetObjectTagging", method="GET", bucket=bucket, key=key, read=read, query=query)


def _nothing(_: Answer) -> None:
    return None


def _is_whole(content_range: str) -> bool:
    """Whether a range, if there is one, has all bytes of its object."""
    match = _CONTENT_RANGE.fullmatch(content_range)
    if match is None:
        return not content_range
    first, last, total = map(int, match.groups())
    return first == 0 and last + 1 == total


def head_from_headers(headers: Mapping[str, str]) -> HeadObjectResult:
    """Reads the facts of an object from the headers of a GET; names are in lower case.

    The size is that of the whole object: from ``Content-Range`` if there is one, else ``Content-Length``.
    """
    content_range = headers.get("content-range", "")
    total = content_range.rpartition("/")[2]
    modified = headers.get("last-modified")
    return HeadObjectResult(
        etag=headers.get("etag", ""),
        size=int(total) if total.isdecimal() else int(headers.get("content-length", "0")),
        last_modified=_seconds(modified) if modified else 0,
        content_type=headers.get("content-type"),
        cache_control=headers.get("cache-control"),
        content_disposition=headers.get("content-disposition"),
        content_encoding=headers.get("content-encoding"),
        content_language=headers.get("content-language"),
        expires=headers.get("expires"),
        **_amazon_facts(headers, is_whole=_is_whole(content_range)),
    )


def _amazon_facts(headers: Mapping[str, str], *, is_whole: bool) -> dict[str, Any]:
    """Reads what S3 tells in headers of its own, of which most answers have few."""
    own = [name for name in headers if name.startswith(_OWN) and name not in _OF_ALL_ANSWERS]
    if not own:
        return {}
    kind = headers.get(_CHECKSUM_TYPE)
    if kind is None and "content-range" in headers and _OF_PARTS.search(headers.get("etag", "")):
        # Of a range that has all bytes S3 tells the checksum without the number of parts.
        kind = "COMPOSITE"
    return {
        "storage_class": headers.get("x-amz-storage-class"),
        "restore_status": restore_status(headers.get("x-amz-restore")),
        "version_id": headers.get("x-amz-version-id"),
        "metadata": {name.removeprefix(_META): headers[name] for name in own if name.startswith(_META)},
        "checksums": {
            name.removeprefix(_CHECKSUM).upper(): headers[name]
            for name in own
            if name.startswith(_CHECKSUM) and is_whole and name != _CHECKSUM_TYPE
            # A CRC64NVME is always of the bytes.
            if kind != "COMPOSITE" or "-" in headers[name] or name == f"{_CHECKSUM}crc64nvme"
        },
        "server_side_encryption": headers.get("x-amz-server-side-encryption"),
        "kms_key_id": headers.get("x-amz-server-side-encryption-aws-kms-key-id"),
        "tag_count": int(headers.get("x-amz-tagging-count") or 0),
    }


@lru_cache(maxsize=1024)
def _seconds(date: str) -> int:
    """Reads a date of HTTP; objects of one upload often share theirs, and to read it takes long."""
    return int(parsedate_to_datetime(date).timestamp())


def announced_length(headers: Mapping[str, str], byte_range: ByteRange | None) -> int | None:
    """Returns how long the body of a GET has to be; names of headers are in lower case.

    Returns:
        The length, ``None`` where the response does not announce one.

    Raises:
        TruncatedError: The response has other bytes than those that were asked for.
    """
    told = headers.get("content-length", "")
    length = int(told) if told.isdecimal() else None
    if byte_range is None:
        return length
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None:
        if byte_range.start == 0 and length is not None and length <= len(byte_range):
            return length
        raise TruncatedError("the store answered a request for a range without a range")
    first, last, size = (int(number) for number in found.groups())
    if first != byte_range.start or last + 1 != min(byte_range.stop, size):
        raise TruncatedError(f"asked for {byte_range.header}, got {found[0]}")
    return last + 1 - first


def restore_status(header: str | None) -> RestoreStatus | None:
    """Reads the header ``x-amz-restore`` of an archived object."""
    found = _RESTORE.search(header or "")
    if found is None:
        return None
    expiry = _seconds(found[2]) if found[2] else None
    return RestoreStatus(found[1] == "true", expiry)
