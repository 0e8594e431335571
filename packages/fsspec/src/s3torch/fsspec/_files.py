"""What files of fsspec have in common, and those that are written: they appear whole or not at all.

Whoever wraps a file often closes it while an exception is under way: ``fsspec.open``, pandas, pyarrow's
writers, ``io.TextIOWrapper``. That would publish half an object. So the exception that is under way when a
file is closed decides: if it was not there yet when the file was opened, the object from before stays.

In a transaction they appear at its end, in one order with what was copied, moved and removed meanwhile.
"""

# mypy: disallow-untyped-calls=False
from __future__ import annotations

import io
import logging
import sys
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from fsspec.transaction import Transaction

from s3torch.core import ChecksumMismatchError, PreconditionFailedError, S3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from types import TracebackType
    from typing import IO, Self

    from typing_extensions import Buffer

    from s3torch.core import S3Reader, S3Writer
    from s3torch.fsspec._attributes import S3Attributes

F = TypeVar("F", bound="Callable[..., Any]")

CHUNK = 8 * 1024 * 1024

_log = logging.getLogger(__name__)


class ObjectExistsError(PreconditionFailedError, FileExistsError):
    """What was to be created exists already."""

    @classmethod
    def from_precondition(cls, error: S3Error) -> Self:
        """Returns the same facts as ``error``, which says that the object exists already."""
        made = cls("the object exists already")
        vars(made).update(vars(error), message=made.message)
        return made


class DirectoryNotEmptyError(S3Error, OSError):
    """A directory that was to be removed has objects in it."""


class FileFacts(io.BufferedIOBase):
    """What a file of fsspec tells of itself besides its bytes.

    Attributes:
        fs: The filesystem.
        path: ``bucket/key``.
        mode: ``"rb"``, ``"wb"``, ``"xb"`` or ``"ab"``.
        blocksize: How much a file of fsspec would move at a time.
    """

    fs: S3Attributes
    path: str
    mode: str
    blocksize: int
    version_id: str | None = None

    @property
    def closed(self) -> bool:
        """Whether the file was closed; caches of fsspec also set it, once they have closed a file."""
        return bool(io.BufferedIOBase.closed.__get__(self))

    @closed.setter
    def closed(self, value: bool) -> None:
        pass

    @property
    def full_name(self) -> str:
        """The URI of the object."""
        return f"s3://{self.path}"

    @property
    def loc(self) -> int:
        """The position."""
        return self.tell()

    @property
    def details(self) -> dict[str, Any]:
        """The entry of the object in a listing; one HEAD."""
        return self.fs.info(self.path, version_id=self.version_id)

    def info(self) -> dict[str, Any]:
        """Returns ``details``."""
        return self.details

    def metadata(self, **options: Any) -> dict[str, str]:
        """Returns the user's metadata of the object; one HEAD."""
        return self.fs.metadata(self.path, version_id=self.version_id, **options)

    def getxattr(self, name: str, **options: Any) -> str | None:
        """Returns one of the user's metadata."""
        return self.fs.getxattr(self.path, name, version_id=self.version_id, **options)

    def setxattr(self, copy_kwargs: dict[str, Any] | None = None, **values: str | None) -> None:
        """Changes the user's metadata of the object."""
        self.fs.setxattr(self.path, copy_kwargs, **values)

    def url(self, **options: Any) -> str:
        """Returns a URL with which anybody may read the object for a while."""
        return self.fs.url(self.path, **options)


class _WholeFile(io.IOBase):
    """A file that is published by ``close``, except after an exception in its ``with`` body."""

    def discard(self) -> None:
        """Drops what was written; the object that was there before stays."""
        raise NotImplementedError

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            self.discard()
        self.close()

    def __del__(self) -> None:
        # io.IOBase would close a file that was dropped, and so publish it. The writer warns and aborts.
        pass


class S3WriteFile(_WholeFile, FileFacts):
    """An object being written, as fsspec wants it.

    Leaving ``with`` normally or ``close`` publishes the object. An exception in the ``with`` body, or one
    that is under way when ``close`` is called, in an ``except`` or ``finally`` block too, leaves what was
    there before, which is logged. Inside ``fs.transaction`` the object appears when the transaction ends.

    Args:
        autocommit: Publish on ``close``; False inside a transaction.
        on_commit: Called after the object has appeared.
    """

    def __init__(
        self,
        writer: S3Writer,
        *,
        fs: S3Attributes,
        path: str,
        mode: str,
        autocommit: bool,
        block_size: int,
        on_commit: Callable[[], None],
    ) -> None:
        self._writer = writer
        self.fs = fs
        self.blocksize = block_size
        self.path = path
        self.mode = mode
        self.autocommit = autocommit
        self._on_commit = on_commit
        self._opened_during = sys.exception()

    @property
    def size(self) -> int:
        """How many bytes were written."""
        return self.tell()

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer) -> int:
        self._check_open()
        return self._writer.write(data)

    def flush(self, force: bool = False) -> None:  # noqa: FBT001, FBT002
        """Does nothing: the object appears when the file is closed, whole."""

    def tell(self) -> int:
        self._check_open()
        return self._writer.tell()

    def close(self) -> None:
        """Publishes the object, unless a transaction will or an exception is under way."""
        if self.closed:
            return
        error = sys.exception()
        # A generator that has ended is how many loops end.
        if error not in (None, self._opened_during) and not isinstance(error, StopIteration):
            _log.warning("%s is not stored: it was closed while %r was being handled", self.full_name, error)
            self.discard()
            return
        try:
            if self.autocommit:
                self.commit()
        finally:
            super().close()

    def commit(self) -> None:
        try:
            self._writer.close()
        except PreconditionFailedError as exc:
            if "x" not in self.mode:
                raise
            raise ObjectExistsError.from_precondition(exc) from exc
        self._on_commit()

    def discard(self) -> None:
        super().close()
        self._writer.abort()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")


class TextFile(_WholeFile, io.TextIOWrapper):
    """Text on an S3 file."""

    def discard(self) -> None:
        _discard(self.buffer)


class CompressedFile(_WholeFile, io.BufferedIOBase):
    """A compressor or decompressor together with the S3 file under it; closing it closes both."""

    def __init__(self, codec: Any, raw: Any) -> None:
        self._codec = codec
        self._raw = raw

    def readable(self) -> bool:
        return bool(self._codec.readable())

    def writable(self) -> bool:
        return bool(self._codec.writable())

    def seekable(self) -> bool:
        return bool(self._codec.seekable())

    def read(self, size: int | None = -1, /) -> bytes:
        return bytes(self._codec.read(-1 if size is None else size))

    def read1(self, size: int = -1, /) -> bytes:
        read = getattr(self._codec, "read1", self._codec.read)
        return bytes(read(size))

    def write(self, data: Buffer) -> int:
        return int(self._codec.write(data))

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return int(self._codec.seek(offset, whence))

    def tell(self) -> int:
        return int(self._codec.tell())

    def flush(self) -> None:
        if not self._codec.closed and self.writable():
            self._codec.flush()

    def close(self) -> None:
        if self.closed:
            return
        try:
            self._codec.close()
            self._raw.close()
        except BaseException:
            _discard(self._raw)
            raise
        finally:
            super().close()

    def discard(self) -> None:
        # The compressor writes its end to an object that is discarded; left open, it would complain later.
        with suppress(Exception):
            self._codec.close()
        _discard(self._raw)
        super().close()


def _discard(file: Any) -> None:
    discard = getattr(file, "discard", None) or file.close
    discard()


def is_special(target: Path) -> bool:
    """Whether what is written there is gone at once, as with a pipe."""
    return target.exists() and not target.is_file()


def download(
    open_reader: Callable[[], S3Reader],
    open_target: Callable[[], AbstractContextManager[IO[bytes]]],
    callback: Any,
) -> None:
    """Writes an object to a file that is opened when the first bytes are there; counts no wrong bytes."""
    with open_reader() as remote:
        chunk, done = remote.read(CHUNK), 0
        callback.set_size(remote.size)
        with open_target() as local:
            try:
                while chunk:
                    local.write(chunk)
                    done += len(chunk)
                    callback.relative_update(len(chunk))
                    chunk = remote.read(CHUNK)
            except ChecksumMismatchError:
                callback.relative_update(-done)
                raise


@contextmanager
def replaced(target: Path) -> Iterator[IO[bytes]]:
    """Opens a local file that takes its place when the block has ended well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_special(target):
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


class S3Transaction(Transaction):
    """Does at the end what was held back, or nothing of it after an exception.

    Other processes may see the first of it before the last: S3 changes one object at a time. Where something
    fails, what comes after it is not done.
    """

    def complete(self, commit: bool = True) -> None:  # noqa: FBT001, FBT002
        # From here on nothing is held back any more.
        self.fs._intrans = False
        files = self.files
        try:
            super().complete(commit)
        finally:
            # After a failure, fsspec before 2026 leaves the rest as it is.
            while files:
                files.popleft().discard()


class HeldBack:
    """A call that a transaction makes at its end, among the files that it publishes."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call

    def commit(self) -> None:
        self._call()

    def discard(self) -> None:
        """Does nothing: nothing was done."""


def held_back(method: F) -> F:
    """Makes a method of a filesystem wait for the end of the transaction that it is called in."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._intrans:
            return method(self, *args, **kwargs)
        self.transaction.files.append(HeldBack(partial(method, self, *args, **kwargs)))
        return None

    return cast("F", call)
