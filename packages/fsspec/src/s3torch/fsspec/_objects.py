"""One file after the other: objects are opened, read, stored, copied, deleted."""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.compression import compr
from fsspec.core import get_compression
from fsspec.utils import isfilelike

from s3torch.core import ConfigurationError, NotFoundError, PutOptions, S3ReaderConstructor
from s3torch.core.transfer import read_again
from s3torch.fsspec._attributes import S3Attributes
from s3torch.fsspec._files import (
    CHUNK,
    CompressedFile,
    DirectoryNotEmptyError,
    ObjectExistsError,
    S3Transaction,
    S3WriteFile,
    TextFile,
    download,
    held_back,
    is_special,
    replaced,
)
from s3torch.fsspec._names import prefix_of
from s3torch.fsspec._options import put_options, refuse, refuse_but_hints
from s3torch.fsspec._reading import S3ReadFile, known_ranges

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO

    from s3torch.core import RangedS3Reader, S3Reader, SequentialS3Reader

_MODES = ("rb", "wb", "xb", "ab")
# What callers of s3fs and fsspec say of how files are cached and cut.
_HINTS = ("cache_type", "fill_cache", "max_concurrency")
_UPLOAD_HINTS = ("batch_size", "chunksize", "max_concurrency")
_DOWNLOAD_HINTS = ("batch_size", "max_concurrency")


class S3Files(S3Attributes):
    """The objects in the buckets that a client reaches, one at a time."""

    transaction_type = S3Transaction

    def __init__(
        self,
        region: str | None = None,
        *,
        reader_constructor: Callable[..., S3Reader] | None = None,
        default_block_size: int | None = None,
        **storage_options: Any,
    ) -> None:
        super().__init__(region, **storage_options)
        self._reader_constructor = reader_constructor
        self.default_block_size = default_block_size

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
            block_size: Reads through the range-based reader, which then fetches this much for a small read;
                ``None`` takes ``default_block_size`` of the filesystem.
            cache_options: With ``cache_type="parts"`` the bytes that are known already; else a hint.
            compression: A codec of fsspec, or ``"infer"`` to take it from the name.
            kwargs: ``encoding``, ``errors`` and ``newline`` for text; ``reader_constructor``,
                ``version_id`` and ``size`` (where the file ends) for reading; for writing ``options``
                (``PutOptions``) or the names of boto3, as ``StorageClass``, and ``size`` (about how many
                bytes there will be). ``cache_type``, ``fill_cache`` and ``max_concurrency`` are hints.

        Returns:
            A file with what fsspec's buffered files have. One that is read has the ``S3Reader`` as
            ``reader``; nothing is sent before the first byte, so a missing object is an error of the first
            read. One that is written appears when it is closed.

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
        cache_options: dict[str, Any] | None = None,
        *,
        looks: bool = True,
        **options: Any,
    ) -> S3ReadFile | S3WriteFile:
        if options.get("requester_pays") and self.client.s3client_config.requester_pays:
            del options["requester_pays"]
        if mode == "rb":
            return self._open_to_read(path, block_size, cache_options, **options)
        if options.pop("version_id", None) is not None:
            raise ConfigurationError(f"version_id is for reading, got mode {mode!r}")
        size, chosen = options.pop("size", None) or 0, options.pop("options", None)
        chosen = put_options(chosen, options, "open", *_HINTS)
        if mode == "ab":
            return self._open_for_append(path, autocommit=autocommit, options=chosen)
        if mode == "xb" and looks and self.isfile(path):
            bucket, key = self._split_file(path)
            raise ObjectExistsError("the object already exists", bucket=bucket, key=key)
        return self._writer(path, mode, autocommit=autocommit, options=chosen, expected_size=size)

    def _open_to_read(
        self,
        path: str,
        block_size: int | None,
        cache_options: dict[str, Any] | None,
        *,
        reader_constructor: Callable[..., S3Reader] | None = None,
        version_id: str | None = None,
        size: int | None = None,
        **hints: Any,
    ) -> S3ReadFile:
        refuse_but_hints(hints, "open", *_HINTS)
        path, version_id = self._split_version(path, version_id)
        constructor = reader_constructor or self._reader_constructor
        block_size = block_size or self.default_block_size
        if constructor is None and block_size is not None:
            constructor = S3ReaderConstructor.range_based(block_size)
        return S3ReadFile(
            self,
            path,
            self._reader(path, constructor, version_id),
            block_size=block_size or self._part_size,
            size=size,
            version_id=version_id,
            known=known_ranges(hints.get("cache_type"), cache_options),
        )

    @property
    def _part_size(self) -> int:
        return self.client.s3client_config.part_size

    def _reader(
        self, path: Any, constructor: Callable[..., S3Reader] | None, version_id: str | None = None
    ) -> S3Reader:
        bucket, key, version_id = self._split_versioned(path, version_id)
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
            fs=self,
            path=path,
            mode=mode,
            autocommit=autocommit,
            block_size=self._part_size,
            on_commit=lambda: self.invalidate_cache(path),
        )

    def _open_for_append(self, path: str, *, autocommit: bool, options: PutOptions) -> S3WriteFile:
        with self._sequential(path) as old:
            try:
                chunk = old.read(CHUNK)
            except NotFoundError:
                return self._writer(path, "ab", autocommit=autocommit, options=options)
            # Where somebody else appends at the same time, this one fails, so that nothing is lost.
            if options.if_match is None and options.if_none_match is None:
                options = replace(options, if_match=old.etag)
            file = self._writer(path, "ab", autocommit=autocommit, options=options)
            try:
                while chunk:
                    file.write(chunk)
                    chunk = old.read(CHUNK)
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
        refuse_but_hints(options, "cat_file", *_DOWNLOAD_HINTS)
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

    def _new_file(self, path: Any, mode: str, options: dict[str, Any]) -> Any:
        options = {name: one for name, one in options.items() if name not in _UPLOAD_HINTS}
        if mode != "create":
            return self.open(path, "wb", **options)
        return self.open(path, "xb", looks=False, **options)

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
            buffer = memoryview(bytearray(CHUNK))
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
        refuse_but_hints(options, "get_file", *_DOWNLOAD_HINTS)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        reader = partial(self._sequential, rpath, version_id)
        if outfile is not None:
            download(reader, lambda: nullcontext(outfile), callback)
            return
        target = Path(lpath)
        fetch = partial(download, reader, lambda: replaced(target), callback)
        try:
            fetch() if is_special(target) else read_again(fetch)
        except NotFoundError:
            if not self.isdir(rpath):
                raise
            target.mkdir(parents=True, exist_ok=True)

    @held_back
    def cp_file(self, path1: Any, path2: Any, options: PutOptions | None = None, **given: Any) -> None:
        """Copies an object within S3; its bytes do not pass through here.

        Args:
            path1: The object, or a version of it.
            path2: The copy.
            options: How the copy is stored.
            given: The same by the names of boto3, as ``StorageClass``; ``preserve_etag`` is a hint.
        """
        source, version_id = self._split_version(path1, given.pop("version_id", None))
        chosen = put_options(options, given, "cp_file", "preserve_etag", "batch_size")
        try:
            places = *self._split_file(source), *self._split_file(path2)
            self.client.copy_object(*places, options=chosen, version_id=version_id)
        except NotFoundError:
            if version_id is not None or not self.isdir(source):
                raise
            self.makedirs(path2, exist_ok=True)
        self.invalidate_cache(path2)

    @held_back
    def rm_file(self, path: Any, version_id: str | None = None) -> None:
        """Deletes an object, or one version of it for good; a missing one is no error."""
        bucket, key, version_id = self._split_versioned(path, version_id)
        self.client.delete_object(bucket, key, version_id=version_id)
        self.invalidate_cache(path)

    # Directories

    def mkdir(self, path: Any, create_parents: bool = True, **options: Any) -> None:  # noqa: ARG002, FBT001, FBT002
        """Remembers a directory, for this process; S3 has none. See ``makedirs``."""
        refuse(options, "mkdir")
        self.makedirs(path)

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Remembers a directory and those it is in, for this process; S3 has none.

        Buckets are not made here, and not looked for where the path has more than the bucket.

        Raises:
            ObjectExistsError: There is something with this name and ``exist_ok`` is False.
            ConfigurationError: It is a bucket, and there is none of this name.
        """
        bucket, key = self._split(path)
        if not key and not self.exists(path):
            raise ConfigurationError(
                f"s3torch does not create buckets; create it with: aws s3 mb s3://{bucket}", bucket=bucket
            )
        if not exist_ok and self.exists(path):
            raise ObjectExistsError("it already exists", bucket=bucket, key=key)
        if key:
            self._store.make_directory(self._strip_protocol(path))
            self.invalidate_cache(path)

    @held_back
    def rmdir(self, path: Any) -> None:
        """Forgets an empty directory; ``DirectoryNotEmptyError`` where there are objects in it."""
        bucket, key = self._split(path)
        if not key:
            raise ConfigurationError(
                f"s3torch does not delete buckets; delete it with: aws s3 rb s3://{bucket}", bucket=bucket
            )
        for info in self._objects_below(bucket, key):
            if info.key != prefix_of(key) or info.size:
                raise DirectoryNotEmptyError("the directory is not empty", bucket=bucket, key=key)
            self.client.delete_object(bucket, info.key)
        self._store.forget_directory(self._strip_protocol(path))
        self.invalidate_cache(path)
