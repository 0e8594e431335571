"""The error for a shard whose bytes are not what its format says."""

from __future__ import annotations

from s3torch.core.errors import S3Error

__all__ = ["DamagedShardError"]


class DamagedShardError(S3Error, ValueError):
    """An archive or a table is damaged, truncated, or of a kind that is not supported.

    Attributes:
        offset: Where in the archive it went wrong, in bytes; for a compressed one, of what came out of it.
            ``None`` where the format does not tell.
    """

    offset: int | None = None

    @classmethod
    def at(cls, bucket: str, key: str, offset: int | None, why: str) -> DamagedShardError:
        """Makes the error for a place in an object."""
        where = "" if offset is None else f" at offset {offset}"
        error = cls(f"the shard is damaged{where}: {why}", bucket=bucket, key=key)
        error.offset = offset
        return error
