"""Saves that go on while training does: staged at once, stored in order by one thread.

A checkpoint is serialised into memory of this process, which is reused. So what is stored is what it was at
that moment, and an object that cannot be pickled fails the save itself. The thread sends that memory as it
is.
"""

from __future__ import annotations

import logging
import mmap
import os
import sys
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

import torch

from s3torch.core import ConfigurationError
from s3torch.core.transfer import advise_huge_pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from typing import IO

    from s3torch.core import S3Uri

_log = logging.getLogger(__name__)
_CHUNK = 64 * 1024 * 1024


class StagingBuffer:
    """A file in memory that only grows; after ``clear`` its memory is used again."""

    def __init__(self) -> None:
        self._chunks: list[memoryview] = []
        self._size = 0

    def clear(self) -> None:
        self._size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            number, offset = divmod(self._size, _CHUNK)
            if number == len(self._chunks):
                self._chunks.append(_new_chunk())
            piece = view[done : done + _CHUNK - offset]
            self._chunks[number][offset : offset + len(piece)] = piece
            done += len(piece)
            self._size += len(piece)
        return len(view)

    def flush(self) -> None:
        """Does nothing; ``torch.save`` calls it."""

    def __len__(self) -> int:
        return self._size

    def pieces(self) -> Iterator[memoryview]:
        """Yields what was written, without a copy."""
        for number, chunk in enumerate(self._chunks):
            left = self._size - number * _CHUNK
            if left <= 0:
                return
            yield chunk[:left]


def stage(checkpoint: object, buffer: StagingBuffer) -> None:
    """Serialises a checkpoint as ``torch.save`` does, over what the buffer had before."""
    buffer.clear()
    with _fast_saves():
        torch.save(checkpoint, cast("IO[bytes]", buffer))


class BackgroundSaves:
    """Stores checkpoints, and copies and removes them, one after the other in a thread.

    In a process that was forked, and after pickling, it has nothing to do and begins anew.

    Args:
        max_pending: How many checkpoints may be in memory; a save waits until there are fewer.
    """

    def __init__(self, max_pending: int) -> None:
        if not isinstance(max_pending, int) or isinstance(max_pending, bool) or max_pending < 1:
            raise ConfigurationError(f"max_pending must be at least 1, got {max_pending!r}")
        self.max_pending = max_pending
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._free: list[StagingBuffer] = []
        self._saves: list[Future[None]] = []
        self._last: Future[None] | None = None
        # What stores or copies a checkpoint, last; what is older is removed only if that has succeeded.
        self._newest: Future[None] | None = None
        self._pending: Counter[S3Uri] = Counter()
        self._failures: list[tuple[S3Uri, BaseException]] = []

    def __reduce__(self) -> tuple[type[BackgroundSaves], tuple[int]]:
        return type(self), (self.max_pending,)

    def save(self, uri: S3Uri, checkpoint: object, store: Callable[[StagingBuffer], None]) -> None:
        """Takes a copy of a checkpoint and returns; ``store`` is called with it in the thread.

        Raises:
            BaseException: What could not be serialised, or what an earlier save has failed with. In the
                latter case this checkpoint will be stored, nevertheless.
        """
        self._check_process()
        while len(pending := [one for one in self._saves if not one.done()]) >= self.max_pending:
            wait(pending[:1])
        self._saves = pending
        buffer = self._free.pop() if self._free else StagingBuffer()
        try:
            stage(checkpoint, buffer)
        except BaseException:
            self._free.append(buffer)
            raise

        def work() -> None:
            try:
                store(buffer)
            finally:
                self._free.append(buffer)

        self._saves.append(self.follow(uri, work))
        self.raise_failures()

    def follow(self, uri: S3Uri, work: Callable[[], object]) -> Future[None]:
        """Makes a checkpoint the newest one, which ``work`` stores, or waits for."""
        self._check_process()
        self._newest = self._submit(uri, work)
        return self._newest

    def copy(self, uri: S3Uri, work: Callable[[], None]) -> None:
        """Makes the newest checkpoint appear under another name, too, once it is there."""
        self._check_process()
        newest = self._newest

        def after() -> None:
            if newest is not None and (error := newest.exception()) is not None:
                raise error
            work()

        self.follow(uri, after)

    def remove(self, uri: S3Uri, work: Callable[[], None]) -> None:
        """Removes an older checkpoint once the newest one is there; it stays if that has failed."""
        self._check_process()
        newest = self._newest

        def after() -> None:
            if newest is None or newest.exception() is None:
                work()
            else:
                _log.warning("%s is kept, because no newer checkpoint was stored", uri)

        self._submit(uri, after)

    def is_pending(self, uri: S3Uri) -> bool:
        """Whether a checkpoint of this name is going to appear, or to go."""
        self._check_process()
        with self._lock:
            return self._pending[uri] > 0

    def wait(self) -> None:
        """Returns when all is done."""
        self._check_process()
        if self._last is not None:
            wait([self._last])

    def raise_failures(self, uri: S3Uri | None = None) -> None:
        """Raises what has failed since it was asked last; with a URI only what has failed there.

        Raises:
            BaseException: The first failure, with notes of the others.
        """
        self._check_process()
        with self._lock:
            found = [failure for failure in self._failures if uri in {None, failure[0]}]
            self._failures = [failure for failure in self._failures if failure not in found]
        if not found:
            return
        (first, error), *others = found
        error.add_note(f"{first} was being saved or deleted in the background.")
        for other, another in others:
            error.add_note(f"So was {other}, which failed with: {another}")
        raise error

    def close(self) -> None:
        """Waits until all is done, frees the memory, and raises what has failed.

        While another exception is handled, that one wins, and the failure is only logged.
        """
        is_handling = sys.exception() is not None
        self.wait()
        if self._executor is not None:
            self._executor.shutdown()
        with self._lock:
            failures = [] if is_handling else self._failures
        self._begin()
        self._failures = failures
        self.raise_failures()

    def _submit(self, uri: S3Uri, work: Callable[[], object]) -> Future[None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._note(uri, error)
                raise
            finally:
                with self._lock:
                    self._pending[uri] -= 1

        if self._executor is None:
            # Its thread ends what was submitted also when the interpreter ends.
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="s3torch-lightning")
        with self._lock:
            self._pending[uri] += 1
        self._last = self._executor.submit(run)
        return self._last

    def _note(self, uri: S3Uri, error: BaseException) -> None:
        with self._lock:
            if all(error is not known for _, known in self._failures):
                # Who asks for it may be gone: a program that ends, or one that handles another error.
                _log.warning("%s failed in the background: %s", uri, error)
                self._failures.append((uri, error))

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._begin()


def _new_chunk() -> memoryview:
    # Shared with children: in a private mapping, each fork would make the next save copy its pages.
    pages = mmap.mmap(-1, _CHUNK)
    advise_huge_pages(pages)
    return memoryview(pages)


def _fast_saves() -> AbstractContextManager[object]:
    """Leaves out what keeps training waiting, for saves in this thread.

    ``torch.load`` does not look at the CRC-32 of records, and uploads have a checksum that S3 verifies. What
    comes from a GPU goes through pinned memory, which torch keeps for the next time.
    """
    try:
        config = import_module("torch.utils.serialization.config")
        known = {name: getattr(config.save, name) for name in ("compute_crc32", "use_pinned_memory_for_d2h")}
    except (ImportError, AttributeError):  # Older releases of torch.
        return nullcontext()
    wanted = known | {"compute_crc32": False}
    if torch.cuda.is_available():
        wanted["use_pinned_memory_for_d2h"] = True
    patch: AbstractContextManager[object] = config.patch(
        {f"save.{name}": value for name, value in wanted.items()}
    )
    return patch
