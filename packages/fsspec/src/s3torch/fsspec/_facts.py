"""What is at a path: whether there is an object or a directory, and what S3 tells of it."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from s3torch.core import ConfigurationError, NotFoundError, S3Client
from s3torch.fsspec._names import (
    Entry,
    directory_entry,
    directory_of,
    file_entry,
    is_marker,
    parent_of,
    prefix_of,
)
from s3torch.fsspec._options import ClientOptions, refuse
from s3torch.fsspec._store import Environment, shared_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from s3torch.core import HeadObjectResult, ObjectInfo

_VERSION = "?versionId="


class S3Facts(AbstractFileSystem):
    """The buckets that a client reaches, asked about one path at a time."""

    protocol = ("s3", "s3a")
    _environment = Environment()
    _extra_tokenize_attributes = ("_environment",)  # type: ignore[assignment]

    def __init__(
        self, region: str | None = None, *, version_aware: bool = False, **storage_options: Any
    ) -> None:
        super().__init__(**storage_options)
        options = ClientOptions.from_storage_options(region=region, **storage_options)
        self._store = shared_store(options, storage_options, self._environment)
        self.dircache = self._store.listings
        self.version_aware = version_aware

    @property
    def client(self) -> S3Client:
        """The client that all requests go through."""
        return self._store.client

    # Paths

    @classmethod
    def _exact(cls, path: Any) -> str:
        """Returns ``bucket/key`` with all its slashes."""
        text = os.fspath(path)
        if not isinstance(text, str):
            raise ConfigurationError(f"expected a path as a string, got {path!r}")
        for protocol in cls.protocol if ":" in text else ():
            # A pathlib.Path made of a URI has lost a slash.
            for start in (f"{protocol}://", f"{protocol}::", f"{protocol}:/"):
                if text.startswith(start):
                    return text.removeprefix(start)
        return text

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(part) for part in path]
        return directory_of(cls._exact(path))

    @classmethod
    def _parent(cls, path: Any) -> str:
        return parent_of(cls._strip_protocol(path))

    @staticmethod
    def _get_kwargs_from_urls(path: Any) -> dict[str, Any]:
        return {"version_aware": True} if _VERSION in os.fspath(path) else {}

    def _split(self, path: Any) -> tuple[str, str]:
        bucket, _, key = self._strip_protocol(path).partition("/")
        if not bucket:
            raise ConfigurationError(f"expected s3://bucket/key, got {path!r}")
        return bucket, key

    def _split_file(self, path: Any) -> tuple[str, str]:
        bucket, key = self._split(path)
        if not key:
            raise IsADirectoryError(f"s3://{bucket} is a bucket, expected s3://bucket/key")
        return bucket, self._exact(path).partition("/")[2]

    def _split_version(self, path: Any, version_id: str | None = None) -> tuple[str, str | None]:
        """Returns the exact path, and the version of it that is meant, which ``?versionId=`` may name."""
        exact = self._exact(path)
        name, found, named = exact.rpartition(_VERSION) if self.version_aware else ("", "", "")
        if not found:
            return exact, version_id
        if version_id not in {None, named}:
            raise ConfigurationError(f"{path} names another version than version_id={version_id!r}")
        return name, named

    def _split_versioned(self, path: Any, version_id: str | None = None) -> tuple[str, str, str | None]:
        exact, version_id = self._split_version(path, version_id)
        return *self._split_file(exact), version_id

    # Facts

    def _objects_below(self, bucket: str, key: str, start: str = "", **options: Any) -> Iterator[ObjectInfo]:
        for page in self.client.list_objects(bucket, prefix_of(key) + start, **options):
            yield from page.object_info

    def _has_objects_below(self, bucket: str, key: str) -> bool:
        return any(True for _ in self._objects_below(bucket, key, max_keys=1))

    def info(
        self,
        path: Any,
        version_id: str | None = None,
        refresh: bool = False,  # noqa: FBT001, FBT002
        **options: Any,
    ) -> Entry:
        """Returns the entry of an object or directory; one HEAD for an object.

        Args:
            path: The path.
            version_id: The version of an object; ``None`` for the latest.
            refresh: Ask S3 also when the listing that has the entry is cached.
            options: None is known.
        """
        refuse(options, "info")
        exact, version_id = self._split_version(path, version_id)
        path = self._strip_protocol(exact)
        if not path:
            return directory_entry("")
        if version_id is None and not refresh:
            for entry in self.dircache.get(parent_of(path)) or ():
                if entry["name"] == exact:
                    return dict(entry)
        bucket, key = self._split(path)
        if not exact.endswith("/") and key:
            try:
                return file_entry(path, self.client.head_object(bucket, key, version_id=version_id))
            except NotFoundError:
                if version_id is not None or not self.isdir(path):
                    raise
                return directory_entry(path)
        first = next(self._objects_below(bucket, key, max_keys=1), None)
        name = f"{bucket}/{first.key}" if first is not None else ""
        if first is not None and name == exact and not is_marker(first):
            return file_entry(exact, first)
        if first is None and key and path not in self._store.made_directories:
            raise NotFoundError("there is no such directory", bucket=bucket, key=prefix_of(key))
        return directory_entry(path)

    def _head(self, path: Any, version_id: str | None = None) -> HeadObjectResult:
        bucket, key, version_id = self._split_versioned(path, version_id)
        return self.client.head_object(bucket, key, version_id=version_id)

    def exists(self, path: Any, **options: Any) -> bool:
        """Whether there is an object or a directory; an error where S3 did not answer."""
        try:
            self.info(path, **options)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: Any, version_id: str | None = None) -> bool:
        """Whether there is an object; one HEAD."""
        exact, version_id = self._split_version(path, version_id)
        bucket, _, key = exact.partition("/")
        if key.endswith("/"):
            with suppress(FileNotFoundError):
                return bool(self.info(exact)["type"] == "file")
            return False
        return bool(bucket and key) and self.client.exists(bucket, key, version_id=version_id)

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

    def modified(self, path: Any, version_id: str | None = None, refresh: bool = False) -> datetime:  # noqa: FBT001, FBT002
        """Returns when an object was stored."""
        entry = self.info(path, version_id=version_id, refresh=refresh)
        if "LastModified" not in entry:
            raise IsADirectoryError(f"s3://{entry['name']} is a directory and has no modification time")
        found: datetime = entry["LastModified"]
        return found

    def created(self, path: Any) -> datetime:
        # Objects are never changed, only replaced.
        return self.modified(path)

    def ukey(self, path: Any, refresh: bool = False) -> str:  # noqa: FBT001, FBT002
        """Returns what changes with the content of an object."""
        entry = self.info(path, refresh=refresh)
        return sha256(f"{entry['name']} {entry.get('ETag')} {entry['size']}".encode()).hexdigest()

    def checksum(self, path: Any, refresh: bool = False) -> int:  # noqa: FBT001, FBT002
        """Returns ``ukey`` as a number."""
        return int(self.ukey(path, refresh), 16)

    def invalidate_cache(self, path: Any = None) -> None:
        """Drops the cached listings that a change of ``path`` makes wrong; all without a path."""
        if path is None:
            self.dircache.clear()
        else:
            self._store.invalidate(self._strip_protocol(path))
        super().invalidate_cache(path)
