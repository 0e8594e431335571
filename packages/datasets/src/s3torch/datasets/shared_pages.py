"""One listing for all workers and ranks of a node in an epoch, page by page and no further than it is read.

Each worker reads the pages from a file. Whoever needs the next one first asks S3 for it, under a lock, and
appends it; so no worker lists what another has listed, and none waits for more than it needs. Who reads a
file holds a shared lock on it, so that it goes away when nobody does any more.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import struct
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from s3torch.datasets.file_lock import unlock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.datasets.shared_listing import SharedFolder
    from s3torch.datasets.sources import PagedSource

__all__ = ["shared_pages"]

_log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")


class _Record(NamedTuple):
    objects: list[S3BucketKeyData]
    # Where the next page begins; None after the last one.
    cursor: str | None
    # Where in the file the next record begins.
    stop: int


def shared_pages(
    folder: SharedFolder, epoch: str, source: PagedSource, client: S3Client
) -> Iterator[S3BucketKeyData]:
    """Yields the objects of a source; workers that name the same epoch list each page once together."""
    cursor, place = None, 0
    pages = _Pages(folder, epoch)
    try:
        while True:
            record = pages.read(place) or pages.listed(place, cursor, source, client)
            yield from record.objects
            cursor, place = record.cursor, record.stop
            if cursor is None:
                return
    finally:
        pages.close()


class _Pages:
    """The file of an epoch, as one worker sees it."""

    def __init__(self, folder: SharedFolder, epoch: str) -> None:
        self._folder = folder
        self._path = folder.path / f"pages-{epoch}"
        self._descriptor: int | None = None
        self._is_alone = False

    def read(self, place: int) -> _Record | None:
        if self._descriptor is None and not self._is_alone:
            self._descriptor = _open_shared(self._path)
        if self._descriptor is None:
            return None
        head = os.pread(self._descriptor, _LENGTH.size, place)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        data = os.pread(self._descriptor, length, place + _LENGTH.size)
        if not data or len(data) < length:
            return None  # Somebody is writing it now, or has died of it.
        objects, cursor = pickle.loads(data)  # noqa: S301 - from a private folder of this job
        return _Record(objects, cursor, place + _LENGTH.size + length)

    def listed(self, place: int, cursor: str | None, source: PagedSource, client: S3Client) -> _Record:
        with ExitStack() as stack:
            if not self._is_alone:
                try:
                    stack.enter_context(self._folder.locked("pages.lock"))
                except OSError as exc:
                    self._give_up(exc)
            record = self.read(place)
            if record is None:
                page = source.page(client, cursor)
                record = _Record(*page, self._shared(place, pickle.dumps(page)))
            return record

    def _shared(self, place: int, data: bytes) -> int:
        """Stores a page for the others and returns where the next one begins."""
        if not self._is_alone:
            try:
                return self._append(place, data)
            except OSError as exc:
                self._give_up(exc)
        return place

    def _give_up(self, exc: OSError) -> None:
        # What others go on to store has other places than what is listed here from now on.
        _log.warning("the workers cannot share a listing: %s", exc)
        self.close()
        self._is_alone = True

    def close(self) -> None:
        if self._descriptor is not None:
            unlock(self._descriptor)
            self._descriptor = None

    def _append(self, place: int, data: bytes) -> int:
        if place == 0:
            _remove_unread(self._folder.path)
        with self._path.open("ab") as file:
            file.truncate(place)
            file.write(_LENGTH.pack(len(data)) + data)
        if self._descriptor is None:
            self._descriptor = _open_shared(self._path)
        return place + _LENGTH.size + len(data)


def _open_shared(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return descriptor


def _remove_unread(folder: Path) -> None:
    """Removes the pages of epochs that are over."""
    for path in folder.glob("pages-*"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink()
