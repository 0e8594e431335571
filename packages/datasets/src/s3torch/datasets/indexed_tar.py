"""A dataset with a length whose samples are in tar archives and are read by range, in any order."""

from __future__ import annotations

import logging
import operator
from bisect import bisect_right
from collections import deque
from itertools import accumulate
from multiprocessing.context import get_spawning_popen
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from s3torch.core.ranges import split_range
from s3torch.datasets._sample_dataset import SampleDataset
from s3torch.datasets.caching import open_ranges
from s3torch.datasets.describe import describe_objects
from s3torch.datasets.formats import ShardSource
from s3torch.datasets.index_store import IndexStore
from s3torch.datasets.prefetch import check_prefetch
from s3torch.datasets.sample_transform import transformed
from s3torch.datasets.sources import PrefixSource
from s3torch.datasets.tar_index import SampleRange, TarIndex
from s3torch.datasets.versions import facts_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Self, SupportsIndex

    from s3torch.core import S3BucketKeyData, S3Client, S3ClientConfig
    from s3torch.core.transfer.source import PendingRange
    from s3torch.datasets.describe import DatasetSummary
    from s3torch.datasets.disk_cache import DiskCache
    from s3torch.datasets.sources import ObjectSource

__all__ = ["S3IndexedTarDataset"]

_log = logging.getLogger(__name__)
_BYTES_AHEAD = 64 * 1024 * 1024


class S3IndexedTarDataset(SampleDataset, Dataset[Any]):
    """The samples of tar archives by their number, each read by one ranged request.

    Samples are those of ``S3ShardDataset``. The first question for a length or a sample lists the archives
    and loads their indexes; an archive without one, or whose ETag is another than that in its index, is read
    and indexed then, which takes a pass over it: build and save the indexes once with ``save_indexes=True``.
    The indexes are pickled with the dataset, and reads are pinned to the ETags in them.

    ``DataLoader`` asks for whole batches (``__getitems__``), whose requests run side by side.

    Args:
        region: The region; ``None`` takes it from the usual AWS places.
        get_dataset_objects: Takes the client and returns the archives.
        endpoint: The URL of a store other than AWS.
        transform: Makes what the dataset returns of a sample.
        s3client_config: The settings of the client.
        index_location: An S3 URI or a folder for the indexes; ``None`` keeps each beside its archive.
        save_indexes: Saves the indexes that had to be made.
        prefetch: How many samples of a batch are fetched at once, while they fit in 64 MiB.
        cache_dir: A folder on a local disk where what was read is kept, for all processes of this machine;
            the second epoch reads from there. See ``DiskCache``.
        cache_limit: How many bytes the folder may have; ``None`` for half of what its disk has for it.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    def __init__(
        self,
        region: str | None,
        get_dataset_objects: ObjectSource,
        *,
        endpoint: str | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        s3client_config: S3ClientConfig | None = None,
        index_location: str | os.PathLike[str] | None = None,
        save_indexes: bool = False,
        prefetch: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_limit: int | None = None,
    ) -> None:
        super().__init__(
            region,
            get_dataset_objects,
            agent="md/dataset#indexed_tar",
            endpoint=endpoint,
            transform=transform,
            s3client_config=s3client_config,
            cache_dir=cache_dir,
            cache_limit=cache_limit,
        )
        self._store = IndexStore(index_location)
        self._save_indexes = save_indexes
        self._prefetch = max(1, check_prefetch(prefetch))
        self._archives: _Archives | None = None

    @classmethod
    def from_prefix(
        cls, s3_uri: str | os.PathLike[str], *, region: str | None = None, **options: Any
    ) -> Self:
        """Makes a dataset of all objects below the URI whose key ends with ``.tar``, in listing order.

        The other arguments are those of the class.

        Raises:
            ConfigurationError: The URI or another argument is wrong.
        """
        return cls(region, ShardSource(PrefixSource.from_uri(s3_uri), (".tar",)), **options)

    def __len__(self) -> int:
        return self._loaded().count

    def __getitem__(self, index: SupportsIndex) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Any]:
        """Returns the samples of a batch in the order of the indices, with many requests in flight."""
        archives = self._loaded()
        wanted = [archives.find(operator.index(index)) for index in indices]
        return [transformed(self._transform, sample) for sample in self._fetched(wanted)]

    def __iter__(self) -> Iterator[Any]:
        # Without this, an IndexError of a transform would end a loop over the dataset in silence.
        archives = self._loaded()
        for sample in self._fetched(map(archives.find, range(archives.count))):
            yield transformed(self._transform, sample)

    def describe(self) -> DatasetSummary:
        """Summarises the archives and counts their samples, from listing and indexes."""
        archives = self._loaded()
        return describe_objects(archives.items, estimated_samples=archives.count)

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:
            self._loaded()
        return self.__dict__.copy()

    def _loaded(self) -> _Archives:
        if self._archives is None:
            items = self._listing()
            loaded = self._store.load(self._client, items)
            indexes = [self._index(item, data) for item, data in zip(items, loaded, strict=True)]
            self._archives = _Archives(items, indexes)
        return self._archives

    def _index(self, item: S3BucketKeyData, data: bytes | None) -> TarIndex:
        uri = f"s3://{item.bucket}/{item.key}"
        if data is not None:
            index = TarIndex.from_json(data)
            # Without a listing, the first read tells whether the archive still has this ETag.
            if item.object_info is None or item.object_info.etag == index.etag:
                return index
            _log.warning("the index of %s is that of an older archive", uri)
        _log.info("indexing %s", uri)
        index = TarIndex.build(self._client, item.bucket, item.key, **facts_of(item))
        if self._save_indexes:
            self._store.save(self._client, item, index.to_json())
        return index

    def _fetched(
        self, wanted: Iterable[tuple[S3BucketKeyData, TarIndex, SampleRange]]
    ) -> Iterator[dict[str, Any]]:
        waiting: deque[_Fetch] = deque()
        weight = 0
        try:
            for item, index, sample in wanted:
                waiting.append(_Fetch(self._client, item, index, sample, self._cache))
                weight += sample.stop - sample.start
                while len(waiting) >= self._prefetch or (len(waiting) > 1 and weight > _BYTES_AHEAD):
                    weight -= waiting[0].length
                    yield waiting.popleft().sample()
            while waiting:
                yield waiting.popleft().sample()
        finally:
            for fetch in waiting:
                fetch.cancel()


class _Archives:
    """The archives of a dataset and where their samples are."""

    def __init__(self, items: Sequence[S3BucketKeyData], indexes: Sequence[TarIndex]) -> None:
        self.items = items
        self._indexes = indexes
        self._ends = list(accumulate(map(len, indexes)))
        self.count = self._ends[-1] if self._ends else 0

    def find(self, number: int) -> tuple[S3BucketKeyData, TarIndex, SampleRange]:
        """Returns where a sample is.

        Raises:
            IndexError: There are not so many.
        """
        if not -self.count <= number < self.count:
            raise IndexError(f"index {number} is out of range for {self.count} samples")
        number %= self.count
        shard = bisect_right(self._ends, number)
        index = self._indexes[shard]
        return self.items[shard], index, index[number - self._ends[shard] + len(index)]


class _Fetch:
    """The bytes of one sample on their way, in one request, or one for each part of a large sample."""

    def __init__(
        self,
        client: S3Client,
        item: S3BucketKeyData,
        index: TarIndex,
        sample: SampleRange,
        cache: DiskCache | None,
    ) -> None:
        self.length = sample.stop - sample.start
        self._url = f"s3://{item.bucket}/{item.key}"
        self._range = sample
        # The index has size and ETag, also of an archive that was not listed.
        source = open_ranges(client, item, cache, object_info=index)
        self._into: memoryview | None = None
        self._pending: list[PendingRange] = []
        if self.length <= source.part_size:
            self._pending.append(source.start(sample.start, sample.stop))
            return
        self._into = memoryview(bytearray(self.length))
        for part in split_range(0, self.length, source.part_size):
            begin, end = sample.start + part.start, sample.start + part.stop
            self._pending.append(source.start(begin, end, self._into[part.start : part.stop]))

    def sample(self) -> dict[str, Any]:
        """Waits for the bytes."""
        data = memoryview(b"")
        try:
            for pending in self._pending:
                data = pending.wait()
        except BaseException:
            self.cancel()
            raise
        parts = self._range.cut(data if self._into is None else self._into)
        return {"__key__": self._range.key, "__url__": self._url, **parts}

    def cancel(self) -> None:
        """Stops what is on its way."""
        for pending in self._pending:
            pending.cancel()
