"""One file after the other: objects are opened, read, stored, copied, deleted."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.utils import isfilelike

from s3torch.core import ConfigurationError, NotFoundError, PutOptions, S3ReaderConstructor
from s3torch.fsspec._files import (
    CompressedFile,
    DirectoryNotEmptyError,
    ObjectExistsError,
    S3WriteFile,
    TextFile,
)
from s3torch.fsspec._names import prefix_of
from s3torch.fsspec._tree import S3Tree, refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO

    from s3torch.core import RangedS3Reader, S3Reader, SequentialS3Reader

_CHUNK = 8 * 1024 * 1024
_MODES = ("rb", "wb", "xb", "ab")
# What callers of s3fs and fsspec pass for their caches; it is ignored, but for the size of what is written.
_HINTS = {"cache_type", "fill_cache", "size"}


class S3Files(S3Tree):
    """The objects in the buckets that a client reaches, one at a time."""

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
            mode: ``r``, ``w`` (replaces), ``x`` (fails if the object exists, at once or, if it appears
                meanwhile, on closing) or ``a`` (reads the old object and writes it again with more at its
                end), with ``b`` for bytes.
            block_size: Reads through the range-based reader, which then fetches this much for a small read.
            cache_options: Accepted and ignored.
            compression: A codec of fsspec, or ``"infer"`` to take it from the name.
            kwargs: ``encoding``, ``errors`` and ``newline`` for text, ``reader_constructor`` and
                ``version_id`` for reading, ``options`` (``PutOptions``) for writing.

        Returns:
            An ``S3Reader`` for reading; for writing a file that appears when it is closed. Nothing is sent
            before the first byte, so a missing object is an error of the first read.

        Raises:
            ConfigurationError: The mode is not one of these, or an option is unknown.
            ObjectExistsError: The mode is ``x``, and the object exists.
        """
        text = {name: kwargs.pop(name, None) for name in ("encoding", "errors", "newline")}
        binary_mode = mode.replace("t", "").replace("b", "") + "b"
        if binary_mode not in _MODES:
            raise ConfigurationError(f"mode must be one of r, w, x, a, with b or t, got {mode!r}")
        if "b" in mode and any(value is not None for value in text.values()):
            raise ConfigurationError(f"encoding, errors and newline are for text, got mode {mode!r}")
        kwargs.setdefault("autocommit", not self._intrans)
        file: Any = self._open(
            self._exact(path), binary_mode, block_size, cache_options=cache_options, **kwargs
        )
        if not kwargs["autocommit"] and binary_mode != "rb":
            self.transaction.files.append(file)
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
        version_id: str | None = None,
        **hints: Any,
    ) -> S3Reader | S3WriteFile:
        refuse({name: value for name, value in hints.items() if name not in _HINTS}, "open")
        if mode == "rb":
            constructor = reader_constructor or self._reader_constructor
            if constructor is None and block_size is not None:
                constructor = S3ReaderConstructor.range_based(block_size)
            return self._reader(path, constructor, version_id)
        if version_id is not None:
            raise ConfigurationError(f"version_id is for reading, got mode {mode!r}")
        if mode == "ab":
            return self._open_for_append(path, autocommit=autocommit, options=options)
        if mode == "xb" and self.isfile(path):
            bucket, key = self._split_file(path)
            raise ObjectExistsError("the object exists already", bucket=bucket, key=key)
        return self._writer(
            path, mode, autocommit=autocommit, options=options, expected_size=hints.get("size") or 0
        )

    def _reader(
        self, path: Any, constructor: Callable[..., S3Reader] | None, version_id: str | None = None
    ) -> S3Reader:
        bucket, key = self._split_file(path)
        return self.client.get_object(bucket, key, reader_constructor=constructor, version_id=version_id)

    def _sequential(self, path: Any, version_id: str | None = None) -> SequentialS3Reader:
        return cast("SequentialS3Reader", self._reader(path, S3ReaderConstructor.sequential(), version_id))

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
        if "x" in mode:
            options = replace(options or PutOptions(), if_none_match="*")
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
            options = options or PutOptions()
            if options.if_match is None and options.if_none_match is None:
                options = replace(options, if_match=old.etag)
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

    def cat_file(
        self,
        path: Any,
        start: int | None = None,
        end: int | None = None,
        version_id: str | None = None,
        **options: Any,
    ) -> bytes:
        """Returns the bytes of an object, or those of a range; negative positions count from the end."""
        refuse(options, "cat_file")
        if start is None and end is None:
            with self._sequential(path, version_id) as reader:
                return bytes(reader.read())
        unbuffered = S3ReaderConstructor.range_based(0)
        with cast("RangedS3Reader", self._reader(path, unbuffered, version_id)) as reader:
            first, last = start or 0, end
            if first < 0:
                first = max(0, reader.size + first)
            if last is not None and last < 0:
                last = max(0, reader.size + last)
            if last is not None and last <= first:
                return b""
            reader.seek(first)
            return bytes(reader.read(None if last is None else last - reader.tell()))

    def pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **options: Any) -> None:
        """Stores bytes as an object; ``mode="create"`` raises ``FileExistsError`` if there is one already."""
        with self._new_file(path, mode, options) as file:
            file.write(value)

    def pipe(self, path: Any, value: Any = None, **options: Any) -> None:
        """Stores bytes as an object, or as several: a mapping of paths to bytes."""
        for one, data in path.items() if isinstance(path, dict) else [(path, value)]:
            self.pipe_file(one, data, **options)

    def _new_file(self, path: Any, mode: str, options: dict[str, Any]) -> Any:
        if mode != "create":
            return self.open(path, "wb", **options)
        size = options.pop("size", 0)
        refuse({name: value for name, value in options.items() if name != "options"}, "create")
        file = self._writer(
            self._exact(path), "xb", autocommit=not self._intrans, expected_size=size, **options
        )
        if self._intrans:
            self.transaction.files.append(file)
        return file

    def put_file(
        self,
        lpath: Any,
        rpath: Any,
        callback: Any = DEFAULT_CALLBACK,
        mode: str = "overwrite",
        **options: Any,
    ) -> None:
        """Uploads a local file."""
        source = Path(lpath)
        if source.is_dir():
            self.makedirs(rpath, exist_ok=True)
            return
        options["size"] = source.stat().st_size
        with source.open("rb") as local, self._new_file(rpath, mode, options) as remote:
            callback.set_size(options["size"])
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
        version_id: str | None = None,
        **options: Any,
    ) -> None:
        """Downloads an object to a local file or into an open one.

        A local file appears whole or not at all: after a failure the one that was there before is there.
        """
        refuse(options, "get_file")
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        with self._sequential(rpath, version_id) as remote:
            try:
                chunk = remote.read(_CHUNK)
            except NotFoundError:
                if outfile is not None or not self.isdir(rpath):
                    raise
                Path(lpath).mkdir(parents=True, exist_ok=True)
                return
            callback.set_size(remote.size)
            with nullcontext(outfile) if outfile is not None else _replaced(Path(lpath)) as local:
                while chunk:
                    local.write(chunk)
                    callback.relative_update(len(chunk))
                    chunk = remote.read(_CHUNK)

    def cp_file(self, path1: Any, path2: Any, **options: Any) -> None:
        """Copies an object within S3; its bytes do not pass through here."""
        refuse(options, "cp_file")
        try:
            self.client.copy_object(*self._split_file(path1), *self._split_file(path2))
        except NotFoundError:
            if not self.isdir(path1):
                raise
            self.makedirs(path2, exist_ok=True)
        self.invalidate_cache(path2)

    def rm_file(self, path: Any) -> None:
        """Deletes an object; a missing one is no error."""
        self.client.delete_object(*self._split_file(path))
        self.invalidate_cache(path)

    def _rm(self, path: Any) -> None:
        self.rm_file(path)

    # Directories

    def mkdir(self, path: Any, create_parents: bool = True, **options: Any) -> None:  # noqa: ARG002, FBT001, FBT002
        """Remembers a directory, for this process; S3 has none."""
        refuse(options, "mkdir")
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
        bucket, key = self._split(path)
        if not key:
            raise IsADirectoryError(f"s3://{bucket} is a bucket, expected s3://bucket/key")
        for info in self._objects_below(bucket, key):
            if info.key != prefix_of(key) or info.size:
                raise DirectoryNotEmptyError("the directory is not empty", bucket=bucket, key=key)
            self.client.delete_object(bucket, info.key)
        self._store.forget_directory(self._strip_protocol(path))
        self.invalidate_cache(path)


@contextmanager
def _replaced(target: Path) -> Iterator[IO[bytes]]:
    """Opens a local file that takes its place when the block has ended well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not target.is_file():
        with target.open("wb") as special:
            yield special
        return
    draft = target.with_name(f".{uuid4().hex}.part")
    try:
        with draft.open("xb") as local:
            yield local
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
