"""Reads stored chunks from several files at a time and decodes them, ahead of the planner that takes them."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import TruncatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from s3torch.core import S3Reader
    from s3torch.dcp.plan import StoredChunk

__all__ = ["FileSlice", "Window", "load_chunks"]


class FileSlice(io.RawIOBase):
    """A part of a file as a file of its own, which ends where the part ends.

    Args:
        reader: The file. Two slices of one file must not be read at the same time.
        start: Where the part begins.
        stop: Where it ends.

    Attributes:
        error: The first error of the file. The C++ code of torch calls ``readinto`` and may put errors of its
            own in the place of those that it meets.
    """

    def __init__(self, reader: S3Reader, start: int, stop: int) -> None:
        super().__init__()
        self._reader = reader
        self._start = start
        self._size = stop - start
        self._position = 0
        self.error: BaseException | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True; torch would copy the whole slice otherwise."""
        return True

    def tell(self) -> int:
        """Returns the position in the slice."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Moves the position in the slice; nothing is read."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise ValueError(f"negative seek value {origin + offset}")
        self._position = origin + offset
        return self._position

    def readall(self) -> bytes:
        """Reads the rest of the slice at once."""
        return self.read(max(0, self._size - self._position)) or b""

    def readinto(self, buffer: Any, /) -> int:
        """Fills the buffer as far as the slice goes.

        Raises:
            TruncatedError: The file ends before the slice does.
        """
        view = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        if not view:
            return 0
        try:
            self._fill(view)
        except BaseException as exc:
            self.error = self.error or exc
            raise
        self._position += len(view)
        return len(view)

    def _fill(self, view: memoryview) -> None:
        start = self._start + self._position
        self._reader.seek(start)
        filled = 0
        while filled < len(view):
            count = self._reader.readinto(view[filled:])
            if not count:
                raise TruncatedError(
                    f"the file has no byte {start + filled}, which the checkpoint's metadata says it has",
                    bucket=self._reader.bucket,
                    key=self._reader.key,
                )
            filled += count


class Window:
    """Bounds the bytes of chunks that are read but not yet taken. Any thread may use it.

    Args:
        limit: Bytes. A chunk that is larger waits until it is alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self, count: int) -> bool:
        """Waits until these bytes fit; ``False`` when they are not wanted any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._used or self._used + count <= self._limit
            )
            if not self._closed:
                self._used += count
            return not self._closed

    def release(self, count: int) -> None:
        """Gives bytes back."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def load_chunks(
    files: Sequence[tuple[AbstractContextManager[S3Reader], Sequence[StoredChunk]]],
    decode: Callable[[S3Reader, StoredChunk], Any],
    *,
    threads: int,
    window: Window,
) -> Iterator[tuple[StoredChunk, Any]]:
    """Decodes the chunks of several files in threads and hands them over one by one, in any order.

    The caller's thread takes the results, because planners are not made for many threads. The first
    error ends everything and is raised here. Close the iterator to stop early.

    Args:
        files: For each file what opens it, and its chunks in the order in which they are read.
        decode: Makes a value of the bytes of a chunk.
        threads: How many files are read at a time.
        window: Bounds what is read ahead.
    """
    if threads == 1 or len(files) <= 1:
        for opened, chunks in files:
            with opened as reader:
                for chunk in chunks:
                    yield chunk, decode(reader, chunk)
    else:
        yield from _load_in_threads(files, decode, threads, window)


def _load_in_threads(
    files: Sequence[tuple[AbstractContextManager[S3Reader], Sequence[StoredChunk]]],
    decode: Callable[[S3Reader, StoredChunk], Any],
    threads: int,
    window: Window,
) -> Iterator[tuple[StoredChunk, Any]]:
    results: SimpleQueue[tuple[StoredChunk, Any] | Future[None]] = SimpleQueue()

    def read(opened: AbstractContextManager[S3Reader], chunks: Sequence[StoredChunk]) -> None:
        with opened as reader:
            for chunk in chunks:
                if not window.acquire(chunk.size):
                    return
                results.put((chunk, decode(reader, chunk)))

    pool = ThreadPoolExecutor(min(threads, len(files)), thread_name_prefix="s3torch-load")
    try:
        for opened, chunks in files:
            pool.submit(read, opened, chunks).add_done_callback(results.put)
        unfinished = len(files)
        while unfinished:
            result = results.get()
            if isinstance(result, Future):
                result.result()
                unfinished -= 1
            else:
                yield result
                window.release(result[0].size)
    finally:
        window.close()
        pool.shutdown(cancel_futures=True)
