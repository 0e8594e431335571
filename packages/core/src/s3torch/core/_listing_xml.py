"""Pages of listings, read from their XML.

botocore takes about 70 µs of the processor for each key of a listing, most of it in a parser that knows all
services, and for times; this takes about 8 µs.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

from s3torch.core.models import ListObjectResult, ObjectInfo, RestoreStatus

if TYPE_CHECKING:
    from collections.abc import Callable

# Under this name the page stands in what the boto3 client returns.
PAGE = "S3torchPage"

_ROOT = "ListBucketResult"
_OK = 200


def take_listing(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Reads the answer to ListObjectsV2 in place of botocore: a handler of its event ``before-parse``.

    Whatever is no listing is left to botocore.
    """
    if response_dict["status_code"] != _OK:
        return
    page = read_listing(response_dict["body"])
    if page is not None:
        customized_response_dict[PAGE] = page
        response_dict["body"] = f"<{_ROOT}/>".encode()


def read_listing(body: bytes) -> ListObjectResult | None:
    """Reads one page; ``None`` where this is no listing."""
    try:
        root = ET.fromstring(body)  # noqa: S314 - Expat limits entity expansion.
    except ET.ParseError:
        return None
    space, _, name = root.tag.rpartition("}")
    space = f"{space}}}" if space else ""
    if name != _ROOT:
        return None
    decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
    token = root.findtext(f"{space}NextContinuationToken")
    return ListObjectResult(
        [_object_info(entry, space, decode) for entry in root.iterfind(f"{space}Contents")],
        [decode(entry.findtext(f"{space}Prefix") or "") for entry in root.iterfind(f"{space}CommonPrefixes")],
        token if root.findtext(f"{space}IsTruncated") == "true" else None,
    )


def _object_info(entry: ET.Element, space: str, decode: Callable[[str], str]) -> ObjectInfo:
    told = {child.tag: child.text or "" for child in entry}
    restore = entry.find(f"{space}RestoreStatus")
    return ObjectInfo(
        key=decode(told[f"{space}Key"]),
        etag=told.get(f"{space}ETag", ""),
        size=int(told[f"{space}Size"]),
        last_modified=_seconds(told[f"{space}LastModified"]),
        storage_class=told.get(f"{space}StorageClass"),
        restore_status=None if restore is None else _restore_status(restore, space),
    )


def _restore_status(told: ET.Element, space: str) -> RestoreStatus:
    expiry = told.findtext(f"{space}RestoreExpiryDate")
    in_progress = told.findtext(f"{space}IsRestoreInProgress") == "true"
    return RestoreStatus(in_progress, _seconds(expiry) if expiry else None)


def _seconds(time: str) -> int:
    told = datetime.fromisoformat(time)
    return int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp())
