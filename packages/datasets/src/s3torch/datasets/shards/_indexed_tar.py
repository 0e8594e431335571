"""A dataset with a length whose samples are in tar archives and are read by range, in any order."""

from __future__ import annotations

import json
import logging
import operator
import os
from array import array
from bisect import bisect_right
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import accumulate
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch.utils.data import Dataset

from s3torch.core import parse_s3_uri
from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.datasets._base import COMMON_OPTIONS, S3Dataset, apply
from s3torch.datasets._opening import Ahead, check_prefetch, look_ahead, open_ranges
from s3torch.datasets._private_files import PrivateFolder, path_for_key
from s3torch.datasets._ranges import RangeInParts
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.shards._dataset import ShardSource, name_of
from s3torch.datasets.shards._tar_archive import ArchiveError, read_members
from s3torch.datasets.shards._tar_format import group_members, plain_stream
from s3torch.datasets.sources._sources import facts_of, uri_of
from s3torch.datasets.sources._table import describe_objects

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import SupportsIndex

    from typing_extensions import TypeVar as DefaultTypeVar

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.core.transfer import RangeSource
    from s3torch.datasets.sources._sources import ObjectSource, PrefixSource
    from s3torch.datasets.sources._table import DatasetSummary

    # A sample has its key, the URI of its archive, and the bytes of each file.
    ResultT = DefaultTypeVar("ResultT", default=dict[str, Any])
else:
    ResultT = TypeVar("ResultT")

_log = logging.getLogger(__name__)
INDEX_SUFFIX = ".index.json"
_BYTES_AHEAD = 64 * 1024 * 1024

_FORMAT = "s3torch-tar-index"
_VERSION = 1
_COLUMNS = ("keys", "parts", "suffixes", "suffix", "offset", "length")
_AHEAD = Ahead(32)
# Members are passed over by a seek when they are larger; nothing is gained by reading more at once.
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class SampleRange:
    """Where the bytes of one sample are.

    ``parts`` has of each file its suffix, where its bytes begin after ``start``, and how many they are.
    """

    key: str
    start: int
    stop: int
    parts: tuple[tuple[str, int, int], ...]

    def cut(self, data: memoryview) -> dict[str, bytes]:
        """Returns the bytes of each file, by suffix, out of those from ``start`` to ``stop``."""
        return {suffix: bytes(data[offset : offset + length]) for suffix, offset, length in self.parts}


class TarIndex:
    r"""Where the samples of one archive are; some bytes of memory for each file.

    An index is a JSON object, by convention under the key of the archive with ``.index.json`` after it::

        {
          "format": "s3torch-tar-index", "version": 1,
          "etag": "\"9b2c…\"", "size": 1048576,
          "keys": ["dir/0001", …],
          "parts": [2, …],
          "suffixes": ["jpg", "cls"],
          "suffix": [0, 1, …],
          "offset": [512, 2560, …],
          "length": [1200, 1, …]
        }

    ``etag`` and ``size`` are those of the archive that was indexed. ``keys`` has the samples in the order of
    the archive, and ``parts`` how many files each has. The last three columns have a value for each file,
    sample after sample: the place of its suffix in ``suffixes``, where in the archive its bytes begin, and
    how many they are. The arguments are the same.

    Raises:
        ConfigurationError: The columns do not fit together.
    """

    def __init__(
        self,
        etag: str,
        size: int,
        *,
        keys: Sequence[str],
        parts: Sequence[int],
        suffixes: Sequence[str],
        suffix: Sequence[int],
        offset: Sequence[int],
        length: Sequence[int],
    ) -> None:
        self.etag = etag
        self.size = size
        self._keys = list(keys)
        self._first = array("Q", accumulate(parts, initial=0))
        self._suffixes = list(suffixes)
        self._suffix, self._offset, self._length = array("I", suffix), array("Q", offset), array("Q", length)
        files = self._first[-1]
        fits = len(self._keys) == len(self._first) - 1 and max(self._suffix, default=-1) < len(self._suffixes)
        if not fits or {len(self._suffix), len(self._offset), len(self._length)} != {files}:
            raise ConfigurationError("the columns of the index do not fit together")
        if len(set(self._keys)) < len(self._keys):
            raise ConfigurationError("the index has a sample twice")

    @classmethod
    def build(
        cls,
        client: S3Client,
        bucket: str,
        key: str,
        *,
        object_info: Any = None,
        version_id: str | None = None,
    ) -> TarIndex:
        """Reads the headers of an archive; members that are larger than a part are skipped.

        Args:
            client: The client.
            bucket: The bucket.
            key: The key of the archive, which is not compressed.
            object_info: Its facts from a listing; ``None`` sends a HEAD.
            version_id: The version to index; ``None`` for the latest.

        Raises:
            DamagedShardError: The archive is damaged.
        """
        info = object_info
        if info is None:
            info = client.head_object(bucket, key, version_id=version_id)
        columns: dict[str, Any] = {name: [] for name in _COLUMNS}
        numbers: dict[str, int] = {}
        with client.get_object(bucket, key, object_info=info, version_id=version_id) as reader:
            members = read_members(plain_stream(reader, chunk=_CHUNK))
            try:
                for sample in group_members(members, lambda member: (member.offset, member.size)):
                    columns["keys"].append(sample.key)
                    columns["parts"].append(len(sample.parts))
                    for suffix, (offset, length) in sample.parts.items():
                        columns["suffix"].append(numbers.setdefault(suffix, len(numbers)))
                        columns["offset"].append(offset)
                        columns["length"].append(length)
            except ArchiveError as exc:
                raise DamagedShardError.at(bucket, key, exc.offset, exc.why) from exc
        return cls(info.etag, info.size, **columns | {"suffixes": list(numbers)})

    @classmethod
    def from_json(cls, data: bytes) -> TarIndex:
        """Reads what ``to_json`` made; raises ``ConfigurationError`` for anything else."""
        try:
            value = json.loads(data)
            if (value["format"], value["version"]) != (_FORMAT, _VERSION):
                raise ConfigurationError(f"expected {_FORMAT} {_VERSION}, got {value['format']!r}")
            return cls(value["etag"], value["size"], **{name: value[name] for name in _COLUMNS})
        except (KeyError, TypeError, OverflowError, UnicodeDecodeError, json.JSONDecodeError) as exc:
            raise ConfigurationError(f"this is no index of a tar archive: {exc!r}") from exc

    def to_json(self) -> bytes:
        """Writes the index in the format above."""
        value = {
            "format": _FORMAT,
            "version": _VERSION,
            "etag": self.etag,
            "size": self.size,
            "keys": self._keys,
            "parts": [after - before for before, after in zip(self._first, self._first[1:], strict=False)],
            "suffixes": self._suffixes,
            "suffix": self._suffix.tolist(),
            "offset": self._offset.tolist(),
            "length": self._length.tolist(),
        }
        return json.dumps(value, separators=(",", ":")).encode()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, number: int) -> SampleRange:
        key = self._keys[number]
        files = range(self._first[number], self._first[number + 1])
        start = min(self._offset[file] for file in files)
        stop = max(self._offset[file] + self._length[file] for file in files)
        parts = tuple(
            (self._suffixes[self._suffix[file]], self._offset[file] - start, self._length[file])
            for file in files
        )
        return SampleRange(key, start, stop, parts)


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
            index = TarIndex.from_json(data)
            # Without a listing, the first read finds out whether the archive still has this ETag.
            if item.object_info is None or item.object_info.etag == index.etag:
                return index
            _log.warning("the index of %s is that of an older archive", uri)
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
