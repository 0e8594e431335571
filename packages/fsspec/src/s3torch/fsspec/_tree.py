"""The names in buckets as a tree of directories and files; no object is changed here."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from contextlib import suppress
from glob import has_magic
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from s3torch.core import ConfigurationError, NotFoundError, S3Client
from s3torch.fsspec._names import (
    Entry,
    directory_entry,
    directory_of,
    entries_of,
    file_entry,
    is_marker,
    parent_of,
    prefix_of,
)
from s3torch.fsspec._store import ClientOptions, shared_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from s3torch.core import ObjectInfo


def refuse(options: dict[str, Any], method: str) -> None:
    """Raises ``ConfigurationError`` for options that a method does not know: ignored, they would mislead."""
    if options:
        raise ConfigurationError(f"unknown option {', '.join(sorted(options))} for {method} of s3://")


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
    def _exact(cls, path: Any) -> str:
        """Returns ``bucket/key`` with all its slashes."""
        text = os.fspath(path)
        if not isinstance(text, str):
            raise ConfigurationError(f"expected a path as a string, got {path!r}")
        for protocol in cls.protocol:
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

    # Listings

    def ls(self, path: Any, detail: bool = True, refresh: bool = False, **options: Any) -> list[Any]:  # noqa: FBT001, FBT002
        """Lists one directory level, or one object; ``refresh`` asks S3 also when the listing is cached."""
        refuse(options, "ls")
        exact, path = self._exact(path), self._strip_protocol(path)
        entries = None if refresh else self.dircache.get(path)
        if entries is None:
            entries = self._list_directory(path)
            if entries is None:
                entries = [self.info(exact)]
            else:
                self.dircache[path] = entries
        return list(entries) if detail else [entry["name"] for entry in entries]

    def _list_directory(self, path: str) -> list[Entry] | None:
        bucket, key = self._split(path)
        files: list[Entry] = []
        directories: dict[str, Entry] = {}
        made = self._store.made_directories
        exists = not key or path in made
        for page in self.client.list_objects(bucket, prefix_of(key), "/"):
            exists = exists or bool(page.object_info or page.common_prefixes)
            names = [directory_of(f"{bucket}/{common}") for common in page.common_prefixes]
            directories |= {name: directory_entry(name) for name in names}
            files += [file_entry(f"{bucket}/{i.key}", i) for i in page.object_info if not is_marker(i)]
        if not exists:
            return None
        for name in sorted(made):
            if parent_of(name) == path:
                directories.setdefault(name, directory_entry(name))
        return [*directories.values(), *files]

    def _objects_below(self, bucket: str, key: str, start: str = "", **options: Any) -> Iterator[ObjectInfo]:
        for page in self.client.list_objects(bucket, prefix_of(key) + start, **options):
            yield from page.object_info

    def _has_objects_below(self, bucket: str, key: str) -> bool:
        return any(True for _ in self._objects_below(bucket, key, max_keys=1))

    def walk(
        self,
        path: Any,
        maxdepth: int | None = None,
        topdown: bool = True,  # noqa: FBT001, FBT002
        on_error: str | Callable[[OSError], Any] = "omit",
        detail: bool = False,  # noqa: FBT001, FBT002
        **options: Any,
    ) -> Iterator[Any]:
        """Yields each directory with what is in it, as ``os.walk`` does.

        ``on_error`` is for directories that do not exist. That S3 did not answer, or refused, is raised: a
        listing that failed is no empty directory.
        """
        if maxdepth is not None and maxdepth < 1:
            raise ConfigurationError(f"maxdepth must be at least 1, got {maxdepth}")
        path = self._strip_protocol(path)
        try:
            entries = self.ls(path, **options)
        except FileNotFoundError as error:
            if on_error == "raise":
                raise
            if callable(on_error):
                on_error(error)
            return
        start = prefix_of(path)
        found: dict[str, dict[str, Entry]] = {"directory": {}, "file": {}}
        for entry in entries:
            # A listing of a file has that file alone; a file like "data/" has the name of its directory.
            name = entry["name"][len(start) :].removesuffix("/")
            found[entry["type"]][name] = entry
        dirs, files = [kind if detail else list(kind) for kind in found.values()]
        if topdown:
            yield path, dirs, files
        if maxdepth != 1:
            deeper = None if maxdepth is None else maxdepth - 1
            # The caller may have taken some away, or added others.
            for name in dirs:
                inside = found["directory"].get(name, {"name": start + name})["name"]
                yield from self.walk(inside, deeper, topdown, on_error, detail, **options)
        if not topdown:
            yield path, dirs, files

    def find(
        self,
        path: Any,
        maxdepth: int | None = None,
        withdirs: bool = False,  # noqa: FBT001, FBT002
        detail: bool = False,  # noqa: FBT001, FBT002
        prefix: str = "",
        **options: Any,
    ) -> Any:
        """Returns all files below a path; one request for 1,000 of them, however deep they are.

        ``prefix`` is what their names below the path have to begin with.
        """
        exact, path = self._exact(path), self._strip_protocol(path)
        if (maxdepth is not None or not path) and not prefix:
            return super().find(path, maxdepth, withdirs=withdirs, detail=detail, **options)
        if maxdepth is not None:
            raise ConfigurationError("find of s3:// takes prefix or maxdepth, not both")
        refuse(options, "find")
        bucket, key = self._split(path)
        found = entries_of(bucket, self._objects_below(bucket, key, prefix), path)
        if path in self._store.made_directories:
            found.setdefault(path, directory_entry(path))
        if not withdirs:
            found = {name: entry for name, entry in found.items() if entry["type"] == "file"}
        if not found and key and not prefix and self.isfile(exact):
            found = {exact: self.info(exact)}
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def expand_path(
        self,
        path: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002
        maxdepth: int | None = None,
        assume_literal: bool = False,  # noqa: FBT001, FBT002
        **_: Any,
    ) -> list[str]:
        """Returns what paths and patterns name; what exists by that very name is no pattern.

        Raises:
            FileNotFoundError: They name nothing.
        """
        return sorted(self._expand(path, recursive, maxdepth, literal=assume_literal))

    def _expand(
        self,
        path: Any,
        recursive: bool,  # noqa: FBT001
        maxdepth: int | None,
        *,
        literal: bool = False,
    ) -> dict[str, Entry | None]:
        """Returns what paths name, with its entry where that is known."""
        paths = [path] if isinstance(path, str | os.PathLike) else list(path)
        found: dict[str, Entry | None] = {}
        for one in map(self._exact, paths):
            if not literal and has_magic(one) and not self._is_literal(one):
                matches = self.glob(one, maxdepth=maxdepth, detail=True)
                found |= matches
                if recursive and matches and maxdepth != 1:
                    deeper = None if maxdepth is None else maxdepth - 1
                    found |= self._expand(list(matches), recursive, deeper, literal=True)
            elif recursive:
                found |= self.find(one, maxdepth=maxdepth, withdirs=True, detail=True)
                entry = found.get(one)
                if entry is not None and entry["type"] == "directory" and self.isfile(one):
                    # It is a file and a directory.
                    found[one] = self.info(one)
            else:
                found.setdefault(one, None)
        if not found:
            raise NotFoundError(f"there is nothing at {', '.join(map(str, paths))}")
        return found

    def _is_literal(self, path: str) -> bool:
        bucket, _, key = path.partition("/")
        pages = self.client.list_objects(bucket, key, max_keys=1) if key and not has_magic(bucket) else ()
        return any(page.object_info for page in pages) and self.exists(path)

    # Facts

    def info(self, path: Any, version_id: str | None = None, **options: Any) -> Entry:
        """Returns the entry of an object or directory; one HEAD for an object."""
        refuse(options, "info")
        exact, path = self._exact(path), self._strip_protocol(path)
        if not path:
            return directory_entry("")
        if version_id is None:
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

    def exists(self, path: Any, **options: Any) -> bool:
        """Whether there is an object or a directory; an error where S3 did not answer."""
        try:
            self.info(path, **options)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: Any) -> bool:
        """Whether there is an object; one HEAD."""
        bucket, _, key = self._exact(path).partition("/")
        if key.endswith("/"):
            with suppress(FileNotFoundError):
                return bool(self.info(path)["type"] == "file")
            return False
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

    def du(
        self,
        path: Any,
        total: bool = True,  # noqa: FBT001, FBT002
        maxdepth: int | None = None,
        withdirs: bool = False,  # noqa: FBT001, FBT002
        **options: Any,
    ) -> Any:
        """Returns the bytes below a path, in all or by file, from the listing alone."""
        found = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True, **options)
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
