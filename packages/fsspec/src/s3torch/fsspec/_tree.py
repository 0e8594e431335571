"""Paths, entries and listings of a filesystem on S3; nothing here changes an object."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeAlias

from fsspec import AbstractFileSystem

from s3torch.core import ConfigurationError, NotFoundError
from s3torch.fsspec._store import ClientOptions, parents, shared_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from s3torch.core import HeadObjectResult, ObjectInfo, S3Client

Entry: TypeAlias = dict[str, Any]


class S3Tree(AbstractFileSystem):
    """The names in the buckets that a client reaches; ``S3FileSystem`` adds the bytes.

    Args:
        region: The region; ``None`` takes the usual AWS places.
        storage_options: As ``ClientOptions.from_storage_options`` and fsspec's listing cache take them.
    """

    protocol = ("s3", "s3a")

    def __init__(self, region: str | None = None, **storage_options: Any) -> None:
        super().__init__(**storage_options)
        options = ClientOptions.from_storage_options(region=region, **storage_options)
        self._store = shared_store(options, storage_options)
        self.dircache = self._store.listings

    @property
    def client(self) -> S3Client:
        """The client that all requests go through."""
        return self._store.client

    # Paths

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(part) for part in path]
        text = os.fspath(path)
        if not isinstance(text, str):
            raise ConfigurationError(f"expected a path as a string, got {path!r}")
        for protocol in cls.protocol:
            # A pathlib.Path made of a URI has lost a slash.
            for start in (f"{protocol}://", f"{protocol}::", f"{protocol}:/"):
                if text.startswith(start):
                    return text.removeprefix(start).rstrip("/")
        return text.rstrip("/")

    def _split(self, path: Any) -> tuple[str, str]:
        bucket, _, key = self._strip_protocol(path).partition("/")
        if not bucket:
            raise ConfigurationError(f"expected s3://bucket/key, got {path!r}")
        return bucket, key

    def _split_file(self, path: Any) -> tuple[str, str]:
        bucket, key = self._split(path)
        if not key:
            raise IsADirectoryError(f"s3://{bucket} is a bucket, expected s3://bucket/key")
        return bucket, key

    # Listings

    def ls(self, path: Any, detail: bool = True, refresh: bool = False, **_: Any) -> list[Any]:  # noqa: FBT001, FBT002
        """Lists one directory level, or one object.

        Args:
            path: A bucket, a directory or an object.
            detail: True for entries with ``name``, ``size``, ``type``, ``ETag`` and ``LastModified``; False
                for names.
            refresh: Asks S3 also when the listing is cached.

        Raises:
            FileNotFoundError: There is neither an object nor a directory.
        """
        path = self._strip_protocol(path)
        entries = None if refresh else self.dircache.get(path)
        if entries is None:
            entries = self._list_directory(path)
            if entries is None:
                entries = [self._head(path)]
            else:
                self.dircache[path] = entries
        return list(entries) if detail else [entry["name"] for entry in entries]

    def _list_directory(self, path: str) -> list[Entry] | None:
        bucket, key = self._split(path)
        prefix = f"{key}/" if key else ""
        files: list[Entry] = []
        directories: list[Entry] = []
        exists = not key or path in self._store.made_directories
        for page in self.client.list_objects(bucket, prefix, "/"):
            exists = exists or bool(page.object_info or page.common_prefixes)
            for common in page.common_prefixes:
                name = common.removesuffix("/")
                if not name.endswith("/") and name:
                    directories.append(directory_entry(f"{bucket}/{name}"))
            files += [
                file_entry(f"{bucket}/{info.key}", info)
                for info in page.object_info
                if not info.key.endswith("/")
            ]
        if not exists:
            return None
        known = {entry["name"] for entry in directories}
        directories += [
            directory_entry(made)
            for made in sorted(self._store.made_directories - known)
            if made.rpartition("/")[0] == path
        ]
        return directories + files

    def _objects_below(self, bucket: str, key: str) -> Iterator[ObjectInfo]:
        for page in self.client.list_objects(bucket, f"{key}/" if key else ""):
            yield from page.object_info

    def _has_objects_below(self, bucket: str, key: str) -> bool:
        for page in self.client.list_objects(bucket, f"{key}/" if key else "", max_keys=1):
            return bool(page.object_info)
        return False

    def _head(self, path: str) -> Entry:
        bucket, key = self._split(path)
        return file_entry(path, self.client.head_object(bucket, key))

    def info(self, path: Any, **_: Any) -> Entry:
        """Returns the entry of an object or directory; one HEAD for an object.

        Raises:
            FileNotFoundError: There is neither.
        """
        path = self._strip_protocol(path)
        if not path:
            return directory_entry("")
        cached = self.dircache.get(path.rpartition("/")[0]) if "/" in path else None
        for entry in cached or ():
            if entry["name"] == path:
                return dict(entry)
        bucket, key = self._split(path)
        if not key:
            self._has_objects_below(bucket, key)
            return directory_entry(path)
        try:
            return self._head(path)
        except NotFoundError:
            if path in self._store.made_directories or self._has_objects_below(bucket, key):
                return directory_entry(path)
            raise

    def exists(self, path: Any, **kwargs: Any) -> bool:
        """Whether there is an object or a directory.

        Raises:
            S3Error: S3 did not answer, so nothing is known.
        """
        try:
            self.info(path, **kwargs)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: Any) -> bool:
        """Whether there is an object; one HEAD."""
        bucket, _, key = self._strip_protocol(path).partition("/")
        return bool(bucket and key) and self.client.exists(bucket, key)

    def isdir(self, path: Any) -> bool:
        """Whether there are objects below this path, or this process made it; one LIST."""
        path = self._strip_protocol(path)
        if not path or path in self._store.made_directories or path in self.dircache:
            return True
        bucket, key = self._split(path)
        try:
            return self._has_objects_below(bucket, key) or not key
        except FileNotFoundError:
            return False

    def find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,  # noqa: FBT001, FBT002
        detail: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> Any:
        """Returns all files below a path; one request for 1,000 of them, however deep they are."""
        path = self._strip_protocol(path)
        if maxdepth is not None or not path:
            return super().find(path, maxdepth, withdirs=withdirs, detail=detail, **kwargs)
        bucket, key = self._split(path)
        entries = [
            file_entry(f"{bucket}/{info.key}", info)
            for info in self._objects_below(bucket, key)
            if not info.key.endswith("/")
        ]
        if not entries and key:
            with suppress(NotFoundError):
                entries = [self._head(path)]
                withdirs = False
        found = {entry["name"]: entry for entry in entries}
        if withdirs:
            found = with_directories(path, entries)
            if path in self._store.made_directories:
                found.setdefault(path, directory_entry(path))
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def du(
        self,
        path: Any,
        total: bool = True,  # noqa: FBT001, FBT002
        maxdepth: int | None = None,
        withdirs: bool = False,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> Any:
        """Returns the bytes below a path, in all or by file, from the listing alone."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **kwargs)
        sizes = {name: entry["size"] for name, entry in found.items()}
        return sum(sizes.values()) if total else sizes

    def modified(self, path: Any) -> datetime:
        """Returns when an object was stored."""
        entry = self.info(path)
        if "LastModified" not in entry:
            raise IsADirectoryError(f"s3://{entry['name']} is a directory and has no time")
        found: datetime = entry["LastModified"]
        return found

    def created(self, path: Any) -> datetime:
        # Objects are never changed, only replaced.
        return self.modified(path)

    def ukey(self, path: Any) -> str:
        entry = self.info(path)
        return sha256(f"{entry['name']} {entry.get('ETag')} {entry['size']}".encode()).hexdigest()

    def checksum(self, path: Any) -> int:
        return int(self.ukey(path), 16)

    def invalidate_cache(self, path: Any = None) -> None:
        """Drops the cached listings that a change of ``path`` makes wrong; all without a path."""
        if path is None:
            self.dircache.clear()
        else:
            self._store.invalidate(self._strip_protocol(path))
        super().invalidate_cache(path)


def file_entry(path: str, facts: ObjectInfo | HeadObjectResult) -> Entry:
    """Returns the entry of an object; ``path`` is ``bucket/key``.

    The names of the facts are those that s3fs uses.
    """
    entry = _entry(path, "file", facts.size, facts.storage_class or "STANDARD")
    entry["ETag"] = facts.etag
    entry["LastModified"] = datetime.fromtimestamp(facts.last_modified, tz=UTC)
    for name, attribute in (("VersionId", "version_id"), ("ContentType", "content_type")):
        value = getattr(facts, attribute, None)
        if value is not None:
            entry[name] = value
    return entry


def directory_entry(path: str) -> Entry:
    """Returns the entry of a directory, which is what keys have in common up to a slash."""
    return _entry(path, "directory", 0, "DIRECTORY")


def _entry(path: str, kind: str, size: int, storage_class: str) -> Entry:
    return {
        "name": path,
        "size": size,
        "type": kind,
        "Key": path,
        "Size": size,
        "StorageClass": storage_class,
    }


def with_directories(root: str, entries: Iterable[Entry]) -> dict[str, Entry]:
    """Returns entries below ``root`` by name, with ``root`` and every directory in between."""
    found: dict[str, Entry] = {}
    for entry in entries:
        found[entry["name"]] = entry
        for parent in parents(entry["name"]):
            if len(parent) < len(root) or parent in found:
                break
            if not parent.endswith("/"):
                found[parent] = directory_entry(parent)
    return found
