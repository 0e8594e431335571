"""The file that users write an object through."""

from __future__ import annotations

import io
import threading
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Self

from s3torch.core import _process, requests
from s3torch.core._process import ExitPhase, at_exit, reap, reaper
from s3torch.core.errors import TransferCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from s3torch.core.ranges import ByteRange
    from s3torch.core.transfer._upload import Upload

__all__ = ["PutObjectStream", "PutStream", "S3Writer"]


class PutStream(Protocol):
    """What a writer writes to; an ``abort()`` is called if there is one."""

    def write(self, data: Any, /) -> object:
        """Takes bytes."""
        ...

    def close(self) -> object:
        """Makes the object appear."""
        ...


class PutObjectStream:
    """Sends the bytes of one object; what ``S3Writer`` writes to.

    Args:
        upload: The upload behind it.
    """

    def __init__(self, upload: Upload) -> None:
        self._upload = upload

    @property
    def bucket(self) -> str:
        """The bucket."""
        return self._upload.bucket

    @property
    def key(self) -> str:
        """The key."""
        return self._upload.key

    @property
    def checksum(self) -> tuple[str, str] | None:
        """The algorithm and the checksum of the object, in base64, once it is there."""
        return self._upload.checksum

    def write(self, data: Any, /) -> int:
        """Takes the bytes of any contiguous buffer and returns how many."""
        return self._upload.write(_readable(data))

    def lend(self, data: Any, /) -> int:
        """Takes bytes that will not change before the object is there; whole parts are not copied."""
        return self._upload.write(_readable(data), lent=True)

    def copy_from(
        self,
        bucket: str,
        key: str,
        byte_range: ByteRange,
        *,
        crc: int | None = None,
        if_match: str | None = None,
    ) -> int:
        """Takes bytes of another object, which S3 copies, and returns how many."""
        make = partial(requests.upload_part_copy, src_bucket=bucket, src_key=key, if_match=if_match)
        self._upload.copy(make, byte_range, crc=crc)
        return len(byte_range)

    def expect_copy(self, size: int) -> None:
        """Tells that ``copy_from`` follows after so many bytes."""
        self._upload.expect_copy(size)

    def begin_piece(self, size: int) -> None:
        """Begins a piece whose checksum is noted, and another one every ``size`` bytes."""
        self._upload.begin_piece(size)

    @property
    def piece_checksums(self) -> tuple[str, list[tuple[int, int, int]]] | None:
        """The algorithm, and begin, end and CRC of each piece, once the object is there."""
        return self._upload.piece_checksums

    def close(self) -> None:
        """Makes the object appear; what is there already cannot be closed again."""
        if self._upload.is_complete:
            raise ValueError("I/O operation on closed file.")
        self._upload.complete()

    def abort(self) -> None:
        """Makes sure that it does not appear."""
        self._upload.abort()


if TYPE_CHECKING:
    # What torch and others ask for in their annotations.
    class _BinaryFile(io.BufferedIOBase, BinaryIO):
        pass
else:
    _BinaryFile = io.BufferedIOBase


class S3Writer(_BinaryFile):
    """A binary file that is written to S3.

    The object appears when the ``with`` block ends without an exception or when ``close()`` is called, whole,
    and replaces an older one only then. After an exception in the block, when the writer is dropped, and when
    the interpreter exits, the upload is aborted and the older object stays. Dropping does not wait for that:
    a thread of the process does it.

    Args:
        stream: Where the bytes go; ``S3Client.put_object`` gives it.
    """

    def __init__(self, stream: PutStream) -> None:
        super().__init__()
        self.stream = stream
        self._position = 0
        self._state = "open"
        self._failure: BaseException | None = None
        self._pid = _process.here
        # Reentrant, because a signal handler may abort in the midst of a write.
        self._lock = threading.RLock()
        reaper.get()
        _open_writers.add(self)

    @property
    def bucket(self) -> str:
        """The bucket."""
        return str(getattr(self.stream, "bucket", ""))

    @property
    def key(self) -> str:
        """The key."""
        return str(getattr(self.stream, "key", ""))

    @property
    def checksum(self) -> tuple[str, str] | None:
        """The algorithm and the checksum of the object, in base64, once the writer is closed.

        ``None`` before, and where the configuration has checksums off.
        """
        return getattr(self.stream, "checksum", None) if self._state == "closed" else None

    def begin_piece(self, size: int) -> None:
        """Begins a piece whose checksum is noted, and another one every ``size`` bytes from here.

        The checksums of the upload are combined from those of the pieces, which so cost hardly anything. It
        does nothing where the stream below cannot do that.
        """
        begin = getattr(self.stream, "begin_piece", None)
        if begin is not None:
            begin(size)

    @property
    def piece_checksums(self) -> tuple[str, list[tuple[int, int, int]]] | None:
        """The algorithm, and begin, end and CRC of each piece, once the writer is closed.

        The last piece ends with the object. ``None`` before, and where no piece was begun.
        """
        return getattr(self.stream, "piece_checksums", None) if self._state == "closed" else None

    def write(self, data: Any) -> int:
        """Takes a copy of the bytes of any contiguous buffer and returns how many bytes.

        The buffer may be changed at once. Only of a ``bytes`` object, which cannot change, whole parts are
        sent from where they are, and it is held until they have arrived.

        Raises:
            S3Error: The bytes could not be sent; the upload is aborted.
            ValueError: The writer is closed.
        """
        return self._take(data, self.stream.write)

    def lend(self, data: Any) -> int:
        """Does what ``write`` does for a buffer that nobody changes before ``close()`` has returned.

        Whole parts are sent from where they are, as those of a ``bytes`` object, and it is held until they
        have arrived. Nothing is copied but the beginning and the end, up to a part each.
        """
        return self._take(data, getattr(self.stream, "lend", self.stream.write))

    def copy_from(
        self,
        bucket: str,
        key: str,
        byte_range: ByteRange,
        *,
        crc: int | None = None,
        if_match: str | None = None,
    ) -> int:
        """Appends bytes of another object, which S3 copies, and returns how many.

        They become parts of their own, so S3 wants at least 5 MiB, unless nothing follows, and at least 5 MiB
        before them, unless they come first or follow another copy. Before more than a part is written between
        two copies, tell ``expect_copy`` how much that is: else its last part may be too small.

        Args:
            bucket: The bucket of the other object.
            key: Its key.
            byte_range: The bytes.
            crc: Their CRC in the algorithm of the upload, with which S3 verifies what it has copied.
            if_match: The ETag that the other object must have.

        Raises:
            S3Error: The bytes could not be copied; the upload is aborted.
            ValueError: The writer is closed.
            TypeError: The stream below cannot copy.
        """
        copy = getattr(self.stream, "copy_from", None)
        if copy is None:
            raise TypeError(f"a {type(self.stream).__name__} cannot copy bytes of other objects")

        def append(_: memoryview) -> None:
            copy(bucket, key, byte_range, crc=crc, if_match=if_match)

        self._take(b"", append)
        self._position += len(byte_range)
        return len(byte_range)

    def expect_copy(self, size: int) -> None:
        """Tells that ``copy_from`` follows after so many bytes, so that none of their parts is too small.

        It does nothing where the stream below cannot copy.
        """
        expect = getattr(self.stream, "expect_copy", None)
        if expect is not None:
            expect(size)

    def _take(self, data: Any, write: Callable[[memoryview], object]) -> int:
        self._check_process()
        with self._lock:
            self._check_open()
            view = _readable(data)
            try:
                write(view)
            except BaseException as exc:
                self._give_up(exc)
                raise
            self._position += len(view)
            return len(view)

    def close(self) -> None:
        """Makes the object appear; calling it again does nothing.

        Raises:
            S3Error: The object did not appear; every further call raises this again.
        """
        self._check_process()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            if self._state == "open":
                try:
                    self.stream.close()
                except BaseException as exc:
                    self._give_up(exc)
                    raise
                self._end("closed")

    def abort(self) -> None:
        """Makes sure that the object does not appear; does nothing after ``close()``."""
        self._check_process()
        with self._lock:
            if self._state == "open":
                self._give_up(self._aborted())

    @property
    def closed(self) -> bool:
        """True once the writer was closed or aborted, or has failed."""
        return self._state != "open"

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
        return self._position

    def flush(self) -> None:
        """Does nothing; bytes are sent when a part is full."""

    def readable(self) -> bool:
        """False."""
        return False

    def seekable(self) -> bool:
        """False."""
        return False

    def writable(self) -> bool:
        """True until the writer is closed."""
        return not self.closed

    def __enter__(self) -> Self:
        self._check_process()
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        elif self._pid == _process.here:
            self.abort()

    def __del__(self) -> None:
        if getattr(self, "_state", "closed") != "open" or self._pid != _process.here:
            return
        try:
            warnings.warn(
                f"the writer of s3://{self.bucket}/{self.key} was dropped without close(); "
                "the upload is aborted",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
        finally:
            # Also where warnings are errors. No lock: nobody else has the writer any more.
            self._failure = self._aborted()
            self._end("failed")
            abort = getattr(self.stream, "abort", None)
            if abort is not None:
                reap(abort)

    def _check_process(self) -> None:
        # Before the lock is taken, which a thread of the parent may have held when it forked.
        if self._state == "open" and self._pid != _process.here:
            raise _process.forked(f"the writer of s3://{self.bucket}/{self.key}", self._pid)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.closed:
            raise ValueError("I/O operation on closed file.")

    def _aborted(self) -> TransferCancelledError:
        return TransferCancelledError(
            "the upload was aborted", operation="PutObject", bucket=self.bucket, key=self.key
        )

    def _give_up(self, error: BaseException) -> None:
        self._failure = error
        self._end("failed")
        abort = getattr(self.stream, "abort", None)
        if abort is None:
            return
        try:
            abort()
        except Exception as exc:  # noqa: BLE001 - It must not hide the error that led here.
            error.add_note(f"The upload could not be aborted: {exc}")

    def _end(self, state: str) -> None:
        self._state = state
        _open_writers.discard(self)


_open_writers: weakref.WeakSet[S3Writer] = weakref.WeakSet()


def _readable(data: Any) -> memoryview:
    view = memoryview(data)
    if not view.c_contiguous:
        raise TypeError("expected a contiguous buffer")
    return view.cast("B") if view.nbytes else memoryview(b"")


def _abort_open_writers() -> None:
    for writer in list(_open_writers):
        if writer._pid == _process.here:
            reap(writer.abort)


at_exit(ExitPhase.UPLOADS, _abort_open_writers)
