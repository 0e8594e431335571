"""Tar archives as shards, plain or compressed, and where the samples of one are."""

from __future__ import annotations

import json
import zlib
from array import array
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.datasets._opening import start_download
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.shards._tar_archive import (
    RESERVED,
    ArchiveError,
    ArchiveLimits,
    ForwardStream,
    GzipStream,
    group_members,
    read_members,
)
from s3torch.datasets.sources._sources import size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core import S3Client, S3Reader
    from s3torch.datasets.formats import ShardObject
    from s3torch.datasets.shards._tar_archive import TarMember

_GZIP = (".tar.gz", ".tgz")
_ZSTANDARD = (".tar.zst", ".tzst")
_MIB = 1024 * 1024

_FORMAT = "s3torch-tar-index"
_VERSION = 1
_COLUMNS = ("keys", "parts", "suffixes", "suffix", "offset", "length")
# Members are passed over by a seek when they are larger; nothing is gained by reading more at once.
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class TarFormat:
    """Samples in a tar archive, by the naming of WebDataset.

    A sample is a ``dict``: ``"__key__"`` is the name of its files up to the first dot of the file name,
    ``"__url__"`` the URI of the shard, and for each file there is its suffix with its ``bytes``. Files of a
    sample follow each other in the archive. Links, folders, hidden files and files without a suffix are left
    out.

    Archives whose key ends with ``.tar.gz`` or ``.tgz`` are decompressed; ``.tar.zst`` needs the
    extra ``zstd``. A state in the middle of a compressed archive costs to decompress it up to there again.

    Attributes:
        suffixes: What keys end with.
        require_end: Refuses archives without an end marker, because they may be truncated.
        max_file_size: The most bytes of a file in a compressed archive, so that a small one cannot fill the
            memory; ``None`` for 100 times the size of the archive and at least 64 MiB. All that is
            decompressed may be 1000 times the size of the archive and at least 1 GiB.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".tar", *_GZIP, *_ZSTANDARD)
    require_end: bool = True
    max_file_size: int | None = None

    def __post_init__(self) -> None:
        size = self.max_file_size
        if size is not None and (type(size) is not int or size < 0):
            raise ConfigurationError(f"max_file_size must be an integer from 0 on, got {size!r}")

    def open(self, shard: ShardObject) -> _TarShard:
        return _TarShard(shard, self)


class _TarShard:
    def __init__(self, shard: ShardObject, chosen: TarFormat) -> None:
        self._piece = _TarPiece(shard, chosen)

    def pieces(self) -> Sequence[_TarPiece]:
        return (self._piece,)

    def close(self) -> None:
        """Does nothing; nothing was sent."""


class _TarPiece:
    """A whole archive; positions are offsets of headers in what is in it."""

    def __init__(self, shard: ShardObject, chosen: TarFormat) -> None:
        self.size = size_of(shard.item)
        self._shard = shard
        self._chosen = chosen
        self._reader: S3Reader | None = None

    def prefetch(self) -> None:
        start_download(self._open())

    def samples(self, position: int) -> Iterator[tuple[int, dict[str, Any]]]:
        place = self._shard.item
        stream = _stream(self._open(), place.key, self._chosen.max_file_size)
        try:
            # After the end there is no header, which is found out below.
            stream.skip(position)
            members = read_members(stream, require_end=self._chosen.require_end)
            base = {"__url__": self._shard.uri}
            before: dict[str, Any] | None = None
            end = position

            def load(member: TarMember) -> bytes:
                nonlocal end
                end = member.end
                return _load(stream, member)

            for sample in group_members(members, load):
                if before is not None:
                    yield sample.start, before
                before = {"__key__": sample.key, **base, **sample.parts}
            if before is not None:
                yield end, before
        except ArchiveError as exc:
            raise DamagedShardError.at(place.bucket, place.key, exc.offset, exc.why) from exc
        except S3Error:
            raise
        except _decompression_errors() as exc:
            why = f"it cannot be decompressed: {exc}"
            raise DamagedShardError.at(place.bucket, place.key, stream.offset, why) from exc

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _open(self) -> S3Reader:
        if self._reader is None:
            self._reader = self._shard.open()
        return self._reader


def plain_stream(reader: S3Reader, **options: Any) -> ForwardStream:
    """Returns a stream of an archive that is not compressed."""

    def limits() -> ArchiveLimits:
        return ArchiveLimits(reader.size, reader.size, "the archive")

    return ForwardStream(reader, seekable=True, limits=limits, **options)


def _stream(reader: S3Reader, key: str, largest: int | None) -> ForwardStream:
    def limits() -> ArchiveLimits:
        member = max(64 * _MIB, 100 * reader.size) if largest is None else largest
        return ArchiveLimits(member, max(1024 * _MIB, 1000 * reader.size), f"a file of {reader.size} bytes")

    name = key.lower()
    if name.endswith(_GZIP):
        return ForwardStream(GzipStream(reader), limits=limits)
    if name.endswith(_ZSTANDARD):
        try:
            import zstandard
        except ImportError as exc:
            raise ConfigurationError(
                f'{key!r} needs zstandard; pip install "s3torch-datasets[zstd]"'
            ) from exc
        decompressor = zstandard.ZstdDecompressor()
        return ForwardStream(
            decompressor.stream_reader(reader, read_across_frames=True, closefd=False), limits=limits
        )
    return plain_stream(reader)


def _decompression_errors() -> tuple[type[Exception], ...]:
    found: list[type[Exception]] = [OSError, EOFError, zlib.error]
    with suppress(ImportError):
        from zstandard import ZstdError

        found.append(ZstdError)
    return tuple(found)


def _load(stream: ForwardStream, member: TarMember) -> bytes:
    data = stream.take(member.size)
    if len(data) < member.size:
        why = f"it ends within {member.name!r}, after {len(data)} of {member.size} bytes"
        raise ArchiveError(stream.offset, why)
    return data


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
        self._suffixes = list(suffixes)
        try:
            self._first = array("Q", accumulate(parts, initial=0))
            self._suffix, self._offset, self._length = (
                array("I", suffix),
                array("Q", offset),
                array("Q", length),
            )
        except (TypeError, OverflowError) as exc:
            raise ConfigurationError(
                f"a column of the index has no numbers, or too large ones: {exc}"
            ) from exc
        self._check()

    def _check(self) -> None:
        names = {type(name) for name in (self.etag, *self._keys, *self._suffixes)}
        if names != {str} or type(self.size) is not int or self.size < 0:
            raise ConfigurationError(
                "the etag, keys or suffixes of the index are not strings, or its size is not a number"
            )
        files = self._first[-1]
        fits = len(self._keys) == len(self._first) - 1 and max(self._suffix, default=-1) < len(self._suffixes)
        if not fits or {len(self._suffix), len(self._offset), len(self._length)} != {files}:
            raise ConfigurationError("the columns of the index do not fit together")
        if len(set(self._keys)) < len(self._keys):
            raise ConfigurationError("the index has a sample twice")
        if len({*self._suffixes} - RESERVED) < len(self._suffixes):
            raise ConfigurationError("the index has a suffix twice, or one that names no file of a sample")
        for key, (first, stop) in zip(self._keys, pairwise(self._first), strict=True):
            if not 0 < stop - first == len(set(self._suffix[first:stop])):
                raise ConfigurationError(f"the sample {key!r} of the index has no file, or a suffix twice")
        for offset, length in zip(self._offset, self._length, strict=True):
            if offset + length > self.size:
                raise ConfigurationError(f"the index has a file at {offset}, behind the end of the archive")

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
                raise ConfigurationError(f"expected {_FORMAT} {_VERSION}, got {value['format']!r:.80}")
            columns = {name: value[name] for name in _COLUMNS}
            if any(type(column) is not list for column in columns.values()):
                raise ConfigurationError("a column is not a list")
            return cls(value["etag"], value["size"], **columns)
        except (KeyError, TypeError, ValueError, RecursionError) as exc:
            raise ConfigurationError(f"this is not an index of a tar archive: {exc!r}") from exc

    def to_json(self) -> bytes:
        """Writes the index in the format above."""
        value = {
            "format": _FORMAT,
            "version": _VERSION,
            "etag": self.etag,
            "size": self.size,
            "keys": self._keys,
            "parts": [after - before for before, after in pairwise(self._first)],
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
