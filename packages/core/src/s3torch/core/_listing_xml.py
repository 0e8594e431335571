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
        page.object_info(decode),
        [decode(prefix) for prefix in page.common_prefixes],
        told.get("NextContinuationToken") if told.get("IsTruncated") == "true" else None,
    )


class _Page:
    """Takes what the parser finds: texts by the names of their elements, for the page and for each entry."""

    def __init__(self) -> None:
        self.root = ""
        self.told: dict[str, str] = {}
        self.common_prefixes: list[str] = []
        # One list for each fact, because an object for each entry would count with the collector.
        self._keys: list[str] = []
        self._etags: list[str] = []
        self._sizes: list[str] = []
        self._times: list[str] = []
        self._classes: list[str | None] = []
        self._restored: dict[int, RestoreStatus] = {}
        self._entry: dict[str, str] = {}
        self._depth = 0
        self._text = ""

    def start(self, name: str, _attributes: object) -> None:
        self._depth += 1
        self._text = ""
        if self._depth == _DEPTH_OF_ENTRIES:
            self._entry.clear()
        elif self._depth == 1:
            self.root = name

    def text(self, text: str) -> None:
        self._text += text

    def end(self, name: str) -> None:
        if self._depth > _DEPTH_OF_ENTRIES:
            self._entry[name] = self._text
        elif name == "Contents":
            self._take(self._entry)
        elif name == "CommonPrefixes":
            self.common_prefixes.append(self._entry.get("Prefix", ""))
        else:
            self.told[name] = self._text
        self._depth -= 1
        self._text = ""

    def object_info(self, decode: Callable[[str], str]) -> list[ObjectInfo]:
        facts = zip(self._keys, self._etags, self._sizes, self._times, self._classes, strict=True)
        restored = self._restored
        return [
            ObjectInfo(decode(key), etag, int(size), _seconds(time), storage_class, restored.get(number))
            for number, (key, etag, size, time, storage_class) in enumerate(facts)
        ]

    def _take(self, told: Mapping[str, str]) -> None:
        if "RestoreStatus" in told:
            self._restored[len(self._keys)] = _restore_status(told)
        self._keys.append(told["Key"])
        self._etags.append(told.get("ETag", ""))
        self._sizes.append(told["Size"])
        self._times.append(told["LastModified"])
        self._classes.append(told.get("StorageClass"))


def _restore_status(told: Mapping[str, str]) -> RestoreStatus:
    expiry = told.get("RestoreExpiryDate")
    in_progress = told.get("IsRestoreInProgress") == "true"
    return RestoreStatus(in_progress, _seconds(expiry) if expiry else None)


def _seconds(time: str) -> int:
    told = datetime.fromisoformat(time)
    return int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp())
