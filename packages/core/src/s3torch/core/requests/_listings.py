"""Operations that list: objects, versions, multipart uploads in progress.

A general XML parser takes about 70 µs of the processor for each key of a listing of objects, this about 6 µs.
No tree is made of a page: its thousands of elements would set off the garbage collector, which takes longer
than the parser where torch has been imported.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote_plus
from xml.parsers import expat

from s3torch.core._uri import is_directory_bucket
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.models import (
    ListObjectResult,
    ListUploadsResult,
    ListVersionsResult,
    ObjectInfo,
    ObjectVersion,
    RestoreStatus,
    UploadInfo,
)
from s3torch.core.requests._request import Answer, Request, local_name, query_of, xml_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from xml.etree.ElementTree import Element

T = TypeVar("T")

_ROOT = "ListBucketResult"
_DEPTH_OF_ENTRIES = 2


def list_objects(
    bucket: str,
    *,
    prefix: str = "",
    delimiter: str = "",
    max_keys: int = 1000,
    continuation_token: str | None = None,
    start_after: str | None = None,
) -> Request[ListObjectResult]:
    """Asks for one page of a listing.

    Raises:
        ConfigurationError: A directory bucket cannot list so.
    """
    if is_directory_bucket(bucket):
        _check_directory_listing(bucket, prefix, delimiter, start_after)

    def read(answer: Answer) -> ListObjectResult:
        page = read_listing(answer.body or b"")
        if page is None:
            raise S3Error("the answer is no listing")
        return page

    request = _page_request(
        "ListObjectsV2",
        bucket,
        read,
        list_type=2,
        prefix=prefix,
        delimiter=delimiter or None,
        max_keys=max_keys,
        continuation_token=continuation_token or None,
        start_after=start_after or None,
    )
    return request._replace(headers=[("x-amz-optional-object-attributes", "RestoreStatus")])


def _page_request(
    operation: str, bucket: str, read: Callable[[Answer], T], **query: str | int | None
) -> Request[T]:
    query |= {"encoding_type": "url"}
    return Request(operation, "GET", bucket, key="", read=read, query=query_of(**query))


def _check_directory_listing(bucket: str, prefix: str, delimiter: str, start_after: str | None) -> None:
    """Refuses a listing that no directory bucket can give, in words instead of as ``InvalidArgument``.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
    """
    wrong = None
    if prefix and not prefix.endswith("/"):
        folder = prefix.rpartition("/")[0]
        wrong = (
            f"a directory bucket lists whole folders: the prefix {prefix!r} must end in '/'; "
            f"list {folder + '/' if folder else ''!r} and choose from that"
        )
    elif delimiter not in {"", "/"}:
        wrong = f"the delimiter of a directory bucket is '/', got {delimiter!r}"
    elif start_after:
        wrong = "a directory bucket lists in no order, so a listing cannot start after a key"
    if wrong is not None:
        raise ConfigurationError(wrong, operation="ListObjectsV2", bucket=bucket)


def list_object_versions(
    bucket: str,
    *,
    prefix: str = "",
    delimiter: str = "",
    max_keys: int = 1000,
    marker: tuple[str, str] | None = None,
) -> Request[ListVersionsResult]:
    """Asks for one page of versions and delete markers.

    Args:
        bucket: The bucket.
        prefix: What the keys start with.
        delimiter: Folds keys that have it behind the prefix into ``common_prefixes``.
        max_keys: The size of the page.
        marker: The ``next_marker`` of the page before.
    """
    key, version_id = marker or (None, None)
    return _page_request(
        "ListObjectVersions",
        bucket,
        _version_page,
        versions="",
        prefix=prefix or None,
        delimiter=delimiter or None,
        max_keys=max_keys,
        key_marker=key or None,
        version_id_marker=version_id or None,
    )


def _version_page(answer: Answer) -> ListVersionsResult:
    told, entries, decode = _page_of(answer, "ListVersionsResult")
    versions = [
        ObjectVersion(
            key=decode(entry["Key"]),
            version_id=entry.get("VersionId") or "null",
            is_latest=entry.get("IsLatest") == "true",
            last_modified=_seconds(entry["LastModified"]),
            etag=entry.get("ETag", ""),
            size=int(entry.get("Size") or 0),
            storage_class=entry.get("StorageClass"),
            is_delete_marker=name == "DeleteMarker",
        )
        for name, entry in entries
        if name in {"Version", "DeleteMarker"}
    ]
    # Within a key the latest is first, and the time of the others tells their order to the second.
    versions.sort(key=lambda one: (one.key.encode(), not one.is_latest, -one.last_modified))
    prefixes = [decode(entry.get("Prefix", "")) for name, entry in entries if name == "CommonPrefixes"]
    return ListVersionsResult(versions, prefixes, _marker(told, "NextVersionIdMarker", decode))


def list_multipart_uploads(
    bucket: str,
    *,
    prefix: str = "",
    max_uploads: int = 1000,
    marker: tuple[str, str] | None = None,
) -> Request[ListUploadsResult]:
    """Asks for one page of the multipart uploads in progress.

    Args:
        bucket: The bucket.
        prefix: What the keys start with.
        max_uploads: The size of the page.
        marker: The ``next_marker`` of the page before.
    """
    key, upload_id = marker or (None, None)
    return _page_request(
        "ListMultipartUploads",
        bucket,
        _upload_page,
        uploads="",
        prefix=prefix or None,
        max_uploads=max_uploads,
        key_marker=key or None,
        upload_id_marker=upload_id or None,
    )


def _upload_page(answer: Answer) -> ListUploadsResult:
    told, entries, decode = _page_of(answer, "ListMultipartUploadsResult")
    uploads = [
        UploadInfo(
            decode(entry["Key"]), entry["UploadId"], _seconds(entry["Initiated"]), entry.get("StorageClass")
        )
        for name, entry in entries
        if name == "Upload"
    ]
    return ListUploadsResult(uploads, _marker(told, "NextUploadIdMarker", decode))


def _page_of(
    answer: Answer, root_name: str
) -> tuple[dict[str, str], list[tuple[str, dict[str, str]]], Callable[[str], str]]:
    """Reads a page: its own facts, its entries in order, and how keys are decoded."""
    root = xml_root(answer.body)
    if root is None or local_name(root) != root_name:
        raise S3Error("the answer is no listing")
    told = {local_name(child): child.text or "" for child in root if not len(child)}
    entries = [(local_name(child), _facts(child)) for child in root if len(child)]
    return told, entries, unquote_plus if told.get("EncodingType") == "url" else str


def _facts(entry: Element) -> dict[str, str]:
    return {local_name(fact): fact.text or "" for fact in entry}


def _marker(told: Mapping[str, str], second: str, decode: Callable[[str], str]) -> tuple[str, str] | None:
    if told.get("IsTruncated") != "true":
        return None
    return decode(told.get("NextKeyMarker", "")), told.get(second, "")


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
