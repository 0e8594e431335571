"""S3's headers and XML bodies, as values: what every transport that speaks HTTP itself needs."""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

from s3torch.core.errors import TruncatedError
from s3torch.core.models import HeadObjectResult, RestoreStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from s3torch.core.config import S3ClientConfig
    from s3torch.core.models import CompletedPart, PutOptions
    from s3torch.core.ranges import ByteRange

_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_RESTORE = re.compile(r'ongoing-request="(true|false)"(?:, expiry-date="([^"]*)")?')


def checksum_header(algorithm: str) -> str:
    """Names the header that carries a checksum of this algorithm."""
    return _CHECKSUM + algorithm.lower()


def common_headers(config: S3ClientConfig, operation: str) -> list[tuple[str, str]]:  # noqa: ARG001
    """Gives the headers that the settings of a client add to a request of this S3 operation."""
    return [("x-amz-request-payer", "requester")] if config.requester_pays else []


def put_headers(options: PutOptions) -> list[tuple[str, str]]:
    """Gives the headers that store an object as the options say, without the conditions."""
    headers = [(_META + name, value) for name, value in options.metadata.items()]
    if options.content_type is not None:
        headers.append(("Content-Type", options.content_type))
    if options.storage_class is not None:
        headers.append(("x-amz-storage-class", options.storage_class))
    return headers


def condition_headers(options: PutOptions) -> list[tuple[str, str]]:
    """Gives the headers of the conditions under which an object may appear."""
    conditions = (("If-None-Match", options.if_none_match), ("If-Match", options.if_match))
    return [(name, value) for name, value in conditions if value is not None]


def head_from_headers(headers: Mapping[str, str]) -> HeadObjectResult:
    """Reads the facts of an object from the headers of a GET; names are in lower case.

    The size is that of the whole object: from ``Content-Range`` if there is one, else ``Content-Length``.
    """
    content_range = headers.get("content-range", "")
    total = content_range.rpartition("/")[2]
    modified = headers.get("last-modified")
    whole = "x-amz-checksum-type" not in headers or headers["x-amz-checksum-type"] == "FULL_OBJECT"
    return HeadObjectResult(
        etag=headers.get("etag", ""),
        size=int(total) if total.isdecimal() else int(headers.get("content-length", "0")),
        last_modified=int(parsedate_to_datetime(modified).timestamp()) if modified else 0,
        storage_class=headers.get("x-amz-storage-class"),
        restore_status=restore_status(headers.get("x-amz-restore")),
        version_id=headers.get("x-amz-version-id"),
        content_type=headers.get("content-type"),
        metadata={k.removeprefix(_META): v for k, v in headers.items() if k.startswith(_META)},
        checksums={
            name.removeprefix(_CHECKSUM).upper(): value
            for name, value in headers.items()
            # A value with a hyphen is a checksum of checksums, not of the bytes.
            if name.startswith(_CHECKSUM) and whole and "-" not in value and not content_range
            if name != "x-amz-checksum-type"
        },
    )


def announced_length(headers: Mapping[str, str], byte_range: ByteRange | None) -> int | None:
    """Tells how long the body of a GET has to be; names of headers are in lower case.

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
    expiry = int(parsedate_to_datetime(found[2]).timestamp()) if found[2] else None
    return RestoreStatus(found[1] == "true", expiry)


def xml_fields(body: bytes | None) -> dict[str, str]:
    """Reads the elements directly below the root of an XML answer; empty if it is no XML."""
    try:
        root = ET.fromstring(body or b"")  # noqa: S314 - Expat limits entity expansion.
    except ET.ParseError:
        return {}
    return {child.tag.rpartition("}")[2]: child.text or "" for child in root}


def complete_body(parts: Sequence[CompletedPart], algorithm: str | None) -> bytes:
    """Writes the body of a CompleteMultipartUpload request."""
    name = f"Checksum{algorithm}"

    def lines() -> Iterable[str]:
        yield '<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        for part in parts:
            checksum = f"<{name}>{part.checksum}</{name}>" if algorithm and part.checksum else ""
            yield (
                f"<Part><PartNumber>{part.number}</PartNumber>"
                f"<ETag>{escape(part.etag)}</ETag>{checksum}</Part>"
            )
        yield "</CompleteMultipartUpload>"

    return "".join(lines()).encode()
