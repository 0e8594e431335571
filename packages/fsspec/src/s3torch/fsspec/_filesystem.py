"""``s3://`` for fsspec: pandas, pyarrow, Lightning and others open S3 through the s3torch client.

What is done to many files at once is here: copies, moves, downloads, removal. Names are exact, and nothing is
touched before it is known that no two files would become one.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.utils import common_prefix

from s3torch.core import ConfigurationError
from s3torch.core.transfer import run_ahead
from s3torch.fsspec._names import Entry, prefix_of
from s3torch.fsspec._objects import S3Files
from s3torch.fsspec._tree import refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_IN_FLIGHT = 16


class S3FileSystem(S3Files):
    """A filesystem of buckets and keys, on ``S3Client``.

    Paths are ``bucket/key``, with or without ``s3://``, as strings or path objects. A directory is what keys
    share up to a slash; one that was made and is still empty is known to this process only. Files appear on
    S3 when they are closed, whole, or not at all. Listings are not cached unless ``use_listings_cache=True``
    is given, because other processes write to the same buckets.

    It is safe to use from several threads, before and after ``fork``, and can be pickled. It has no
    coroutines: ``asynchronous=True`` is for libraries that wrap it, as zarr does with
    ``AsyncFileSystemWrapper`` of fsspec.

    Args:
        region: The region; ``None`` takes the usual AWS places.
        reader_constructor: How objects are opened for reading; ``None`` is the sequential reader.
        storage_options: ``endpoint_url`` (or ``endpoint``), ``anon``, ``key``, ``secret``, ``token``,
            ``profile``, ``requester_pays``, ``s3client_config``, ``client_kwargs`` with ``endpoint_url`` and
            ``region_name``, and fsspec's own ``use_listings_cache``, ``listings_expiry_time``, ``max_paths``.

    Raises:
        ConfigurationError: An option is unknown or wrong.
    """

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002
        maxdepth: int | None = None,
        on_error: str | None = None,
        **options: Any,
    ) -> None:
        """Copies objects within S3, several at a time.

        Args:
            path1: What is copied: a path, a pattern, or a list of them.
            path2: Where to; a directory that exists or ends in a slash takes the copy inside.
            recursive: Copy directories with all that is in them.
            maxdepth: How many levels of them.
            on_error: ``"raise"``, or ``"ignore"`` for objects that have gone meanwhile, which is the default
                with ``recursive``.
            options: None is known.

        Raises:
            ConfigurationError: Two objects would become one, or one would replace what is yet to be copied.
        """
        refuse(options, "copy")
        pairs = self._pairs(path1, path2, recursive, maxdepth, self._takes_inside)
        self._copy_all(pairs, ignore_missing=on_error == "ignore" or (on_error is None and recursive))

    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002
        maxdepth: int | None = None,
        **options: Any,
    ) -> None:
        """Moves objects within S3: copies them all, then removes what was copied, and nothing else.

        To the same path, nothing is moved.

        Raises:
            IsADirectoryError: It is a directory, and ``recursive`` is False.
            ConfigurationError: Two objects would become one, or one would replace what is yet to be moved.
        """
        refuse(options, "mv")
        if self._strip_protocol(path1) == self._strip_protocol(path2):
            return
        pairs = self._pairs(path1, path2, recursive, maxdepth, self._takes_inside)
        if not pairs and not recursive:
            raise IsADirectoryError(f"{path1} is a directory; move it with recursive=True")
        copied = self._copy_all(pairs, ignore_missing=False)
        directories = {source for source in copied if _is_directory(pairs[source][1])}
        self._delete_all(source for source in copied if source not in directories)
        if maxdepth is None:
            # The empty objects that say that there is a directory.
            self._delete_all(map(prefix_of, directories))
            for directory in directories:
                self._store.forget_directory(directory)

    def get(
        self,
        rpath: Any,
        lpath: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **options: Any,
    ) -> None:
        """Downloads objects to local files, by the rules of ``copy``.

        Raises:
            ConfigurationError: Two keys would become one file, or one would leave the folder: keys may have
                ``..``, ``//`` or a slash at the end, which local names cannot have.
        """
        if isinstance(lpath, str | os.PathLike):
            lpath = os.fspath(lpath)
        pairs = self._pairs(rpath, lpath, recursive, maxdepth, _takes_inside)
        _check_local(lpath, {source: target for source, (target, _) in pairs.items()})
        callback.set_size(len(pairs))

        def download(source: str) -> None:
            target, entry = pairs[source]
            if _is_directory(entry):
                Path(target).mkdir(parents=True, exist_ok=True)
                return
            with callback.branched(source, target) as child:
                self.get_file(source, target, callback=child, **options)

        for _ in callback.wrap(run_ahead(download, pairs, workers=_IN_FLIGHT, name="s3torch-get")):
            """The file is there."""

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:  # noqa: FBT001, FBT002
        """Returns the bytes of an object, or of several by name, several at a time; directories have none."""
        found = self._expand(path, recursive, None)
        names = [name for name, entry in found.items() if not recursive or not _is_directory(entry)]
        if isinstance(path, str | os.PathLike) and names == [self._exact(path)]:
            return self.cat_file(names[0], **options)
        contents = dict(
            zip(names, self._cat_all([(name,) for name in names], on_error, options), strict=True)
        )
        if on_error == "omit":
            return {name: one for name, one in contents.items() if not isinstance(one, Exception)}
        return contents

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **options: Any,
    ) -> list[Any]:
        """Returns ranges of objects, several at a time; ``starts`` and ``ends`` may be one number for all.

        Raises:
            ConfigurationError: The lists are not of the same length, or ``max_gap`` is given: ranges are not
                joined.
        """
        if max_gap is not None:
            raise ConfigurationError("cat_ranges of s3:// does not join ranges; leave max_gap out")
        first, last = (one if isinstance(one, list) else [one] * len(paths) for one in (starts, ends))
        if not len(paths) == len(first) == len(last):
            raise ConfigurationError(f"got {len(paths)} paths, {len(first)} starts and {len(last)} ends")
        return self._cat_all(list(zip(paths, first, last, strict=True)), on_error, options)

    def _cat_all(self, calls: list[tuple[Any, ...]], on_error: str, options: dict[str, Any]) -> list[Any]:
        def read(call: tuple[Any, ...]) -> Any:
            try:
                return self.cat_file(*call, **options)
            except Exception as error:
                if on_error == "raise":
                    raise
                return error

        return list(run_ahead(read, calls, workers=_IN_FLIGHT, name="s3torch-cat"))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: FBT001, FBT002
        """Deletes objects, 1,000 in a request; with ``recursive`` directories with all that is in them.

        ``data`` and ``data/`` are two names: the first is an object and, with ``recursive``, also the
        directory; the second is the directory alone and the object whose key ends in a slash.

        Raises:
            FileNotFoundError: With ``recursive``, there is nothing at a path.
            S3Error: S3 refused to delete some of them; the others are gone.
        """
        deep = recursive and maxdepth is None
        paths = list(self._expand(path, recursive and not deep, maxdepth))
        if deep:
            self._delete_all([name for found in paths for name in self._names_to_remove(found)])
        else:
            self._delete_all(paths)
        for found in paths:
            self._store.forget_directory(self._strip_protocol(found))
            self.invalidate_cache(found)

    def _names_to_remove(self, path: str) -> list[str]:
        bucket, key = self._split(path)
        names = [f"{bucket}/{info.key}" for info in self._objects_below(bucket, key)]
        if not names and self._strip_protocol(path) not in self._store.made_directories:
            self.info(path)
        return [*names, path] if key and not path.endswith("/") else names

    def _delete_all(self, names: Iterable[str]) -> None:
        by_bucket: dict[str, list[str]] = {}
        for name in names:
            bucket, key = self._split_file(name)
            by_bucket.setdefault(bucket, []).append(key)
            self.invalidate_cache(name)
        for bucket, keys in by_bucket.items():
            if len(keys) == 1:
                self.client.delete_object(bucket, keys[0])
            elif failures := self.client.delete_objects(bucket, keys):
                error = failures[0].error(bucket)
                error.add_note(f"{len(failures)} of {len(keys)} objects were not deleted")
                raise error

    def _takes_inside(self, path: str) -> bool:
        return path.endswith("/") or self.isdir(path)

    def _pairs(
        self,
        path1: Any,
        path2: Any,
        recursive: bool,  # noqa: FBT001
        maxdepth: int | None,
        takes_inside: Callable[[str], bool],
    ) -> dict[str, tuple[str, Entry | None]]:
        """Returns where each object and directory goes, by the rules of fsspec, with its entry if known."""
        if isinstance(path1, list) and isinstance(path2, list):
            if len(path1) != len(path2):
                raise ConfigurationError(f"expected a target for each of {len(path1)}, got {len(path2)}")
            return {self._exact(one): (other, None) for one, other in zip(path1, path2, strict=True)}
        one = isinstance(path1, str | os.PathLike)
        found = self._expand(path1, recursive, maxdepth)
        if one and (not recursive or maxdepth is not None):
            found = {name: e for name, e in found.items() if not self._is_only_directory(name, e)}
        if not found:
            return {}
        name = self._exact(path1) if one else ""
        is_pattern = has_magic(name) and name not in found
        inside = one and (len(found) == 1 if is_pattern else not name.endswith("/") and takes_inside(path2))
        return {
            source: (target, found[source])
            for source, target in _targets(list(found), path2, inside=inside, flat=not one).items()
        }

    def _is_only_directory(self, name: str, entry: Entry | None) -> bool:
        if entry is not None:
            return _is_directory(entry)
        return not self.isfile(name) and self.isdir(name)

    def _copy_all(self, pairs: dict[str, tuple[str, Entry | None]], *, ignore_missing: bool) -> list[str]:
        """Copies objects and returns the names of those that were copied to another name."""
        exact = {source: self._exact(target) for source, (target, _) in pairs.items()}
        moved = {source: target for source, target in exact.items() if source != target}
        files = {s: t for s, t in moved.items() if not _is_directory(pairs[s][1])}
        _check_distinct(files)
        if replaced := sorted(set(files.values()) & set(files)):
            raise ConfigurationError(f"{replaced[0]} would be replaced before it is copied itself")

        def copy(source: str) -> str | None:
            try:
                if source in files:
                    self.cp_file(source, moved[source])
                else:
                    self.makedirs(moved[source], exist_ok=True)
            except FileNotFoundError:
                if not ignore_missing:
                    raise
                return None
            return source

        copied = run_ahead(copy, moved, workers=_IN_FLIGHT, name="s3torch-copy")
        return [source for source in copied if source is not None]


def _is_directory(entry: Entry | None) -> bool:
    return entry is not None and entry["type"] == "directory"


def _takes_inside(folder: str) -> bool:
    return folder.endswith(("/", os.sep)) or Path(folder).is_dir()


def _targets(names: list[str], target: str, *, inside: bool, flat: bool) -> dict[str, str]:
    """Returns where names go below ``target``; ``inside`` it, or in its place."""
    root = target.removesuffix("/")
    if flat:
        return {name: f"{root}/{name.removesuffix('/').rpartition('/')[2]}" for name in names}
    common = common_prefix(names)
    if inside:
        common = common.removesuffix("/").rpartition("/")[0]
    cut = len(common) + 1 if common else 0
    return {name: root if name == common else f"{root}/{name[cut:]}" for name in names}


def _check_distinct(targets: dict[str, str]) -> None:
    sources: dict[str, str] = {}
    for source, target in targets.items():
        other = sources.setdefault(target, source)
        if other != source:
            raise ConfigurationError(f"{other} and {source} would both become {target}")


def _check_local(root: Any, targets: dict[str, str]) -> None:
    """Raises unless every name has a local file of its own, below ``root`` where that is one folder."""
    # Not resolved: a link in the way is the caller's, as it is for every other program.
    files = {source: os.path.abspath(target) for source, target in targets.items()}  # noqa: PTH100
    _check_distinct(files)
    folder = os.path.abspath(root) if isinstance(root, str) else None  # noqa: PTH100
    for source, file in files.items():
        if folder is not None and file != folder and not Path(file).is_relative_to(folder):
            raise ConfigurationError(f"{source} would be written to {file}, outside {folder}")
