"""Operations that list: buckets, objects, versions, multipart uploads in progress.

A general XML parser takes about 70 µs of the processor for each key of a listing of objects, this about 6 µs.
No tree is made of a page: its thousands of elements would set off the garbage collector, which takes longer
than the parser where torch has been imported.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote_plus
from xml.parsers import expat

from s3torch.core._uri import is_directory_bucket
from s3torch.core.errors import ConfigurationError, ServerError
from s3torch.core.models import (
    BucketInfo,
    ListObjectResult,
    ListUploadsResult,
    ListVersionsResult,
    ObjectInfo,
    ObjectVersion,
    RestoreStatus,
    UploadInfo,
)
from s3torch.core.requests._request import (
    Answer,
    Request,
    local_name,
    malformed,
    natural,
    promised,
    query_of,
    result_document,
    xml_fields,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
T = TypeVar("T")
Marker = TypeVar("Marker", str, tuple[str, str])

_ROOT = "ListBucketResult"
_DEPTH_OF_ENTRIES = 2
# What tells that and where a listing goes on, in any of its versions, and how many entries a page may have.
_NEXT = (
    "NextContinuationToken",
    "NextKeyMarker",
    "NextMarker",
    "NextUploadIdMarker",
    "NextVersionIdMarker",
)
_MOST = ("MaxKeys", "MaxUploads")


def list_buckets(*, continuation_token: str | None = None) -> Request[tuple[list[BucketInfo], str | None]]:
    """Asks for a page of the buckets of the account; the result has also the token of the next, if any."""

    def read(answer: Answer) -> tuple[list[BucketInfo], str | None]:
        root = result_document(answer, "ListAllMyBucketsResult")
        told = [xml_fields(one) for one in root.iter() if local_name(one) == "Bucket"]
        buckets = [
            BucketInfo(
                promised(one, "Name"), _seconds(one["CreationDate"]) if "CreationDate" in one else None
            )
            for one in told
        ]
        return buckets, xml_fields(root).get("ContinuationToken") or None

    query = query_of(continuation_token=continuation_token)
    return Request("ListBuckets", "GET", bucket="", key="", read=read, query=query)


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

    request = _page_request(
        "ListObjectsV2",
        bucket,
        lambda answer: read_listing(answer.body or b"", asked=continuation_token, most=max_keys),
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
        partial(_version_page, marker, max_keys),
        versions="",
        prefix=prefix or None,
        delimiter=delimiter or None,
        max_keys=max_keys,
        key_marker=key or None,
        version_id_marker=version_id or None,
    )


def _version_page(asked: tuple[str, str] | None, most: int, answer: Answer) -> ListVersionsResult:
    told, entries, decode = _page_of(answer, "ListVersionsResult")
    versions = [
        ObjectVersion(
            key=decode(promised(entry, "Key")),
            version_id=entry.get("VersionId") or "null",
            is_latest=entry.get("IsLatest") == "true",
            last_modified=_seconds(promised(entry, "LastModified")),
            etag=entry.get("ETag", ""),
            size=0 if name == "DeleteMarker" else natural("Size", promised(entry, "Size")),
            storage_class=entry.get("StorageClass"),
            is_delete_marker=name == "DeleteMarker",
        )
        for name, entry in entries
        if name in {"Version", "DeleteMarker"}
    ]
    # Within a key the latest is first, and the time of the others tells their order to the second.
    versions.sort(key=lambda one: (one.key.encode(), not one.is_latest, -one.last_modified))
    prefixes = [decode(entry.get("Prefix", "")) for name, entry in entries if name == "CommonPrefixes"]
    following = _marker(told, "NextVersionIdMarker", decode)
    following = following_page(told, following, asked, entries=len(entries), most=most)
    return ListVersionsResult(versions, prefixes, following)


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
        partial(_upload_page, marker, max_uploads),
        uploads="",
        prefix=prefix or None,
        max_uploads=max_uploads,
        key_marker=key or None,
        upload_id_marker=upload_id or None,
    )


def _upload_page(asked: tuple[str, str] | None, most: int, answer: Answer) -> ListUploadsResult:
    told, entries, decode = _page_of(answer, "ListMultipartUploadsResult")
    uploads = [
        UploadInfo(
            decode(promised(entry, "Key")),
            promised(entry, "UploadId"),
            _seconds(promised(entry, "Initiated")),
            entry.get("StorageClass"),
        )
        for name, entry in entries
        if name == "Upload"
    ]
    following = _marker(told, "NextUploadIdMarker", decode)
    following = following_page(told, following, asked, entries=len(entries), most=most)
    return ListUploadsResult(uploads, following)


def _page_of(
    answer: Answer, root_name: str
) -> tuple[dict[str, str], list[tuple[str, dict[str, str]]], Callable[[str], str]]:
    """Reads a page: its own facts, its entries in order, and how keys are decoded."""
    root = result_document(answer, root_name)
    told = {local_name(child): child.text or "" for child in root if not len(child)}
    entries = [(local_name(child), xml_fields(child)) for child in root if len(child)]
    return told, entries, unquote_plus if told.get("EncodingType") == "url" else str


def _marker(told: Mapping[str, str], second: str, decode: Callable[[str], str]) -> tuple[str, str] | None:
    # SeaweedFS tells the second alone.
    marker = decode(told.get("NextKeyMarker", "")), told.get(second, "")
    return marker if any(marker) else None


def following_page(
    told: Mapping[str, str], marker: Marker | None, asked: Marker | None, *, entries: int, most: int
) -> Marker | None:
    """Returns where the next page begins; ``None`` after the last one.

    S3 always says whether a listing goes on. Of a store that does not, it does where the answer says where;
    and it ends where the page has room for more. Of a full page nobody knows.

    Args:
        told: What the page tells of itself.
        marker: Where the next page begins.
        asked: Where this one was asked to begin.
        entries: How many the page has.
        most: How many it was asked to have at most.

    Raises:
        ServerError: The listing goes on, and the answer does not say where, or says what was asked; or
            nobody knows whether it does.
    """
    truncated = told.get("IsTruncated", "").strip().lower()
    if not truncated:
        truncated = "true" if marker or any(told.get(name) for name in _NEXT) else "false"
        most = min([most, *(natural(name, told[name]) for name in _MOST if name in told)])
        if truncated == "false" and entries >= most:
            raise ServerError("the answer does not say whether the listing goes on: it has no IsTruncated")
    if truncated not in {"true", "false"}:
        raise malformed("IsTruncated", truncated)
    if truncated == "false":
        return None
    if not marker:
        raise ServerError("the listing goes on, and the answer does not say where")
    if marker == asked:
        raise ServerError("the listing goes on where this page began")
    return marker


def read_listing(body: bytes, *, asked: str | None = None, most: int = 1000) -> ListObjectResult:
    """Reads one page, which was asked for with this token and of so many entries at most.

    Raises:
        ServerError: It is no listing, or it has a malformed value.
    """
    page = _Page()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = page.start
    parser.EndElementHandler = page.end
    parser.CharacterDataHandler = page.text
    try:
        parser.Parse(body, True)  # noqa: FBT003 - expat limits entity expansion.
    except KeyError as exc:
        raise ServerError(f"the answer has an object without {exc.args[0]}") from exc
    except (expat.ExpatError, LookupError, ValueError) as exc:  # The others are about encodings.
        raise ServerError(f"the answer is no {_ROOT}") from exc
    if page.root != _ROOT:
        raise ServerError(f"the answer is no {_ROOT}")
    told = page.told
    decode = unquote_plus if told.get("EncodingType") == "url" else str
    infos = page.object_info(decode)
    prefixes = [decode(prefix) for prefix in page.common_prefixes]
    entries = len(infos) + len(prefixes)
    following = following_page(told, told.get("NextContinuationToken"), asked, entries=entries, most=most)
    return ListObjectResult(infos, prefixes, following)


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
            ObjectInfo(
                decode(key), etag, natural("Size", size), _seconds(time), storage_class, restored.get(number)
            )
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
    try:
        told = datetime.fromisoformat(time)
        return int((told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError) as exc:
        raise malformed("time", time) from exc
