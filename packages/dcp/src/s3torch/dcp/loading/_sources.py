"""Files that are read through readers of the user's own kind, as sources of ranges."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, cast

from s3torch.dcp._filesystem import join_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from contextlib import ExitStack

    from s3torch.core.transfer.source import ObjectSource
    from s3torch.dcp._filesystem import S3FileSystem


class ReaderSources:
    """Opens the files of a checkpoint; each is read on one thread, in the order of what is asked for.

    Args:
        fs: Makes the readers.
        path: The URI of the checkpoint.
        threads: How many files are read at a time.
        stack: Closes the readers and ends the threads.
    """

    def __init__(self, fs: S3FileSystem, path: str, threads: int, stack: ExitStack) -> None:
        self._fs = fs
        self._path = path
        self._stack = stack
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="s3torch-load") for _ in range(threads)]
        for thread in self._threads:
            stack.callback(thread.shutdown)

    def open(self, path: str) -> ObjectSource:
        """Opens a file by its path, relative to the checkpoint."""
        uri = join_path(self._path, path)
        reader = self._stack.enter_context(self._fs.create_stream(uri, "rb"))
        # The next file is for the next thread.
        self._threads.append(thread := self._threads.pop(0))
        return cast("ObjectSource", _ReaderSource(reader, thread, self._fs.open_ranges(uri)))


class _ReaderSource:
    """One file; what its reader does not have to tell comes from the object."""

    def __init__(self, reader: Any, thread: ThreadPoolExecutor, file: ObjectSource) -> None:
        self.bucket = file.bucket
        self.key = file.key
        self.part_size = file.part_size
        self.budget = file.budget
        self._reader = reader
        self._thread = thread

    def start(self, start: int, stop: int, into: memoryview | None = None) -> _Read:
        view = memoryview(bytearray(stop - start)) if into is None else into
        return _Read(self._thread.submit(self._read, start, view))

    def _read(self, start: int, view: memoryview) -> memoryview:
        self._reader.seek(start)
        filled = 0
        while filled < len(view) and (count := self._reader.readinto(view[filled:])):
            filled += count
        return view[:filled]


class _Read:
    """A range that is being read."""

    def __init__(self, read: Future[memoryview]) -> None:
        self._read = read

    def wait(self) -> memoryview:
        return self._read.result()

    def cancel(self) -> None:
        if not self._read.cancel():
            # A reader cannot be interrupted, and the memory must not be touched any more.
            wait([self._read])

    def add_done_callback(self, fn: Callable[[], object], /) -> None:
        self._read.add_done_callback(lambda _: fn())
