"""Operations on objects that are there: read, asked about, deleted."""

from __future__ import annotations

import base64
import hashlib
import re
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from s3torch.core.errors import (
    ConfigurationError,
    RangeNotSatisfiableError,
    S3Error,
    ServerError,
    TruncatedError,
)
from s3torch.core.models import DeleteFailure, GetResult, HeadObjectResult, RestoreStatus
from s3torch.core.ranges import ByteRange
from s3torch.core.requests._request import (
    Answer,
    Request,
    is_weak,
    local_name,
    malformed,
    natural,
    promised,
    query_of,
    quoted_etag,
    result_document,
    same_etag,
    xml_fields,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
MAX_DELETED = 1000
_OWN = "x-amz-"
_OF_ALL_ANSWERS = {"x-amz-request-id", "x-amz-id-2"}
_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-"
_CHECKSUM_TYPE = "x-amz-checksum-type"
# The ETag of an object of several parts.
_OF_PARTS = re.compile(r'-(?!1"?$)\d+"?$')
CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19})")
# The code of answers that do not tell a size; they would not the next time either.
NO_LENGTH = "MissingContentLength"
PARTIAL = 206
# What brings an object.
OBJECT_STATUS = {200, PARTIAL}
# What tells where a body ends.
_ENDS = {"content-length", "content-range", "transfer-encoding"}
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
    size: int | None = None,
) -> Request[GetResult]:
    """Reads an object or a range of it.

    Args:
        bucket: The bucket.
        key: The key.
        byte_range: The bytes that are wanted; ``None`` for all. At the end of the object the result may be
            shorter than the range.
        if_match: The ETag that the object must have, else ``PreconditionFailedError``; a weak one, or one
            that no header can have, is not sent.
        version_id: The version that is wanted.
        at_most: How many bytes of the whole object are wanted, from its start; only for transports that
            ``ends_early``.
        size: The size of the whole object, where it is known; an answer that tells none must have so much.
    """
    if if_match is not None and (is_weak(if_match) or not if_match.isprintable()):
        # It holds for nothing, whatever the object is; who reads on compares the ETags of the answers. A
        # listing may have any characters.
        if_match = None
    return Request(
        operation="GetObject",
        method="GET",
        bucket=bucket,
        key=key,
        read=partial(_get_result, byte_range, at_most, size, if_match),
        query="" if version_id is None else query_of(versionId=version_id),
        headers=get_headers(byte_range, if_match),
        byte_range=byte_range,
        if_match=if_match,
        streams=True,
        at_most=at_most,
        recover=_empty_object if byte_range is None or not byte_range.start else None,
    )


def _get_result(
    byte_range: ByteRange | None, at_most: int | None, size: int | None, etag: str | None, answer: Answer
) -> GetResult:
    if at_most is not None and answer.status == PARTIAL:
        # The transport had to ask for a range after all.
        byte_range = ByteRange(0, at_most)
    announced = announced_length(answer.headers, byte_range, status=answer.status)
    if announced is not None and at_most is not None:
        announced = min(announced, at_most)
    if announced is not None and announced != answer.length:
        raise TruncatedError(f"got {answer.length} of {announced} bytes")
    told = answer.headers.get("etag")
    is_same = not told or etag is None or same_etag(told, etag)
    if announced is None and size not in {None, answer.length} and is_same:
        # A proxy may end a body in good order where what it passes on has broken off.
        raise TruncatedError(f"got {answer.length} of {size} bytes; the answer does not tell its length")
    if byte_range is not None and answer.length > len(byte_range):
        raise TruncatedError(f"asked for {byte_range.header}, got {answer.length} bytes")
    return GetResult(head_from_headers(answer.headers, answer.length), answer.length, answer.body)


def _empty_object(error: S3Error, body: bytes | None) -> GetResult:
    """An empty object has no byte 0, so a range that begins there cannot be satisfied."""
    if isinstance(error, RangeNotSatisfiableError):
        return GetResult(_EMPTY, 0, body)
    raise error


def get_headers(byte_range: ByteRange | None, if_match: str | None) -> list[tuple[str, str]]:
    """Returns the headers of a GetObject request."""
    headers = []
    if byte_range is not None:
        headers.append(("Range", byte_range.header))
    if byte_range is None or not byte_range.start:
        # The range may turn out to be the whole object.
        headers.append(("x-amz-checksum-mode", "ENABLED"))
    if if_match is not None:
        headers.append(("If-Match", quoted_etag(if_match)))
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


def get_for_head(head: Request[HeadObjectResult]) -> Request[HeadObjectResult]:
    """Asks for what a HEAD would tell with the first byte, of a server whose HEADs have no length."""
    first: Request[Any] = get_object(head.bucket, head.key, byte_range=ByteRange(0, 1))
    return first._replace(
        query=head.query,
        read=lambda answer: first.read(answer).head,
        recover=lambda error, body: _empty_object(error, body).head,
    )


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
    return Request(
        operation="DeleteObjects",
        method="POST",
        bucket=bucket,
        key="",
        read=_delete_failures,
        query="delete=",
        headers=_document_headers(content),
        content=content,
    )


def _document_headers(content: bytes) -> list[tuple[str, str]]:
    # S3 wants a checksum of such a body, and this is the one that all stores know.
    digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    return [("Content-MD5", digest), ("Content-Type", "application/xml")]


def _delete_failures(answer: Answer) -> list[DeleteFailure]:
    root = result_document(answer, "DeleteResult")
    told = [xml_fields(child) for child in root if local_name(child) == "Error"]
    return [
        DeleteFailure(
            one.get("Key", ""), one.get("Code", ""), one.get("Message", ""), one.get("VersionId") or None
        )
        for one in told
    ]


def get_object_tagging(bucket: str, key: str, *, version_id: str | None = None) -> Request[dict[str, str]]:
    """Asks for the tags of an object."""

    def read(answer: Answer) -> dict[str, str]:
        elements = result_document(answer, "Tagging").iter()
        pairs = [xml_fields(element) for element in elements if local_name(element) == "Tag"]
        return {promised(pair, "Key"): pair.get("Value", "") for pair in pairs}

    query = query_of(tagging="", versionId=version_id)
    return Request(operation="GetObjectTagging", method="GET", bucket=bucket, key=key, read=read, query=query)


def put_object_tagging(
    bucket: str, key: str, tags: Mapping[str, str], *, version_id: str | None = None
) -> Request[None]:
    """Replaces the tags of an object."""
    pairs = "".join(
        f"<Tag><Key>{escape(name, _ENTITIES)}</Key><Value>{escape(value, _ENTITIES)}</Value></Tag>"
        for name, value in tags.items()
    )
    content = (
        f'<Tagging xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><TagSet>{pairs}</TagSet></Tagging>'
    ).encode()
    return Request(
        operation="PutObjectTagging",
        method="PUT",
        bucket=bucket,
        key=key,
        read=_nothing,
        query=query_of(tagging="", versionId=version_id),
        headers=_document_headers(content),
        content=content,
    )


def _nothing(_: Answer) -> None:
    return None


def head_from_headers(headers: Mapping[str, str], length: int | None = None) -> HeadObjectResult:
    """Reads the facts of an object from the headers of a GET; names are in lower case.

    Args:
        headers: The headers.
        length: How many bytes have come, if they are all of the object where the headers do not tell.

    Raises:
        ServerError: A value is malformed, or nothing tells the size of the whole object.
    """
    found = CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    size = int(found[3]) if found is not None else _content_length(headers)
    size = length if size is None else size
    if size is None:
        text = "the answer does not tell the size of the object: it has no Content-Length"
        raise ServerError(text, code=NO_LENGTH)
    modified = headers.get("last-modified")
    return HeadObjectResult(
        etag=headers.get("etag", ""),
        size=size,
        last_modified=_seconds(modified) if modified else 0,
        content_type=headers.get("content-type"),
        cache_control=headers.get("cache-control"),
        content_disposition=headers.get("content-disposition"),
        content_encoding=headers.get("content-encoding"),
        content_language=headers.get("content-language"),
        expires=headers.get("expires"),
        **_amazon_facts(headers, is_whole=found is None or (found[1] == "0" and int(found[2]) + 1 == size)),
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
            if name.startswith(_CHECKSUM) and is_whole and name != _CHECKSUM_TYPE and headers[name]
            # A CRC64NVME is always of the bytes.
            if kind != "COMPOSITE" or "-" in headers[name] or name == f"{_CHECKSUM}crc64nvme"
        },
        "server_side_encryption": headers.get("x-amz-server-side-encryption"),
        "kms_key_id": headers.get("x-amz-server-side-encryption-aws-kms-key-id"),
        "tag_count": natural("x-amz-tagging-count", headers.get("x-amz-tagging-count") or "0"),
    }


@lru_cache(maxsize=1024)
def _seconds(date: str) -> int:
    """Reads a date of HTTP; objects of one upload often share theirs, and to read it takes long."""
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, OverflowError) as exc:
        raise malformed("date", date) from exc


def announced_length(
    headers: Mapping[str, str], byte_range: ByteRange | None, *, status: int = 200
) -> int | None:
    """Returns how long the body of a GET has to be; names of headers are in lower case.

    Args:
        headers: The headers.
        byte_range: The bytes that were asked for; ``None`` for all.
        status: The status, which tells a range from a whole object.

    Returns:
        The length, ``None`` where the response does not announce one.

    Raises:
        TruncatedError: The response has other bytes than those that were asked for, or an unknown end.
        ServerError: It has no bytes of an object, or a malformed length.
    """
    if status not in OBJECT_STATUS:
        raise ServerError(f"the store answered with no object, but with status {status}", status=status)
    length = _content_length(headers)
    told = headers.get("content-range", "")
    found = CONTENT_RANGE.fullmatch(told)
    if found is None:
        is_whole = not told and status != PARTIAL
        if is_whole and byte_range is None:
            return length
        if is_whole and byte_range is not None and not byte_range.start and (length or 0) <= len(byte_range):
            # All bytes of a small object are the answer to such a range.
            check_end(headers)
            return length
        raise TruncatedError(f"the store answered a request for a range without a range ({status}, {told!r})")
    first, last, size = (int(number) for number in found.groups())
    start, stop = (0, size) if byte_range is None else (byte_range.start, min(byte_range.stop, size))
    if first != start or last + 1 != stop:
        asked = "all bytes" if byte_range is None else byte_range.header
        raise TruncatedError(f"asked for {asked}, got {found[0]}")
    return stop - start


def check_end(headers: Mapping[str, str]) -> None:
    """Refuses an answer whose body ends with the connection: one that breaks looks the same."""
    if headers.keys().isdisjoint(_ENDS):
        raise TruncatedError("the answer does not tell where its body ends")


def _content_length(headers: Mapping[str, str]) -> int | None:
    told = headers.get("content-length")
    if told is not None and "," in told:
        # A length that is told twice in the same way is one.
        told = ",".join({one.strip() for one in told.split(",")})
    return None if told is None else natural("Content-Length", told)


def restore_status(header: str | None) -> RestoreStatus | None:
    """Reads the header ``x-amz-restore`` of an archived object."""
    found = _RESTORE.search(header or "")
    if found is None:
        return None
    expiry = _seconds(found[2]) if found[2] else None
    return RestoreStatus(found[1] == "true", expiry)
