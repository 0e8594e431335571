"""The names in buckets as a tree of directories and files; no object is changed here."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from glob import has_magic
from typing import TYPE_CHECKING, Any

from s3torch.core import ConfigurationError, NotFoundError
from s3torch.fsspec._facts import S3Facts
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
from s3torch.fsspec._options import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core.models import ObjectVersion


class S3Tree(S3Facts):
    """The names in the buckets that a client reaches; ``S3FileSystem`` adds the bytes."""

    def ls(
        self,
        path: Any,
        detail: bool = True,  # noqa: FBT001, FBT002
        refresh: bool = False,  # noqa: FBT001, FBT002
        versions: bool = False,  # noqa: FBT001, FBT002
        **options: Any,
    ) -> list[Any]:
        """Lists one directory level, one object, or, for the empty path, the buckets.

        Args:
            path: The path.
            detail: Whether entries are wanted or names.
            refresh: Ask S3 also when the listing is cached.
            versions: List all versions, as ``path?versionId=...``; in a filesystem that is
                ``version_aware``.
            options: None is known.
        """
        refuse(options, "ls")
        exact, path = self._exact(path), self._strip_protocol(path)
        if versions:
            found = self._list_versions(exact, "/")
            return found if detail else [entry["name"] for entry in found]
        entries = None if refresh else self.dircache.get(path)
        if entries is None:
            entries = self._list_directory(path)
            if entries is None:
                entries = [self.info(exact)]
            else:
                self.dircache[path] = entries
        return list(entries) if detail else [entry["name"] for entry in entries]

    def _list_directory(self, path: str) -> list[Entry] | None:
        if not path:
            return [_bucket_entry(one.name, one.created) for one in self.client.list_buckets()]
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

    def _list_versions(self, path: str, delimiter: str) -> list[Entry]:
        """Lists the versions of what is in a directory, or of an object, the latest of each first."""
        if not self.version_aware:
            refuse(["versions"], "ls and find")
        bucket, key = self._split(path)
        prefix = prefix_of(key)
        entries = list(self._versions_of(bucket, prefix, delimiter, lambda _: True))
        if not entries and key:
            entries = list(self._versions_of(bucket, key, "", lambda one: one.key == key))
        if not entries and key:
            raise NotFoundError("there are no versions", bucket=bucket, key=key)
        return entries

    def _versions_of(
        self, bucket: str, prefix: str, delimiter: str, wanted: Callable[[ObjectVersion], bool]
    ) -> Iterator[Entry]:
        for page in self.client.list_object_versions(bucket, prefix, delimiter):
            yield from (directory_entry(directory_of(f"{bucket}/{one}")) for one in page.common_prefixes)
            for one in page.versions:
                if not one.is_delete_marker and wanted(one):
                    entry = file_entry(f"{bucket}/{one.key}", one)
                    entry["name"] += f"?versionId={one.version_id}"
                    yield entry | {"VersionId": one.version_id, "IsLatest": one.is_latest}

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
        versions: bool = False,  # noqa: FBT001, FBT002
        **options: Any,
    ) -> Any:
        """Returns all files below a path; one request for 1,000 of them, however deep they are.

        Args:
            path: The path.
            maxdepth: How many levels of directories; asks S3 for each directory.
            withdirs: Whether directories are among them.
            detail: Whether entries are wanted, by name, or names.
            prefix: What their names below the path have to begin with.
            versions: All versions, as ``path?versionId=...``; in a filesystem that is ``version_aware``.
            options: Those of ``ls``, with ``maxdepth``.
        """
        exact, path = self._exact(path), self._strip_protocol(path)
        if versions:
            refuse(options, "find")
            found = {one["name"]: one for one in self._list_versions(exact, "")}
        elif (maxdepth is not None or not path) and not prefix:
            return super().find(path, maxdepth, withdirs=withdirs, detail=detail, **options)
        else:
            refuse(options, "find")
            found = self._found_below(exact, path, prefix, withdirs=withdirs)
        if maxdepth is not None:
            start = len(prefix_of(path))
            found = {name: one for name, one in found.items() if name.count("/", start) < maxdepth}
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def _found_below(self, exact: str, path: str, prefix: str, *, withdirs: bool) -> dict[str, Entry]:
        bucket, key = self._split(path)
        found = entries_of(bucket, self._objects_below(bucket, key, prefix), path)
        if path in self._store.made_directories:
            found.setdefault(path, directory_entry(path))
        if not withdirs:
            found = {name: entry for name, entry in found.items() if entry["type"] == "file"}
        if not found and key and not prefix and self.isfile(exact):
            found = {exact: self.info(exact)}
        return found

    def glob(self, path: Any, maxdepth: int | None = None, **options: Any) -> Any:
        """Returns what matches a pattern; a pattern of buckets is asked for in each bucket that matches."""
        bucket, slash, key = self._exact(path).partition("/")
        if not has_magic(bucket) or not key or "**" in bucket:
            return super().glob(self._exact(path), maxdepth=maxdepth, **options)
        buckets = [entry["name"] for entry in self.ls("") if fnmatchcase(entry["name"], bucket)]
        found = [super(S3Tree, self).glob(f"{one}{slash}{key}", maxdepth, **options) for one in buckets]
        if options.get("detail", False):
            return {name: entry for part in found for name, entry in part.items()}
        return [name for part in found for name in part]

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
        path, version_id = self._split_version(path)
        if version_id is not None and not has_magic(path):
            return True
        bucket, _, key = path.partition("/")
        pages = self.client.list_objects(bucket, key, max_keys=1) if key and not has_magic(bucket) else ()
        return any(page.object_info for page in pages) and self.exists(path)

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


def _bucket_entry(name: str, created: int | None) -> Entry:
    entry = directory_entry(name) | {"StorageClass": "BUCKET"}
    if created is not None:
        entry["CreationDate"] = datetime.fromtimestamp(created, tz=UTC)
    return entry
