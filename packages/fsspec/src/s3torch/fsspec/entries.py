"""The entries that fsspec works with, made from what S3 tells of objects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from s3torch.core import HeadObjectResult, ObjectInfo

__all__ = ["Entry", "directory_entry", "file_entry", "parents", "with_directories"]

Entry: TypeAlias = dict[str, Any]


def file_entry(path: str, facts: ObjectInfo | HeadObjectResult) -> Entry:
    """Returns the entry of an object; ``path`` is ``bucket/key``.

    The names of the facts are those that s3fs uses.
    """
    entry: Entry = {
        "name": path,
        "size": facts.size,
        "type": "file",
        "Key": path,
        "Size": facts.size,
        "ETag": facts.etag,
        "LastModified": datetime.fromtimestamp(facts.last_modified, tz=UTC),
        "StorageClass": facts.storage_class or "STANDARD",
    }
    version_id = getattr(facts, "version_id", None)
    if version_id is not None:
        entry["VersionId"] = version_id
    content_type = getattr(facts, "content_type", None)
    if content_type is not None:
        entry["ContentType"] = content_type
    return entry


def directory_entry(path: str) -> Entry:
    """Returns the entry of what many keys share up to a slash."""
    return {
        "name": path,
        "size": 0,
        "type": "directory",
        "Key": path,
        "Size": 0,
        "StorageClass": "DIRECTORY",
    }


def parents(path: str) -> list[str]:
    """Returns what a path is in, nearest first, without the root above the buckets."""
    found = []
    while "/" in path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


def with_directories(root: str, entries: Iterable[Entry]) -> dict[str, Entry]:
    """Returns entries below ``root`` by name, with ``root`` and every directory that they imply."""
    found: dict[str, Entry] = {}
    for entry in entries:
        found[entry["name"]] = entry
        for parent in parents(entry["name"]):
            if len(parent) < len(root) or parent in found:
                break
            if not parent.endswith("/"):
                found[parent] = directory_entry(parent)
    return found
