"""What both kinds of datasets share: a client, readers, and the transform that makes the samples."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import get_worker_info

from s3torch.core import S3Client, S3ReaderConstructor, UserAgent
from s3torch.core.errors import ConfigurationError, NotFoundError, ObjectChangedError
from s3torch.datasets.prefetch import check_prefetch, look_ahead

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from s3torch.core import S3BucketKeyData, S3Reader
    from s3torch.datasets._settings import Settings
    from s3torch.datasets.sources import ObjectSource

_log = logging.getLogger(__name__)

_UNKNOWN_SIZE = 1024 * 1024
_SLOTS = 256


class S3Dataset:
    """Base of the datasets; not for direct use."""

    _kind: str

    def __init__(self, region: str | None, get_dataset_objects: ObjectSource, settings: Settings) -> None:
        if not callable(get_dataset_objects):
            raise ConfigurationError(f"get_dataset_objects must be callable, got {get_dataset_objects!r}")
        self._region = region
        self._get_dataset_objects = get_dataset_objects
        self._settings = settings
        # Shared memory; each worker writes into its own slot, so that nothing is lost.
        self._skipped = torch.zeros(_SLOTS, dtype=torch.int64).share_memory_()
        reader_type = S3ReaderConstructor.get_reader_type_string(settings.reader_constructor)
        # It connects when it is first used, travels with pickles and forks, and may be replaced.
        self._client = S3Client(
            region,
            endpoint=settings.endpoint,
            user_agent=UserAgent([f"md/dataset#{self._kind} md/reader_type#{reader_type}"]),
            s3client_config=settings.s3client_config,
        )

    @property
    def region(self) -> str | None:
        """The region that was given."""
        return self._region

    @property
    def endpoint(self) -> str | None:
        """The endpoint that was given."""
        return self._settings.endpoint

    @property
    def skipped(self) -> int:
        """How many objects were missing or changed and were left out, by this process and its workers."""
        return int(self._skipped.sum())

    def close(self) -> None:
        """Closes the client of this process; may be called again."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _list(self) -> Iterable[S3BucketKeyData]:
        return self._get_dataset_objects(self._client)

    def _open(self, item: S3BucketKeyData) -> S3Reader:
        return self._client.get_object(
            item.bucket,
            item.key,
            object_info=item.object_info,
            reader_constructor=self._settings.reader_constructor,
        )

    def _sample(self, reader: S3Reader) -> Any:
        try:
            return self._settings.transform(reader)
        except StopIteration as exc:
            # A loader would take it for the end of the data and drop the rest in silence.
            raise RuntimeError(f"the transform raised StopIteration for {_uri(reader)}") from exc
        except Exception as exc:
            exc.add_note(f"while transforming {_uri(reader)}")
            raise

    def _samples(self, items: Iterable[S3BucketKeyData]) -> Iterator[tuple[int, Any]]:
        """Yields the samples in the order of the items, with the downloads of the next ones under way.

        With each comes how many items were taken so far, those that were skipped included.
        """
        # A reader that is handed out stays unread, so that it can be pickled and holds no memory.
        depth = 0 if self._settings.hands_readers_out else check_prefetch(self._settings.prefetch)
        size = 0

        def opened() -> Iterator[S3Reader]:
            nonlocal size
            for item in items:
                size = _UNKNOWN_SIZE if item.object_info is None else item.object_info.size
                yield self._open(item)

        with closing(look_ahead(opened(), depth=depth, weigh=lambda _: size)) as readers:
            for taken, reader in enumerate(readers, 1):
                try:
                    sample = self._sample(reader)
                except (NotFoundError, ObjectChangedError) as exc:
                    if self._settings.on_error == "raise":
                        raise
                    self._skip(reader, exc)
                    continue
                yield taken, sample

    def _skip(self, reader: S3Reader, exc: Exception) -> None:
        _log.warning("skipping %s: %s", _uri(reader), exc)
        reader.close()
        info = get_worker_info()
        self._skipped[0 if info is None else 1 + info.id % (_SLOTS - 1)] += 1


def log_prefix(cls: type, s3_uri: object) -> None:
    """Tells that a dataset of a prefix is built."""
    _log.info("Building %s from_prefix s3_uri=%r", cls.__name__, s3_uri)


def log_objects(cls: type) -> None:
    """Tells that a dataset of given objects is built."""
    _log.info("Building %s from_objects", cls.__name__)


def _uri(reader: S3Reader) -> str:
    return f"s3://{reader.bucket}/{reader.key}"
