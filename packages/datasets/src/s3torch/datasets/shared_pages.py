"""One listing for all workers of an epoch, page by page and no further than it is read.

Each worker reads the pages from a file. Whoever needs the next one first asks S3 for it, under a lock, and
appends it; so no worker lists what another has listed, and none waits for more than it needs.
"""

from __future__ import annotations

import logging
import pickle
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.datasets.shared_listing import SharedFolder
    from s3torch.datasets.sources import PagedSource

__all__ = ["shared_pages"]

_log = logging.getLogger(__name__)

_LENGTH = struct.Struct("<Q")
_PREFIX = "pages-"


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
    while True:
        record = _read(folder, epoch, place) or _listed(folder, epoch, place, cursor, source, client)
        yield from record.objects
        cursor, place = record.cursor, record.stop
        if cursor is None:
            return


def _read(folder: SharedFolder, epoch: str, place: int) -> _Record | None:
    try:
        with (folder.path / f"{_PREFIX}{epoch}").open("rb") as file:
            file.seek(place)
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
            data = file.read(length)
    except OSError:
        return None
    if not data or len(data) < length:
        return None  # Somebody is writing it now, or has died of it.
    objects, cursor = pickle.loads(data)  # noqa: S301 - from a private folder of this job
    return _Record(objects, cursor, place + _LENGTH.size + length)


def _listed(
    folder: SharedFolder,
    epoch: str,
    place: int,
    cursor: str | None,
    source: PagedSource,
    client: S3Client,
) -> _Record:
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.locked(f"{_PREFIX.strip('-')}.lock"))
        except OSError as exc:
            _log.warning("the workers cannot share a listing: %s", exc)
            return _Record(*source.page(client, cursor), place)
        record = _read(folder, epoch, place)
        if record is None:
            page = source.page(client, cursor)
            record = _Record(*page, _append(folder, epoch, place, pickle.dumps(page)))
        return record


def _append(folder: SharedFolder, epoch: str, place: int, data: bytes) -> int:
    path = folder.path / f"{_PREFIX}{epoch}"
    if place == 0:
        # All workers have left the epoch before.
        for old in folder.path.glob(f"{_PREFIX}*"):
            if old != path:
                old.unlink(missing_ok=True)
    with path.open("ab") as file:
        file.truncate(place)
        file.write(_LENGTH.pack(len(data)) + data)
    return place + _LENGTH.size + len(data)
