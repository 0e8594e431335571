"""S3's headers, as values: how they are written, and what those of an answer say."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from datetime import UTC
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from s3torch.core.errors import TruncatedError
from s3torch.core.models import HeadObjectResult, RestoreStatus

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from s3torch.core.config import S3ClientConfig
    from s3torch.core.models import PutOptions
    from s3torch.core.ranges import ByteRange

_OWN = "x-amz-"
_OF_ALL_ANSWERS = {"x-amz-request-id", "x-amz-id-2"}
_META = "x-amz-meta-"
_CHECKSUM = "x-amz-checksum-"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
# What needs the key of objects that are encrypted with a key of the customer (SSE-C).
_KEYED = {
    "CompleteMultipartUpload",
    "CreateMultipartUpload",
    "GetObject",
    "GetObjectAttributes",
    "HeadObject",
    "ListParts",
    "PutObject",
    "UploadPart",
}
_COPIES = {"CopyObject", "UploadPartCopy"}
_RESTORE = re.compile(r'ongoing-request="(true|false)"(?:, expiry-date="([^"]*)")?')


def get_headers(byte_range: ByteRange | None, if_match: str | None) -> list[tuple[str, str]]:
    """Returns the headers of a GetObject request."""
    headers = []
    if byte_range is not None:
        headers.append(("Range", byte_range.header))
    if byte_range is None or not byte_range.start:
        # The range may turn out to be the whole object.
        headers.append(("x-amz-checksum-mode", "ENABLED"))
    if if_match is not None:
        headers.append(("If-Match", if_match))
    return headers


def checksum_headers(checksum: tuple[str, str] | None) -> list[tuple[str, str]]:
    """Returns the header that carries a checksum, of which the algorithm comes first."""
    return [] if checksum is None else [(_CHECKSUM + checksum[0].lower(), checksum[1])]


def common_headers(config: S3ClientConfig, operation: str) -> list[tuple[str, str]]:
    """Returns the headers that the settings of a client add to a request of this S3 operation.

    Raises:
        ConfigurationError: The function that gives the customer's key fails, or gives none.
    """
    headers = [("x-amz-request-payer", "requester")] if config.requester_pays else []
    copies = operation in _COPIES
    owner = config.expected_bucket_owner
    if owner is not None:
        headers.append(("x-amz-expected-bucket-owner", owner))
        if copies:
            headers.append(("x-amz-source-expected-bucket-owner", owner))
    if config.sse_customer_key is not None and (copies or operation in _KEYED):
        key = config.customer_key()
        headers += _customer_key_headers("x-amz-", key)
        if copies:
            headers += _customer_key_headers("x-amz-copy-source-", key)
    return headers


def _customer_key_headers(prefix: str, key: bytes) -> list[tuple[str, str]]:
    digest = hashlib.md5(key, usedforsecurity=False).digest()
    name = f"{prefix}server-side-encryption-customer"
    return [
        (f"{name}-algorithm", "AES256"),
        (f"{name}-key", base64.b64encode(key).decode()),
        (f"{name}-key-MD5", base64.b64encode(digest).decode()),
    ]


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
    return [(name, value) for name, value in conditions if value is not None]


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
    of_all = is_whole and headers.get("x-amz-checksum-type", "FULL_OBJECT") == "FULL_OBJECT"
    return {
        "storage_class": headers.get("x-amz-storage-class"),
        "restore_status": restore_status(headers.get("x-amz-restore")),
        "version_id": headers.get("x-amz-version-id"),
        "metadata": {name.removeprefix(_META): headers[name] for name in own if name.startswith(_META)},
        "checksums": {
            name.removeprefix(_CHECKSUM).upper(): headers[name]
            for name in own
            # A value with a hyphen is a checksum of checksums, not of the bytes.
            if name.startswith(_CHECKSUM) and of_all and "-" not in headers[name]
            if name != "x-amz-checksum-type"
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
