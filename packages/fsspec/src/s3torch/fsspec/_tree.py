"""Paths, entries and listings of a filesystem on S3, and what filesystems share; no object is changed here.

fsspec makes one instance of a filesystem for each thread. Those with the same storage options share a client,
so that connections do not multiply by threads, and agree on listings and on the directories that were made.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakValueDictionary

from fsspec import AbstractFileSystem
from fsspec.dircache import DirCache

from s3torch.core import (
    ConfigurationError,
    Credentials,
    NotFoundError,
    S3Client,
    S3ClientConfig,
    UserAgent,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from s3torch.core import HeadObjectResult, ObjectInfo

Entry: TypeAlias = dict[str, Any]
# What fsspec itself hands to every filesystem.
_OPTIONS_OF_FSSPEC = frozenset(
    {"asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "use_listings_cache"}
)
_CACHE_DEFAULTS = {"use_listings_cache": False, "listings_expiry_time": None, "max_paths": None}


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """Keys that were given as storage options; ``repr`` does not show them.

    They travel where the storage options do, into workers and pickles; those from the usual places do not.
    """

    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __call__(self) -> Credentials:
        return Credentials(self.key, self.secret, self.token)


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Which client a set of storage options asks for; equal options share one client."""

    region: str | None
    endpoint: str | None
    config: S3ClientConfig

    @classmethod
    def from_storage_options(
        cls,
        *,
        region: str | None = None,
        endpoint: str | None = None,
        endpoint_url: str | None = None,
        anon: bool = False,
        key: str | None = None,
        secret: str | None = None,
        token: str | None = None,
        profile: str | None = None,
        requester_pays: bool = False,
        s3client_config: S3ClientConfig | None = None,
        client_kwargs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> ClientOptions:
        """Reads storage options, under our names and under those of s3fs.

        An option that would be ignored could send data somewhere else than meant, so it is an error.
        """
        if unknown := sorted(set(others) - _OPTIONS_OF_FSSPEC):
            raise ConfigurationError(
                f"unknown storage option {', '.join(unknown)} for s3://; known are region, endpoint_url, "
                "anon, key, secret, token, profile, requester_pays, s3client_config and client_kwargs"
            )
        if others.get("asynchronous"):
            raise ConfigurationError("s3:// of s3torch has no asynchronous mode; it is thread-safe")
        kwargs = client_kwargs or {}
        if unknown := sorted(set(kwargs) - {"endpoint_url", "region_name"}):
            raise ConfigurationError(
                f"client_kwargs may have endpoint_url and region_name, got {', '.join(unknown)}"
            )
        if endpoint is not None and endpoint_url is not None:
            raise ConfigurationError("endpoint and endpoint_url mean the same; give one of them")
        if (key is None) != (secret is None) or (token is not None and key is None):
            raise ConfigurationError("key and secret go together, token needs both")
        given: dict[str, Any] = {"profile": profile, "unsigned": anon, "requester_pays": requester_pays}
        if key is not None and secret is not None:
            given["credentials"] = StaticCredentials(key, secret, token)
        changes = {name: one for name, one in given.items() if one not in (None, False)}
        return cls(
            region or kwargs.get("region_name"),
            endpoint or endpoint_url or kwargs.get("endpoint_url"),
            replace(s3client_config or S3ClientConfig(), **changes),
        )


def parents(path: str) -> list[str]:
    """Returns the parents of a path, nearest first, up to the bucket."""
    found = []
    while "/" in path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


class SharedStore:
    """A client, its cached listings, and the directories that were made, which S3 does not have."""

    def __init__(self, options: ClientOptions, cache: dict[str, Any]) -> None:
        self.client = S3Client(
            options.region,
            endpoint=options.endpoint,
            user_agent=UserAgent(["fsspec"]),
            s3client_config=options.config,
        )
        self.listings: Any = DirCache(**cache)
        self.made_directories: set[str] = set()

    def make_directory(self, path: str) -> None:
        """Remembers a directory and its parents."""
        self.made_directories.update((path, *parents(path)))

    def invalidate(self, path: str) -> None:
        """Drops cached listings that a change of ``path``, or of anything below it, makes wrong."""
        for stale in (path, *parents(path), ""):
            self.listings.pop(stale, None)
        for stale in [known for known in list(self.listings) if known.startswith(f"{path}/")]:
            self.listings.pop(stale, None)

    def forget_directory(self, path: str) -> None:
        """Forgets a directory that was made, and those in it."""
        made = self.made_directories
        made -= {known for known in made.copy() if f"{known}/".startswith(f"{path}/")}


def shared_store(options: ClientOptions, storage_options: dict[str, Any]) -> SharedStore:
    """Returns the store of these options, which is the one of another filesystem that has them."""
    cache = {name: storage_options.get(name, value) for name, value in _CACHE_DEFAULTS.items()}
    key = (options, tuple(cache.items()))
    return _stores.get(key) or _stores.setdefault(key, SharedStore(options, cache))


_stores: WeakValueDictionary[tuple[Any, ...], SharedStore] = WeakValueDictionary()


class S3Tree(AbstractFileSystem):
    """The names in the buckets that a client reaches; ``S3FileSystem`` adds the bytes."""

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
        """Lists one directory level, or one object; ``refresh`` asks S3 also when the listing is cached."""
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
        made = self._store.made_directories
        exists = not key or path in made
        for page in self.client.list_objects(bucket, prefix, "/"):
            exists = exists or bool(page.object_info or page.common_prefixes)
            names = (common.removesuffix("/") for common in page.common_prefixes)
            directories += [directory_entry(f"{bucket}/{n}") for n in names if n and not n.endswith("/")]
            files += _files_of(bucket, page.object_info)
        if not exists:
            return None
        new = sorted(made - {entry["name"] for entry in directories})
        directories += [directory_entry(name) for name in new if name.rpartition("/")[0] == path]
        return directories + files

    def _objects_below(self, bucket: str, key: str, **options: Any) -> Iterator[ObjectInfo]:
        for page in self.client.list_objects(bucket, f"{key}/" if key else "", **options):
            yield from page.object_info

    def _has_objects_below(self, bucket: str, key: str) -> bool:
        return any(True for _ in self._objects_below(bucket, key, max_keys=1))

    def _head(self, path: str) -> Entry:
        bucket, key = self._split(path)
        return file_entry(path, self.client.head_object(bucket, key))

    def info(self, path: Any, **_: Any) -> Entry:
        """Returns the entry of an object or directory; one HEAD for an object."""
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
        """Whether there is an object or a directory; an error where S3 did not answer."""
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
        entries = _files_of(bucket, self._objects_below(bucket, key))
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


def _files_of(bucket: str, objects: Iterable[ObjectInfo]) -> list[Entry]:
    return [file_entry(f"{bucket}/{info.key}", info) for info in objects if not info.key.endswith("/")]


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
    """Returns the entry of a directory, which is what keys have in common up to a slash."""
    return {
        "name": path,
        "size": 0,
        "type": "directory",
        "Key": path,
        "Size": 0,
        "StorageClass": "DIRECTORY",
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
