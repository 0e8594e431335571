"""Ranges of bytes: how an object is cut into requests. Pure functions of values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "GIB",
    "KIB",
    "MAX_OBJECT_SIZE",
    "MAX_PARTS",
    "MAX_PART_SIZE",
    "MIB",
    "MIN_PART_SIZE",
    "TIB",
    "ByteRange",
    "split_range",
    "upload_part_size",
]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html
MIN_PART_SIZE = 5 * MIB
MAX_PART_SIZE = 5 * GIB
MAX_PARTS = 10_000
MAX_OBJECT_SIZE = 5 * TIB

# With this step parts of 5 MiB, the smallest, reach 5 TiB within 10,000 parts.
_PARTS_PER_DOUBLING = 900


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from ``start`` up to, but not including, ``stop``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ConfigurationError(f"expected 0 <= start < stop, got {self.start}, {self.stop}")

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def header(self) -> str:
        """The value of an HTTP ``Range`` header, whose end is inclusive."""
        return f"bytes={self.start}-{self.stop - 1}"


def split_range(start: int, stop: int, size: int) -> Iterator[ByteRange]:
    """Cuts the bytes from ``start`` to ``stop`` into ranges of ``size`` bytes, the last one shorter."""
    for begin in range(start, stop, size):
        yield ByteRange(begin, min(begin + size, stop))


def upload_part_size(number: int, base: int) -> int:
    """Tells how large the part with this number is, in bytes.

    Parts begin at ``base`` bytes and double every 900 parts, so that an upload of unknown length reaches
    S3's 5 TiB within its 10,000 parts while all but huge objects have parts of the size that was asked for.

    Args:
        number: The number of the part, from 1.
        base: The part size of the configuration.
    """
    return min(base << ((number - 1) // _PARTS_PER_DOUBLING), MAX_PART_SIZE)
