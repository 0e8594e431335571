"""Tar archives as shards, plain or compressed: samples by the naming of WebDataset.

Files that follow each other and have the same name up to the first dot of the file name are one sample: of
``dir/0001.jpg`` and ``dir/0001.seg.png`` the key is ``dir/0001``, and the parts are ``jpg`` and ``seg.png``.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.datasets._opening import start_download
from s3torch.datasets.formats import DamagedShardError
from s3torch.datasets.shards._tar_archive import (
    ArchiveError,
    ArchiveLimits,
    ForwardStream,
    GzipStream,
    read_members,
)
from s3torch.datasets.sources._sources import size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from s3torch.core import S3Reader
    from s3torch.datasets.formats import ShardObject
    from s3torch.datasets.shards._tar_archive import TarMember

T = TypeVar("T")
_GZIP = (".tar.gz", ".tgz")
_ZSTANDARD = (".tar.zst", ".tzst")
# What a sample has beside its files.
_RESERVED = frozenset({"__key__", "__url__"})
_REMEMBERED = 1_000_000
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SampleParts(Generic[T]):
    """One sample of an archive, whose first header is at ``start``.

    ``parts`` has what was made of each file, by its suffix in lower case and without the dot.
    """

    key: str
    start: int
    parts: dict[str, T]


def split_name(name: str) -> tuple[str, str] | None:
    """Returns the key and the suffix of a file; ``None`` for files that belong to no sample.

    Those are files without a suffix, hidden ones, and those that WebDataset reserves (``__name__``).
    """
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    if not stem or not dot or (file.startswith("__") and file.endswith("__")):
        return None
    return f"{folder}{slash}{stem}", suffix.lower()


def group_members(members: Iterable[TarMember], load: Callable[[TarMember], T]) -> Iterator[SampleParts[T]]:
    """Yields the samples of an archive; ``load`` makes a part of each file before the next one is read.

    A sample that has a suffix twice, a reserved one, or files that are not side by side raises
    ``ArchiveError``. To be bounded in memory, only the first million samples are remembered for that.
    """
    sample: SampleParts[T] | None = None
    # Hashes take less than half of the memory of the keys.
    seen: set[int] = set()
    for member in members:
        split = split_name(member.name)
        if split is None:
            continue
        key, suffix = split
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample, mark = SampleParts(key, member.start, {}), hash(key)
            if mark in seen:
                raise ArchiveError(member.start, f"the files of the sample {key!r} are not side by side")
            if len(seen) < _REMEMBERED:
                seen.add(mark)
        if suffix in _RESERVED:
            raise ArchiveError(member.start, f"{member.name!r} has a suffix that names no file of a sample")
        if suffix in sample.parts:
            raise ArchiveError(member.start, f"the sample {key!r} has two files with the suffix {suffix!r}")
        sample.parts[suffix] = load(member)
    if sample is not None:
        yield sample


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
