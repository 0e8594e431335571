"""What a format of shards is, and which are installed.

A shard is an object with many samples. A plugin names its formats with the hook ``s3torch_shard_formats``; a
dataset finds the format of a shard by the suffix of its key, unless it was given one. Formats are pickled
with their dataset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from s3torch.core.errors import ConfigurationError
from s3torch.core.plugins.manager import shard_formats
from s3torch.datasets.caching import open_ranges, through
from s3torch.datasets.sources import subject_of
from s3torch.datasets.versions import facts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer.source import RangeSource
    from s3torch.datasets.disk_cache import DiskCache
    from s3torch.datasets.sources import ObjectSource

__all__ = [
    "OpenedShard",
    "ShardFormat",
    "ShardObject",
    "ShardPiece",
    "ShardSource",
    "format_for_key",
    "named_format",
]


@dataclass(frozen=True, slots=True)
class ShardObject:
    """An object with samples, and how to read it.

    Attributes:
        client: The client of the dataset.
        item: Where the object is, and what the listing told of it.
        reader_constructor: How whole objects are read.
        cache: Keeps what was read; ``None`` for no cache.
    """

    client: S3Client
    item: S3BucketKeyData
    reader_constructor: S3ReaderConstructorProtocol | None = None
    cache: DiskCache | None = None

    @property
    def uri(self) -> str:
        """The URI of the object."""
        return f"s3://{self.item.bucket}/{self.item.key}"

    def open(self) -> S3Reader:
        """Returns an unread reader of the object."""
        return self.client.get_object(
            self.item.bucket,
            self.item.key,
            reader_constructor=through(self.cache, self.reader_constructor),
            **facts_of(self.item),
        )

    def ranges(self) -> RangeSource:
        """Returns the object as a source of ranges."""
        return open_ranges(self.client, self.item, self.cache)


class ShardPiece(Protocol):
    """What one worker reads of a shard, from its beginning to its end: all of it, or a part.

    Attributes:
        size: How many bytes it has, 0 if that is not known.
    """

    size: int

    def prefetch(self) -> None:
        """Starts the download of the first bytes and returns at once."""
        ...

    def samples(self, position: int) -> Iterator[tuple[int, Any]]:
        """Yields the samples from a position on, each with the position behind it.

        Args:
            position: 0 for the beginning, or one that was yielded before; states of datasets have it.

        Raises:
            DamagedShardError: The bytes are not what the format says.
        """
        ...

    def close(self) -> None:
        """Cancels what is on its way; may be called again."""
        ...


class OpenedShard(Protocol):
    """A shard that will tell its pieces."""

    def pieces(self) -> Sequence[ShardPiece]:
        """Returns the pieces in the order of the shard; waits for what tells them.

        Their number decides who reads them, so every process has to find the same number for one object.
        """
        ...

    def close(self) -> None:
        """Cancels what is on its way, but not the pieces; may be called again."""
        ...


@runtime_checkable
class ShardFormat(Protocol):
    """How the samples of one kind of shard are read.

    Attributes:
        suffixes: What the keys of such shards end with, as in ``(".tar",)``.
    """

    suffixes: tuple[str, ...]

    def open(self, shard: ShardObject) -> OpenedShard:
        """Starts to find out the pieces of a shard and returns at once."""
        ...


def named_format(name: str, **options: Any) -> ShardFormat:
    """Makes the format of this name.

    Args:
        name: The name under which a plugin has registered it: ``"tar"``, ``"parquet"`` ….
        options: What the format takes.

    Raises:
        ConfigurationError: No installed plugin has it.
    """
    found = shard_formats()
    if name not in found:
        installed = ", ".join(sorted(found)) or "none"
        raise ConfigurationError(f"unknown format of shards {name!r}; installed are: {installed}")
    made: ShardFormat = found[name](**options)
    return made


def format_for_key(key: str) -> ShardFormat:
    """Makes the installed format with the longest suffix that the key ends with, with its defaults.

    Raises:
        ConfigurationError: There is none.
    """
    made: list[ShardFormat] = [make() for make in shard_formats().values()]
    best = max(made, key=lambda one: _match(key, one.suffixes), default=None)
    if best is None or not _match(key, best.suffixes):
        known = ", ".join(sorted(suffix for one in made for suffix in one.suffixes))
        raise ConfigurationError(f"no format of shards for the key {key!r}; known suffixes are: {known}")
    return best


@dataclass(frozen=True, slots=True)
class ShardSource:
    """The objects of another source that are shards by the suffix of their key; others are left out.

    Attributes:
        source: The other source.
        suffixes: The suffixes; ``None`` for those of all formats that are installed.
    """

    source: ObjectSource
    suffixes: tuple[str, ...] | None = None

    def subject(self) -> str | None:
        """Names what is listed, if the other source has a name."""
        return subject_of(self.source, self.suffixes)

    def __call__(self, client: S3Client) -> Iterator[S3BucketKeyData]:
        """Lists what is left."""
        suffixes = self.suffixes
        if suffixes is None:
            suffixes = tuple(suffix for make in shard_formats().values() for suffix in make().suffixes)
        return (item for item in self.source(client) if _match(item.key, suffixes))


def _match(key: str, suffixes: Iterable[str]) -> int:
    """Returns the length of the longest suffix that the key ends with; 0 if it ends with none."""
    name = key.lower()
    return max((len(suffix) for suffix in suffixes if name.endswith(suffix)), default=0)
