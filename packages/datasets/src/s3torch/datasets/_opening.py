"""Readers of the objects of a dataset, with the downloads of the next ones under way."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from s3torch.core import SequentialS3Reader
from s3torch.core.memory import default_memory_limit
from s3torch.datasets.prefetch import choose_ahead, look_ahead
from s3torch.datasets.versions import facts_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader
    from s3torch.datasets._settings import Settings
    from s3torch.datasets.hedging import Hedging

_UNKNOWN_SIZE = 1024 * 1024


@cache
def _default_limit(pid: int) -> int:  # noqa: ARG001 - a worker has another one than its parent
    """Asks once in each process, for it takes longer than to start a download."""
    return default_memory_limit()


class Opener:
    """Makes readers with one client.

    It knows nothing of the dataset, so that what is read ahead does not keep a dataset alive.
    """

    def __init__(self, client: S3Client, settings: Settings, hedging: Hedging | None) -> None:
        self._client = client
        self._settings = settings
        self._hedging = hedging

    def open(self, item: S3BucketKeyData) -> S3Reader:
        """Returns the unread reader of an object."""
        constructor = self._settings.reader_constructor
        if self._hedging is None:
            return self._client.get_object(
                item.bucket, item.key, reader_constructor=constructor, **facts_of(item)
            )
        source = self._client.open_ranges(item.bucket, item.key, **facts_of(item))
        make = SequentialS3Reader if constructor is None else constructor
        return make(
            bucket=item.bucket,
            key=item.key,
            get_object_info=source.head,
            get_stream=self._hedging.source(source),
        )

    def ahead(self, items: Iterable[S3BucketKeyData], *, gently: bool = False) -> Generator[S3Reader]:
        """Yields the readers of objects in their order, with more of them started."""
        config = self._client.s3client_config
        limit = config.memory_limit
        ahead = choose_ahead(
            # A reader that is handed out stays unread, so that it can be pickled and holds no memory.
            0 if self._settings.hands_readers_out else self._settings.prefetch,
            memory_limit=_default_limit(os.getpid()) if limit is None else limit,
        )
        size = 0

        def opened() -> Iterator[S3Reader]:
            nonlocal size
            for item in items:
                info = item.object_info
                size = min(_UNKNOWN_SIZE if info is None else info.size, config.part_size)
                yield self.open(item)

        return look_ahead(opened(), ahead, weigh=lambda _: size, gently=gently)
