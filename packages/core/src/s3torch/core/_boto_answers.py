"""What the boto3 client answers, as values of ours."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote_plus

from s3torch.core.models import (
    DeleteFailure,
    ListUploadsResult,
    ListVersionsResult,
    ObjectVersion,
    UploadInfo,
)


def version_page(answer: dict[str, Any]) -> ListVersionsResult:
    """Reads the answer to ListObjectVersions, whose two lists are made one again."""
    versions = [_version(entry) for entry in answer.get("Versions", ())]
    versions += [_version(entry, is_delete_marker=True) for entry in answer.get("DeleteMarkers", ())]
    # Within a key the latest is first, and the time of the others tells their order to the second.
    versions.sort(key=lambda one: (one.key.encode(), not one.is_latest, -one.last_modified))
    return ListVersionsResult(versions, _prefixes(answer), _marker(answer, "NextVersionIdMarker"))


def upload_page(answer: dict[str, Any]) -> ListUploadsResult:
    """Reads the answer to ListMultipartUploads, whose keys are encoded where the store can do that."""
    decode = unquote_plus if answer.get("EncodingType") == "url" else str
    uploads = [
        UploadInfo(
            decode(entry["Key"]),
            entry["UploadId"],
            int(entry["Initiated"].timestamp()),
            entry.get("StorageClass"),
        )
        for entry in answer.get("Uploads", ())
    ]
    marker = _marker(answer, "NextUploadIdMarker")
    return ListUploadsResult(uploads, marker and (decode(marker[0]), marker[1]))


def delete_failures(answer: dict[str, Any]) -> list[DeleteFailure]:
    """Reads the answer to DeleteObjects."""
    return [
        DeleteFailure(
            error.get("Key", ""), error.get("Code", ""), error.get("Message", ""), error.get("VersionId")
        )
        for error in answer.get("Errors", ())
    ]


def _prefixes(answer: dict[str, Any]) -> list[str]:
    return [entry["Prefix"] for entry in answer.get("CommonPrefixes", ())]


def _marker(answer: dict[str, Any], second: str) -> tuple[str, str] | None:
    if not answer.get("IsTruncated"):
        return None
    return answer.get("NextKeyMarker", ""), answer.get(second, "")


def _version(entry: dict[str, Any], *, is_delete_marker: bool = False) -> ObjectVersion:
    return ObjectVersion(
        key=entry["Key"],
        version_id=entry.get("VersionId") or "null",
        is_latest=bool(entry.get("IsLatest")),
        last_modified=int(entry["LastModified"].timestamp()),
        etag=entry.get("ETag", ""),
        size=entry.get("Size", 0),
        storage_class=entry.get("StorageClass"),
        is_delete_marker=is_delete_marker,
    )
