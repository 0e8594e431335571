"""``s3://`` for fsspec: pandas, pyarrow, Lightning and others open S3 through the s3torch client."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.utils import isfilelike

from s3torch.core import ConfigurationError, NotFoundError, PutOptions, S3Error, S3ReaderConstructor
from s3torch.fsspec._files import (
    CompressedFile,
    DirectoryNotEmptyError,
    ObjectExistsError,
    S3WriteFile,
    TextFile,
)
from s3torch.fsspec._tree import S3Tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from s3torch.core import RangedS3Reader, S3Reader, SequentialS3Reader

_CHUNK = 8 * 1024 * 1024
_LARGEST_COPY = 5 * 1024**3
_MODES = ("rb", "wb", "xb", "ab")
# What callers of s3fs and fsspec pass for their caches; it is ignored, but for the size of what is written.
_HINTS = {"cache_type", "fill_cache", "size"}


class S3FileSystem(S3Tree):
    """A filesystem of buckets and keys, on ``S3Client``.

    Paths are ``bucket/key``, with or without ``s3://``, as strings or path objects. A directory is what keys
    share up to a slash; one that was made and is still empty is known to this process only. Files appear on
    S3 when they are closed, whole, or not at all. Listings are not cached unless ``use_listings_cache=True``
    is given, because other processes write to the same buckets.

    It is safe to use from several threads, before and after ``fork``, and can be pickled.

    Args:
        region: The region; ``None`` takes the usual AWS places.
        reader_constructor: How objects are opened for reading; ``None`` is the sequential reader.
        storage_options: ``endpoint_url`` (or ``endpoint``), ``anon``, ``key``, ``secret``, ``token``,
            ``profile``, ``requester_pays``, ``s3client_config``, ``client_kwargs`` with ``endpoint_url`` and
            ``region_name``, and fsspec's own ``use_listings_cache``, ``listings_expiry_time``, ``max_paths``.

    Raises:
        ConfigurationError: An option is unknown or wrong.
    """

    def __init__(
        self,
        region: str | None = None,
        *,
        reader_constructor: Callable[..., S3Reader] | None = None,
        **storage_options: Any,
    ) -> None:
        super().__init__(region, **storage_options)
        self._reader_constructor = reader_constructor

    # Opening

    def open(
        self,
        path: Any,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Opens an object as a file.

        Args:
            path: The object.
            mode: ``r``, ``w`` (replaces), ``x`` (fails on closing if the object exists) or ``a`` (reads the
                old object and writes it again with more at its end), with ``b`` for bytes.
            block_size: Reads through the range-based reader, which then fetches this much for a small read.
            cache_options: Accepted and ignored.
            compression: A codec of fsspec, or ``"infer"`` to take it from the name.
            kwargs: ``encoding``, ``errors`` and ``newline`` for text, ``reader_constructor`` for reading,
                ``options`` (``PutOptions``) for writing.

        Returns:
            An ``S3Reader`` for reading; for writing a file that appears when it is closed. Nothing is sent
            before the first byte, so a missing object is an error of the first read.

        Raises:
            ConfigurationError: The mode is not one of these.
        """
        text = {name: kwargs.pop(name, None) for name in ("encoding", "errors", "newline")}
        binary_mode = mode.replace("t", "").replace("b", "") + "b"
        if binary_mode not in _MODES:
            raise ConfigurationError(f"mode must be one of r, w, x, a, with b or t, got {mode!r}")
        if "b" in mode and any(value is not None for value in text.values()):
            raise ConfigurationError(f"encoding, errors and newline are for text, got mode {mode!r}")
        file = super().open(path, binary_mode, block_size, cache_options, None, **kwargs)
        codec = get_compression(self._strip_protocol(path), compression)
        if codec is not None:
            file = CompressedFile(compr[codec](file, mode=binary_mode[0]), file)
        return file if "b" in mode else TextFile(file, **text)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,  # noqa: FBT001, FBT002
        cache_options: dict[str, Any] | None = None,  # noqa: ARG002
        *,
        reader_constructor: Callable[..., S3Reader] | None = None,
        options: PutOptions | None = None,
        **hints: Any,
    ) -> S3Reader | S3WriteFile:
        unknown = sorted(set(hints) - _HINTS)
        if unknown:
            raise ConfigurationError(
                f"unknown option {', '.join(unknown)}; open takes reader_constructor and options"
            )
        if mode == "rb":
            constructor = reader_constructor or self._reader_constructor
            if constructor is None and block_size is not None:
                constructor = S3ReaderConstructor.range_based(block_size)
            return self._reader(path, constructor)
        if mode == "ab":
            return self._open_for_append(path, autocommit=autocommit, options=options)
        if mode == "xb":
            options = replace(options or PutOptions(), if_none_match="*")
        return self._writer(
            path, mode, autocommit=autocommit, options=options, expected_size=hints.get("size") or 0
        )

    def _reader(self, path: Any, constructor: Callable[..., S3Reader] | None) -> S3Reader:
        bucket, key = self._split_file(path)
        return self.client.get_object(bucket, key, reader_constructor=constructor)

    def _sequential(self, path: Any) -> SequentialS3Reader:
        return cast("SequentialS3Reader", self._reader(path, S3ReaderConstructor.sequential()))

    def _unbuffered(self, path: Any) -> RangedS3Reader:
        return cast("RangedS3Reader", self._reader(path, S3ReaderConstructor.range_based(0)))

    def _writer(
        self,
        path: str,
        mode: str,
        *,
        autocommit: bool = True,
        options: PutOptions | None = None,
        expected_size: int = 0,
    ) -> S3WriteFile:
        bucket, key = self._split_file(path)
        return S3WriteFile(
            self.client.put_object(bucket, key, options=options, expected_size=expected_size),
            path=path,
            mode=mode,
            autocommit=autocommit,
            on_commit=lambda: self.invalidate_cache(path),
        )

    def _open_for_append(self, path: str, *, autocommit: bool, options: PutOptions | None) -> S3WriteFile:
        with self._sequential(path) as old:
            try:
                chunk = old.read(_CHUNK)
            except NotFoundError:
                return self._writer(path, "ab", autocommit=autocommit, options=options)
            # Where somebody else appends at the same time, this one fails, so that nothing is lost.
            options = options or PutOptions(if_match=old.etag)
            file = self._writer(path, "ab", autocommit=autocommit, options=options)
            try:
                while chunk:
                    file.write(chunk)
                    chunk = old.read(_CHUNK)
            except BaseException:
                file.discard()
                raise
        return file

    # Whole files

    def cat_file(self, path: Any, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Returns the bytes of an object, or those of a range; negative positions count from the end."""
        if start is None and end is None:
            with self._sequential(path) as reader:
                return bytes(reader.read())
        with self._unbuffered(path) as reader:
            first, last = start or 0, end
            if first < 0:
                first = max(0, reader.size + first)
            if last is not None and last < 0:
                last = max(0, reader.size + last)
            if last is not None and last <= first:
                return b""
            reader.seek(first)
            return bytes(reader.read(None if last is None else last - reader.tell()))

    def pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Stores bytes as an object; ``mode="create"`` raises ``FileExistsError`` if there is one already."""
        with self.open(path, "xb" if mode == "create" else "wb", **kwargs) as file:
            file.write(value)

    def put_file(
        self,
        lpath: Any,
        rpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **kwargs: Any,
    ) -> None:
        """Uploads a local file."""
        source = Path(lpath)
        if source.is_dir():
            self.makedirs(rpath, exist_ok=True)
            return
        kwargs["size"] = source.stat().st_size
        with (
            source.open("rb") as local,
            self.open(rpath, "xb" if mode == "create" else "wb", **kwargs) as remote,
        ):
            callback.set_size(kwargs["size"])
            buffer = memoryview(bytearray(_CHUNK))
            while count := local.readinto(buffer):
                remote.write(buffer[:count])
                callback.relative_update(count)

    def get_file(
        self,
        rpath: Any,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: IO[bytes] | None = None,
        **_: Any,
    ) -> None:
        """Downloads an object to a local file or into an open one; a failure leaves no file behind."""
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        with self._sequential(rpath) as remote:
            try:
                chunk = remote.read(_CHUNK)
            except NotFoundError:
                if outfile is not None or not self.isdir(rpath):
                    raise
                Path(lpath).mkdir(parents=True, exist_ok=True)
                return
            callback.set_size(remote.size)
            if outfile is not None:
                _copy_rest(remote, chunk, outfile, callback)
                return
            target = Path(lpath)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with target.open("wb") as local:
                    _copy_rest(remote, chunk, local, callback)
            except BaseException:
                target.unlink(missing_ok=True)
                raise

    def cp_file(self, path1: Any, path2: Any, **_: Any) -> None:
        """Copies an object within S3; the bytes do not pass through here up to 5 GiB."""
        source, target = self._split_file(path1), self._split_file(path2)
        try:
            self.client.copy_object(*source, *target)
        except NotFoundError:
            if not self.isdir(path1):
                raise
            self.makedirs(path2, exist_ok=True)
        except S3Error:
            if self.info(path1)["size"] <= _LARGEST_COPY:
                raise
            with self._sequential(path1) as reader, self.open(path2, "wb") as writer:
                shutil.copyfileobj(reader, writer, _CHUNK)
        self.invalidate_cache(path2)

    # Directories and removal

    def mkdir(self, path: Any, create_parents: bool = True, **_: Any) -> None:  # noqa: ARG002, FBT001, FBT002
        """Remembers a directory, for this process; S3 has none."""
        self.makedirs(path)

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Remembers a directory and those it is in, for this process; S3 has none.

        Buckets are neither made nor checked.

        Raises:
            ObjectExistsError: There is something with this name and ``exist_ok`` is False.
        """
        bucket, key = self._split(path)
        if not exist_ok and self.exists(path):
            raise ObjectExistsError("it exists already", bucket=bucket, key=key)
        if key:
            self._store.make_directory(self._strip_protocol(path))
            self.invalidate_cache(path)

    def rmdir(self, path: Any) -> None:
        """Forgets an empty directory; ``DirectoryNotEmptyError`` where there are objects in it."""
        bucket, key = self._split_file(path)
        for info in self._objects_below(bucket, key):
            if info.key != f"{key}/":
                raise DirectoryNotEmptyError("the directory is not empty", bucket=bucket, key=key)
            self.client.delete_object(bucket, info.key)
        self._store.forget_directory(self._strip_protocol(path))
        self.invalidate_cache(path)

    def rm_file(self, path: Any) -> None:
        """Deletes an object; a missing one is no error."""
        self.client.delete_object(*self._split_file(path))
        self.invalidate_cache(path)

    def _rm(self, path: Any) -> None:
        self.rm_file(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:  # noqa: FBT001, FBT002
        """Deletes objects, 1,000 in a request; with ``recursive`` directories with all that is in them.

        Raises:
            FileNotFoundError: With ``recursive``, there is nothing at a path.
            S3Error: S3 refused to delete some of them; the others are gone.
        """
        if recursive and maxdepth is None:
            paths = self.expand_path(path)
            keys_by_path = [(found, self._keys_to_remove(found)) for found in paths]
        else:
            paths = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
            keys_by_path = [(found, [self._split_file(found)[1]]) for found in paths]
        by_bucket: dict[str, list[str]] = {}
        for found, keys in keys_by_path:
            by_bucket.setdefault(self._split(found)[0], []).extend(keys)
        for bucket, keys in by_bucket.items():
            self._delete(bucket, keys)
        for found in paths:
            self._store.forget_directory(found)
            self.invalidate_cache(found)

    def _keys_to_remove(self, path: str) -> list[str]:
        bucket, key = self._split(path)
        keys = [info.key for info in self._objects_below(bucket, key)]
        if not keys and path not in self._store.made_directories:
            self.info(path)
        return [*keys, key] if key else keys

    def _delete(self, bucket: str, keys: list[str]) -> None:
        if len(keys) == 1:
            self.client.delete_object(bucket, keys[0])
            return
        if failures := self.client.delete_objects(bucket, keys):
            error = failures[0].error(bucket)
            error.add_note(f"{len(failures)} of {len(keys)} objects were not deleted")
            raise error


def _copy_rest(reader: S3Reader, chunk: bytes, target: IO[bytes], callback: Any) -> None:
    """Writes a chunk that was read and what follows it."""
    while chunk:
        target.write(chunk)
        callback.relative_update(len(chunk))
        chunk = reader.read(_CHUNK)
