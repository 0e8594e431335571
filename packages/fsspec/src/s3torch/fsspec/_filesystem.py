"""``s3://`` for fsspec: pandas, pyarrow, Lightning and others open S3 through the s3torch client.

What is done to many files at once is here: copies, moves, downloads, removal. Names are exact, and nothing is
touched before it is known that no two files would become one.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import os
from functools import partial
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.implementations.local import LocalFileSystem, make_path_posix

from s3torch.core import ConfigurationError
from s3torch.core.ranges import MIN_PART_SIZE
from s3torch.core.transfer import run_ahead
from s3torch.fsspec._async import S3Coroutines
from s3torch.fsspec._files import CHUNK, held_back
from s3torch.fsspec._names import (
    Entry,
    check_distinct,
    check_local,
    each_to_its_own,
    is_directory,
    prefix_of,
    takes_local_inside,
    targets_of,
)
from s3torch.fsspec._options import put_options
from s3torch.fsspec._ranges import S3Contents

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_IN_FLIGHT = 16


class S3FileSystem(S3Coroutines, S3Contents):
    """A filesystem of buckets and keys, on ``S3Client``.

    Paths are ``bucket/key``, with or without ``s3://``, as strings or path objects. A directory is what keys
    share up to a slash; one that was made and is still empty is known to this process only. Files appear on
    S3 when they are closed, whole, or not at all. Listings are not cached unless ``use_listings_cache=True``
    is given, because other processes write to the same buckets.

    It is safe to use from several threads, before and after ``fork``, and can be pickled. With
    ``asynchronous=True`` it also has the coroutines that fsspec names with an underscore, as ``_cat_file``;
    they may be awaited on any loop.

    Args:
        region: The region; ``None`` takes the usual AWS places.
        reader_constructor: How objects are opened for reading; ``None`` is the sequential reader.
        default_block_size: ``block_size`` of files that are opened without one.
        version_aware: Whether ``?versionId=`` at the end of a path names a version, and ``versions=True``
            lists them.
        storage_options: ``endpoint_url`` (or ``endpoint``), ``anon``, ``key``, ``secret``, ``token``,
            ``profile``, ``requester_pays``, ``s3client_config``, and what s3fs has besides; the table in the
            README says what each means; and fsspec's own, for its cache of listings.

    Raises:
        ConfigurationError: An option is unknown or wrong.
    """

    @held_back
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
            options: How the copies are stored, as in ``cp_file``.

        Raises:
            ConfigurationError: Two objects would become one, or one would replace what is yet to be copied.
        """
        pairs = self._pairs(path1, path2, recursive, maxdepth, self._takes_inside)
        is_lenient = on_error == "ignore" or (on_error is None and recursive)
        self._copy_all(pairs, ignore_missing=is_lenient, options=options)

    @held_back
    def mv(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002
        maxdepth: int | None = None,
        **options: Any,
    ) -> None:
        """Moves objects within S3: copies them all, then removes what was copied to another path.

        Raises:
            IsADirectoryError: It is a directory, and ``recursive`` is False.
            ConfigurationError: Two objects would become one, or one would replace what is yet to be moved.
        """
        if self._strip_protocol(path1) == self._strip_protocol(path2):
            return
        pairs = self._pairs(path1, path2, recursive, maxdepth, self._takes_inside)
        if not pairs and not recursive:
            raise IsADirectoryError(f"{path1} is a directory; move it with recursive=True")
        copied = self._copy_all(pairs, ignore_missing=False, options=options)
        directories = {source for source in copied if is_directory(pairs[source][1])}
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
        pairs = self._pairs(rpath, lpath, recursive, maxdepth, takes_local_inside)
        targets = {source: target for source, (target, _) in pairs.items()}
        check_local(lpath, targets, files={name for name in pairs if not is_directory(pairs[name][1])})
        callback.set_size(len(pairs))

        def download(source: str) -> None:
            target, entry = pairs[source]
            if is_directory(entry):
                Path(target).mkdir(parents=True, exist_ok=True)
                return
            with callback.branched(source, target) as child:
                self.get_file(source, target, callback=child, **options)

        for _ in callback.wrap(run_ahead(download, pairs, workers=_IN_FLIGHT, name="s3torch-get")):
            """The file is there."""

    def put(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002
        callback: Any = DEFAULT_CALLBACK,
        maxdepth: int | None = None,
        **options: Any,
    ) -> None:
        """Uploads local files, several at a time, by the rules of ``copy``.

        Raises:
            ConfigurationError: Two files would become one object.
        """
        pairs = self._uploads(lpath, rpath, recursive, maxdepth)
        callback.set_size(len(pairs))

        def upload(pair: tuple[str, str]) -> None:
            with callback.branched(*pair) as child:
                self.put_file(*pair, callback=child, **options)

        for _ in callback.wrap(run_ahead(upload, pairs, workers=_IN_FLIGHT, name="s3torch-put")):
            """The object is there."""

    def _uploads(
        self,
        lpath: Any,
        rpath: Any,
        recursive: bool,  # noqa: FBT001
        maxdepth: int | None,
    ) -> list[tuple[str, str]]:
        """Returns local paths and where each goes."""
        if isinstance(lpath, list) and isinstance(rpath, list):
            return list(each_to_its_own(lpath, rpath).items())
        one = isinstance(lpath, str | os.PathLike)
        name = make_path_posix(os.fspath(lpath)) if one else ""
        is_pattern = has_magic(name) and not Path(name).exists()
        local = LocalFileSystem()
        if has_magic(name) and not is_pattern and not recursive:
            found = [name]
        else:
            found = local.expand_path(name if one else lpath, recursive=recursive, maxdepth=maxdepth)
        if one and (not recursive or maxdepth is not None):
            found = [path for path in found if not (path.endswith("/") or local.isdir(path))]
        if not found:
            return []
        inside = one and (
            len(found) == 1 if is_pattern else not name.endswith("/") and self._takes_inside(rpath)
        )
        targets = targets_of(found, self._exact(rpath), inside=inside, flat=not one)
        check_distinct(targets)
        return list(targets.items())

    def pipe(self, path: Any, value: Any = None, **options: Any) -> None:
        """Stores bytes as an object, or as several, several at a time: a mapping of paths to bytes."""
        pairs = path.items() if isinstance(path, dict) else [(path, value)]
        store = lambda pair: self.pipe_file(*pair, **options)  # noqa: E731
        for _ in run_ahead(store, pairs, workers=_IN_FLIGHT, name="s3torch-pipe"):
            """The object is there."""

    @held_back
    def merge(self, path: Any, filelist: list[Any], **given: Any) -> None:
        """Makes an object of others, one after the other; the others stay.

        They are joined within S3 where each but the last has 5 MiB, which S3 asks for. Smaller ones are read
        and stored.

        Args:
            path: The new object.
            filelist: What it is made of, in order.
            given: How it is stored: ``options`` (``PutOptions``) or the names of boto3.
        """
        chosen = put_options(given.pop("options", None), given, "merge")
        sources = [self._split_file(one) for one in filelist]
        sizes = [self.client.head_object(*one).size for one in sources]
        if any(sizes) and all(size >= MIN_PART_SIZE or not size for size in sizes[:-1]):
            self.client.join_objects(sources, *self._split_file(path), options=chosen)
            self.invalidate_cache(path)
            return
        with self.open(path, "wb", options=chosen, size=sum(sizes)) as joined:
            for one in filelist:
                with self._sequential(one) as source:
                    for chunk in iter(partial(source.read, CHUNK), b""):
                        joined.write(chunk)

    @held_back
    def rm(
        self,
        path: Any,
        recursive: bool = False,  # noqa: FBT001, FBT002
        maxdepth: int | None = None,
        batch_size: int | None = None,  # noqa: ARG002 - A hint of s3fs.
    ) -> None:
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
            targets = each_to_its_own(path1, path2)
            return {self._exact(one): (other, None) for one, other in targets.items()}
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
            for source, target in targets_of(list(found), path2, inside=inside, flat=not one).items()
        }

    def _is_only_directory(self, name: str, entry: Entry | None) -> bool:
        if entry is not None:
            return is_directory(entry)
        return not self.isfile(name) and self.isdir(name)

    def _copy_all(
        self,
        pairs: dict[str, tuple[str, Entry | None]],
        *,
        ignore_missing: bool,
        options: dict[str, Any],
    ) -> list[str]:
        """Copies objects and returns the names of those that were copied to another name."""
        exact = {source: self._exact(target) for source, (target, _) in pairs.items()}
        moved = {source: target for source, target in exact.items() if source != target}
        files = {s: t for s, t in moved.items() if not is_directory(pairs[s][1])}
        check_distinct(files)
        if replaced := sorted(set(files.values()) & set(files)):
            raise ConfigurationError(f"{replaced[0]} would be replaced before it is copied itself")

        def copy(source: str) -> str | None:
            try:
                if source in files:
                    self.cp_file(source, moved[source], **options)
                else:
                    self.makedirs(moved[source], exist_ok=True)
            except FileNotFoundError:
                if not ignore_missing:
                    raise
                return None
            return source

        copied = run_ahead(copy, moved, workers=_IN_FLIGHT, name="s3torch-copy")
        return [source for source in copied if source is not None]
