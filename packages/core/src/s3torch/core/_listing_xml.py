"""Pages of listings, read from their XML.

botocore takes about 70 µs of the processor for each key of a listing, most of it in a parser that knows all
services, and for times; this takes about 6 µs. No tree is made of a page: its thousands of elements would
set off the garbage collector, which takes longer than the parser where torch has been imported.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus
from xml.parsers import expat

from s3torch.core.models import ListObjectResult, ObjectInfo, RestoreStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Under this name the page stands in what the boto3 client returns.
PAGE = "S3torchPage"

_ROOT = "ListBucketResult"
_OK = 200
_DEPTH_OF_ENTRIES = 2


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
    page = _Page()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = page.start
    parser.EndElementHandler = page.end
    parser.CharacterDataHandler = page.text
    try:
        parser.Parse(body, True)  # noqa: FBT003 - expat limits entity expansion.
    except expat.ExpatError:
        return None
    if page.root != _ROOT:
        return None
    told = page.told
    decode = unquote_plus if told.get("EncodingType") == "url" else str
    return ListObjectResult(
        [_object_info(entry, decode) for entry in page.contents],
        [decode(entry.get("Prefix", "")) for entry in page.common_prefixes],
        told.get("NextContinuationToken") if told.get("IsTruncated") == "true" else None,
    )


class _Page:
    """Takes what the parser finds: texts by the names of their elements, for the page and for each entry."""

    def __init__(self) -> None:
        self.root = ""
        self.told: dict[str, str] = {}
        self.contents: list[dict[str, str]] = []
        self.common_prefixes: list[dict[str, str]] = []
        self._depth = 0
        self._entry = self.told
        self._text = ""

    def start(self, name: str, _attributes: object) -> None:
        self._depth += 1
        self._text = ""
        if self._depth == _DEPTH_OF_ENTRIES:
            self._entry = {}
        elif self._depth == 1:
            self.root = name

    def text(self, text: str) -> None:
        self._text += text

    def end(self, name: str) -> None:
        if self._depth > _DEPTH_OF_ENTRIES:
            self._entry[name] = self._text
        elif name == "Contents":
            self.contents.append(self._entry)
        elif name == "CommonPrefixes":
            self.common_prefixes.append(self._entry)
        else:
            self.told[name] = self._text
        self._depth -= 1
        self._text = ""


def _object_info(told: Mapping[str, str], decode: Callable[[str], str]) -> ObjectInfo:
    return ObjectInfo(
        key=decode(told["Key"]),
        etag=told.get("ETag", ""),
        size=int(told["Size"]),
        last_modified=_seconds(told["LastModified"]),
        storage_class=told.get("StorageClass"),
        restore_status=_restore_status(told) if "RestoreStatus" in told else None,
    )


def _restore_status(told: Mapping[str, str]) -> RestoreStatus:
    expiry = told.get("RestoreExpiryDate")
    in_progress = told.get("IsRestoreInProgress") == "true"
    return RestoreStatus(in_progress, _seconds(expiry) if expiry else None)


def _seconds(time: str) -> int:
    told = datetime.fromisoformat(time)
    return int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp())
