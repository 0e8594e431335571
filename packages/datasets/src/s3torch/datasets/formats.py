"""What a format of shards is, for the authors of formats, and which are installed.

A shard is an object with many samples. A plugin names its formats with the hook ``s3torch_shard_formats``; a
dataset finds the format of a shard by the suffix of its key, unless it was given one. Formats are pickled
with their dataset. A format raises ``DamagedShardError`` for bytes that are not what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.plugins import shard_formats
from s3torch.datasets._cache import open_ranges, through
from s3torch.datasets.sources._sources import facts_of, uri_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.core import S3BucketKeyData, S3Client, S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer import RangeSource
    from s3torch.datasets._cache import DiskCache

__all__ = ["DamagedShardError", "OpenedShard", "ShardFormat", "ShardObject", "ShardPiece", "named_format"]


class DamagedShardError(S3Error, ValueError):
    """An archive or a table is damaged, truncated, or of a kind that is not supported.

    Attributes:
        offset: Where in the archive it went wrong, in bytes; of a compressed one, after decompression.
            ``None`` where the format does not know.
    """

    offset: int | None = None

    @classmethod
    def at(cls, bucket: str, key: str, offset: int | None, why: str) -> DamagedShardError:
        """Makes the error for an offset in an object."""
        where = "" if offset is None else f" at offset {offset}"
        error = cls(f"the shard is damaged{where}: {why}", bucket=bucket, key=key)
        error.offset = offset
        return error


@dataclass(frozen=True, slots=True)
class ShardObject:
    """An object with samples, and how to read it.

    Attributes:
        client: The client of the dataset.
        item: Where the object is, and its facts from the listing.
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
        return uri_of(self.item)

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
        """Yields the samples from a position on, each with the position after it.

        Args:
            position: 0 for the beginning, or one that was yielded before; states of datasets contain it.

        Raises:
            DamagedShardError: The bytes are not what the format says.
        """
        ...

    def close(self) -> None:
        """Cancels what is in flight; may be called again."""
        ...


class OpenedShard(Protocol):
    """A shard whose pieces are being found out."""

    def pieces(self) -> Sequence[ShardPiece]:
        """Returns the pieces in the order of the shard; waits until they are known.

        Their number decides who reads them, so every process has to find the same number for one object.
        """
        ...

    def close(self) -> None:
        """Cancels what is in flight, but not the pieces; may be called again."""
        ...


@runtime_checkable
class ShardFormat(Protocol):
    """How the samples of one kind of shard are read."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What the keys of such shards end with, as in ``(".tar",)``; an attribute will do."""
        ...

    def open(self, shard: ShardObject) -> OpenedShard:
        """Starts to find out the pieces of a shard and returns at once."""
        ...


def named_format(name: str, **options: Any) -> ShardFormat:
    """Makes the format of this name.

    Args:
        name: The name under which a plugin has registered it: ``"tar"``, ``"parquet"`` ….
        options: The options of the format.

    Raises:
        ConfigurationError: No installed plugin has it.
    """
    found = shard_formats()
    if name not in found:
        installed = ", ".join(sorted(found)) or "none"
        raise ConfigurationError(f"unknown format of shards {name!r}; installed are: {installed}")
    made: ShardFormat = found[name](**options)
    return made
