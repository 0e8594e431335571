"""Names of files and directories in buckets, and their entries in listings.

Keys are exact: ``data`` and ``data/`` are two objects, ``a//b`` is in the directory ``a//``, which is another
one than ``a``. A directory is what keys share up to a slash, and is named without that slash, unless the name
would then end in a slash itself: ``bucket/a`` for ``a/``, ``bucket/a//`` for ``a//``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from s3torch.core import HeadObjectResult, ObjectInfo

Entry: TypeAlias = dict[str, Any]


def prefix_of(directory: str) -> str:
    """Returns what all names in a directory begin with."""
    return directory if not directory or directory.endswith("/") else f"{directory}/"


def directory_of(prefix: str) -> str:
    """Returns the name of the directory whose names begin with a prefix that ends in a slash."""
    name = prefix.removesuffix("/")
    return prefix if name.endswith("/") else name


def parent_of(path: str) -> str:
    """Returns the directory that a file or directory is in; the empty name holds the buckets."""
    name = path[:-1] if path.endswith("//") else path
    return directory_of(name[: name.rindex("/") + 1]) if "/" in name else ""


def parents(path: str) -> list[str]:
    """Returns the directories that a path is in, nearest first, up to the bucket."""
    found = []
    while path := parent_of(path):
        found.append(path)
    return found


def is_marker(info: ObjectInfo) -> bool:
    """Whether an object only says that there is a directory: it is empty and its key ends in a slash."""
    return info.key.endswith("/") and not info.size


def file_entry(path: str, facts: ObjectInfo | HeadObjectResult) -> Entry:
    """Returns the entry of an object, ``bucket/key``, with the names that s3fs uses."""
    entry = directory_entry(path) | {"type": "file", "size": facts.size, "Size": facts.size}
    entry["StorageClass"] = facts.storage_class or "STANDARD"
    entry["ETag"] = facts.etag
    entry["LastModified"] = datetime.fromtimestamp(facts.last_modified, tz=UTC)
    for name, attribute in (("VersionId", "version_id"), ("ContentType", "content_type")):
        value = getattr(facts, attribute, None)
        if value is not None:
            entry[name] = value
    return entry


def directory_entry(path: str) -> Entry:
    """Returns the entry of a directory."""
    return {
        "name": path,
        "size": 0,
        "type": "directory",
        "Key": path,
        "Size": 0,
        "StorageClass": "DIRECTORY",
    }


def entries_of(bucket: str, objects: Iterable[ObjectInfo], root: str) -> dict[str, Entry]:
    """Returns the entries of objects by name, with ``root`` and every directory in between."""
    found: dict[str, Entry] = {}
    for info in objects:
        name = f"{bucket}/{info.key}"
        if is_marker(info):
            inner = directory_of(name)
            found.setdefault(inner, directory_entry(inner))
        else:
            found[name] = file_entry(name, info)
            inner = name
        for parent in parents(inner):
            if len(parent) < len(root) or parent in found:
                break
            found[parent] = directory_entry(parent)
    return found
