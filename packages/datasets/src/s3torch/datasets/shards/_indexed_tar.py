"""A dataset with a length whose samples are in tar archives and are read by range, in any order."""

from __future__ import annotations

import logging
import operator
import os
from bisect import bisect_right
from contextlib import closing, suppress
from itertools import accumulate
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import Dataset

from s3torch.core import parse_s3_uri
from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.core.requests import same_etag
from s3torch.datasets._base import COMMON_OPTIONS, S3Dataset, apply
from s3torch.datasets._cache import open_ranges
from s3torch.datasets._opening import Ahead, RangeInParts, check_prefetch, look_ahead
from s3torch.datasets._private_files import PrivateFolder, path_for_key
from s3torch.datasets.shards._dataset import ShardSource, name_of
from s3torch.datasets.shards._tar_format import TarIndex
from s3torch.datasets.sources._sources import facts_of, uri_of
from s3torch.datasets.sources._table import describe_objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import SupportsIndex

    from typing_extensions import TypeVar as DefaultTypeVar

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.core.transfer import RangeSource
    from s3torch.datasets.shards._tar_format import SampleRange
    from s3torch.datasets.sources._sources import ObjectSource, PrefixSource
    from s3torch.datasets.sources._table import DatasetSummary

    # A sample has its key, the URI of its archive, and the bytes of each file.
    ResultT = DefaultTypeVar("ResultT", default=dict[str, Any])
else:
    ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)
INDEX_SUFFIX = ".index.json"
_BYTES_AHEAD = 64 * 1024 * 1024
_AHEAD = Ahead(32)


class IndexStore:
    """Loads and saves indexes as bytes.

    The index of ``s3://bucket/key`` is ``bucket/key.index.json`` under the location, which is an S3 URI or a
    folder; ``None`` keeps it beside the archive. In a folder, a key that is no local path has a digest
    instead, new files are private, and those of others than the owner of the folder are refused.
    """

    def __init__(self, location: str | os.PathLike[str] | None) -> None:
        text = "" if location is None else os.fspath(location)
        self._is_remote = location is None or text.startswith("s3://")
        self._place = parse_s3_uri(text) if text and self._is_remote else None
        self._folder = Path(text)

    def load(self, client: S3Client, items: Sequence[S3BucketKeyData]) -> Iterator[bytes | None]:
        """Yields the index of each archive, ``None`` where there is none, with many requests in flight."""
        if not self._is_remote:
            yield from map(self._read, items)
            return
        readers = (client.get_object(*self._key(item)) for item in items)
        for reader in look_ahead(readers, _AHEAD):
            with reader:
                try:
                    data = reader.read()
                except NotFoundError:
                    data = None
            yield data

    def save(self, client: S3Client, item: S3BucketKeyData, data: bytes) -> None:
        if self._is_remote:
            with client.put_object(*self._key(item)) as writer:
                writer.write(data)
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        *folders, name = path_for_key(item.bucket, item.key, INDEX_SUFFIX)
        with self._opened(folders, create=True) as folder:
            folder.publish(name, data)

    def place(self, item: S3BucketKeyData) -> str:
        """Names the index of an archive, for messages."""
        if self._is_remote:
            return "s3://{}/{}".format(*self._key(item))
        return str(self._folder.joinpath(*path_for_key(item.bucket, item.key, INDEX_SUFFIX)))

    def _read(self, item: S3BucketKeyData) -> bytes | None:
        *folders, name = path_for_key(item.bucket, item.key, INDEX_SUFFIX)
        with suppress(FileNotFoundError), self._opened(folders) as folder, folder.read(name) as file:
            return file.read()
        return None

    def _opened(self, folders: Iterable[str], *, create: bool = False) -> PrivateFolder:
        root = self._folder.resolve()
        opened = PrivateFolder.open(root, owners={os.geteuid(), root.stat().st_uid})
        for name in folders:
            opened = opened.folder(name, create=create)
        return opened

    def _key(self, item: S3BucketKeyData) -> tuple[str, str]:
        if self._place is None:
            return item.bucket, item.key + INDEX_SUFFIX
        bucket, prefix = self._place
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        return bucket, f"{folder}{item.bucket}/{item.key}{INDEX_SUFFIX}"


class S3IndexedTarDataset(S3Dataset[dict[str, Any], ResultT], Dataset[ResultT]):
    """The samples of tar archives by their number, each read by one ranged request.

    Samples are those of ``S3ShardDataset``. The first question for a length or a sample lists the archives
    and loads their indexes; an archive without one, or whose ETag is another than that in its index, is read
    and indexed then, which takes a pass over it: build and save the indexes once with ``save_indexes=True``.
    The indexes are pickled with the dataset, and reads are pinned to the ETags in them.

    ``DataLoader`` asks for whole batches (``__getitems__``), whose requests run side by side.

    Arguments that are not described here are those of ``S3MapDataset``.

    Args:
        get_dataset_objects: Takes the client and returns the archives.
        transform: Makes what the dataset returns of a sample; ``None`` returns the sample itself.
        index_location: An S3 URI or a folder for the indexes; ``None`` keeps each beside its archive.
        save_indexes: Saves the indexes that had to be made.
        prefetch: How many samples of a batch are fetched at once, while they fit in 64 MiB.

    Raises:
        ConfigurationError: An argument is wrong.
    """

    _kind = "indexed_tar"
    _of_samples = True
    _options = COMMON_OPTIONS | {"index_location", "save_indexes", "prefetch"}

    def _prepare(self) -> None:
        self._store = IndexStore(self._settings.index_location)
        # Each is started when it is made.
        self._ahead = Ahead(max(0, check_prefetch(self._settings.prefetch) - 1), _BYTES_AHEAD, least=1)
        self._archives: _Archives | None = None

    @classmethod
    def _chosen_from(cls, source: PrefixSource, options: Mapping[str, Any]) -> ObjectSource:  # noqa: ARG003
        return ShardSource(source, (".tar",))

    def _agent(self) -> str:
        return f"md/dataset#{self._kind}"

    def __len__(self) -> int:
        return self._loaded().count

    def __getitem__(self, index: SupportsIndex) -> ResultT:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[ResultT]:
        """Returns the samples of a batch in the order of the indices, with many requests in flight."""
        archives = self._loaded()
        wanted = [archives.find(operator.index(index)) for index in indices]
        return list(self._fetched(wanted))

    def __iter__(self) -> Iterator[ResultT]:
        # Without this, an IndexError of a transform would end a loop over the dataset silently.
        archives = self._loaded()
        yield from self._fetched(map(archives.find, range(archives.count)))

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
        uri = uri_of(item)
        if data is not None:
            try:
                index = TarIndex.from_json(data)
            except ConfigurationError as exc:
                why = f"{self._store.place(item)}: {exc.message}; delete it, and it is made anew"
                raise ConfigurationError(why) from exc
            # Without a listing, the first read finds out whether the archive still has this ETag.
            info = item.object_info
            if info is None or (info.size == index.size and same_etag(info.etag, index.etag)):
                return index
            _log.warning("the index of %s belongs to an older archive", uri)
        _log.info("indexing %s", uri)
        index = TarIndex.build(self._client, item.bucket, item.key, **facts_of(item))
        if self._settings.save_indexes:
            self._store.save(self._client, item, index.to_json())
        return index

    def _fetched(self, wanted: Iterable[tuple[S3BucketKeyData, TarIndex, SampleRange]]) -> Iterator[ResultT]:
        # The index has size and ETag, also of an archive that was not listed.
        started = (
            _Fetch(open_ranges(self._client, item, self._cache, object_info=index), place)
            for item, index, place in wanted
        )
        with closing(look_ahead(started, self._ahead, weigh=lambda one: one.stop - one.start)) as fetches:
            for fetch in fetches:
                yield apply(self._settings.transform, fetch.sample(), name_of)


class _Archives:
    """The archives of a dataset and where their samples are."""

    def __init__(self, items: Sequence[S3BucketKeyData], indexes: Sequence[TarIndex]) -> None:
        self.items = items
        self._indexes = indexes
        self._ends = list(accumulate(map(len, indexes)))
        self.count = self._ends[-1] if self._ends else 0

    def find(self, number: int) -> tuple[S3BucketKeyData, TarIndex, SampleRange]:
        """Returns where a sample is; raises ``IndexError`` if there are not so many."""
        if not -self.count <= number < self.count:
            raise IndexError(f"index {number} is out of range for {self.count} samples")
        number %= self.count
        shard = bisect_right(self._ends, number)
        index = self._indexes[shard]
        return self.items[shard], index, index[number - self._ends[shard] + len(index)]


class _Fetch(RangeInParts):
    """The bytes of one sample in flight, in one request, or one for each part of a large sample."""

    def __init__(self, source: RangeSource, place: SampleRange) -> None:
        super().__init__(source, place.start, place.stop)
        self._place = place
        self._url = f"s3://{source.bucket}/{source.key}"

    def sample(self) -> dict[str, Any]:
        return {"__key__": self._place.key, "__url__": self._url} | self._place.cut(self.wait())
