"""Names of files and directories in buckets, their entries in listings, and where copies go.

Keys are exact: ``data`` and ``data/`` are two objects, ``a//b`` is in the directory ``a//``, which is another
one than ``a``. A directory is what keys share up to a slash, and is named without that slash, unless the name
would then end in a slash itself: ``bucket/a`` for ``a/``, ``bucket/a//`` for ``a//``.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from fsspec.utils import common_prefix

from s3torch.core import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from s3torch.core import HeadObjectResult, ObjectInfo
    from s3torch.core.models import ObjectVersion

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


def file_entry(path: str, facts: ObjectInfo | ObjectVersion | HeadObjectResult) -> Entry:
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


def is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry["type"] == "directory"


def takes_local_inside(folder: str) -> bool:
    return folder.endswith(("/", os.sep)) or Path(folder).is_dir()


def targets_of(names: list[str], target: str, *, inside: bool, flat: bool) -> dict[str, str]:
    """Returns where names go below ``target``; ``inside`` it, or in its place."""
    root = target.removesuffix("/")
    if flat:
        return {name: f"{root}/{name.removesuffix('/').rpartition('/')[2]}" for name in names}
    common = common_prefix(names)
    if inside:
        common = common.removesuffix("/").rpartition("/")[0]
    cut = len(common) + 1 if common else 0
    return {name: root if name == common else f"{root}/{name[cut:]}" for name in names}


def check_distinct(targets: dict[str, str]) -> None:
    sources: dict[str, str] = {}
    for source, target in targets.items():
        other = sources.setdefault(target, source)
        if other != source:
            raise ConfigurationError(f"{other} and {source} would both become {target}")


def each_to_its_own(names: list[Any], targets: list[Any]) -> dict[Any, Any]:
    if len(names) != len(targets):
        raise ConfigurationError(f"expected a target for each of {len(names)}, got {len(targets)}")
    return dict(zip(names, targets, strict=True))


def check_local(root: Any, targets: dict[str, str], *, files: set[str]) -> None:
    """Raises unless every name has a local path of its own, below ``root`` where that is one folder."""
    # Not resolved: a link in the way is the caller's, as it is for every other program.
    paths = {source: os.path.abspath(target) for source, target in targets.items()}  # noqa: PTH100
    check_distinct(paths)
    folder = os.path.abspath(root) if isinstance(root, str) else None  # noqa: PTH100
    of_files = {paths[source]: source for source in files}
    for source, path in paths.items():
        if folder is not None and path != folder and not Path(path).is_relative_to(folder):
            raise ConfigurationError(f"{source} would be written to {path}, outside {folder}")
        for parent in Path(path).parents:
            if str(parent) in of_files:
                other = of_files[str(parent)]
                raise ConfigurationError(f"{parent} cannot be the file {other} and have {source} in it")
            if folder is None or str(parent) == folder:
                break
