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
from s3torch.datasets.shards._tar_archive import ArchiveError, ForwardStream, GzipStream, read_members
from s3torch.datasets.sources._sources import size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from s3torch.core import S3Reader
    from s3torch.datasets.formats import ShardObject
    from s3torch.datasets.shards._tar_archive import TarMember

T = TypeVar("T")
_GZIP = (".tar.gz", ".tgz")
_ZSTANDARD = (".tar.zst", ".tzst")


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

    A sample that has a suffix twice raises ``ArchiveError``.
    """
    sample: SampleParts[T] | None = None
    for member in members:
        split = split_name(member.name)
        if split is None:
            continue
        key, suffix = split
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = SampleParts(key, member.start, {})
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
    """

    suffixes: ClassVar[tuple[str, ...]] = (".tar", *_GZIP, *_ZSTANDARD)
    require_end: bool = True

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
        self._require_end = chosen.require_end
        self._reader: S3Reader | None = None

    def prefetch(self) -> None:
        start_download(self._open())

    def samples(self, position: int) -> Iterator[tuple[int, dict[str, Any]]]:
        place = self._shard.item
        stream = _stream(self._open(), place.key)
        try:
            # After the end there is no header, which is found out below.
            stream.skip(position)
            members = read_members(stream, require_end=self._require_end)
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


def _stream(reader: S3Reader, key: str) -> ForwardStream:
    name = key.lower()
    if name.endswith(_GZIP):
        return ForwardStream(GzipStream(reader))
    if name.endswith(_ZSTANDARD):
        try:
            import zstandard
        except ImportError as exc:
            raise ConfigurationError(
                f'{key!r} needs zstandard; pip install "s3torch-datasets[zstd]"'
            ) from exc
        decompressor = zstandard.ZstdDecompressor()
        return ForwardStream(decompressor.stream_reader(reader, read_across_frames=True, closefd=False))
    return ForwardStream(reader, seekable=True)


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
