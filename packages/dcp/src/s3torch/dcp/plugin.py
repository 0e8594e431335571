"""What this package registers with s3torch, in the entry-point group ``s3torch.plugins``.

It loads no torch: every client asks all plugins for their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, ClassVar

from s3torch.core import RangedS3Reader, SequentialS3Reader
from s3torch.core.errors import ConfigurationError
from s3torch.core.plugins import hookimpl
from s3torch.core.ranges import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta

    import click

    from s3torch.core import ObjectInfo, S3Client, S3Reader
    from s3torch.core.transfer import RangeSource

__all__ = [
    "s3torch_commands",
    "s3torch_leftovers",
    "s3torch_prefix_strategies",
    "s3torch_reader_kinds",
    "s3torch_user_agent",
]


@dataclass(frozen=True, slots=True)
class PlannedReads:
    """What ``S3ReaderConstructor.dcp_optimized`` returns: how a storage reader fetches what its plan wants.

    As a reader constructor it makes readers of whole objects for metadata, and of ranges for all else.

    Attributes:
        max_gap_size: Bytes between two items up to which one request fetches both.

    Raises:
        ConfigurationError: ``max_gap_size`` is negative. It is also a ``ValueError``.
        TypeError: It is no number.
    """

    kind: ClassVar[str] = "dcp_optimized"

    max_gap_size: float = 32 * MIB

    def __post_init__(self) -> None:
        if not isinstance(self.max_gap_size, int | float):
            raise TypeError(f"max_gap_size must be int or float, got {type(self.max_gap_size).__name__}")
        if not self.max_gap_size >= 0:
            raise ConfigurationError("max_gap_size must be non-negative")

    def __call__(self, source: RangeSource, /) -> S3Reader:
        return SequentialS3Reader(source) if source.key.endswith(".metadata") else RangedS3Reader(source)


@hookimpl
def s3torch_reader_kinds() -> Mapping[str, Callable[..., Any]]:
    """Registers the reads that a storage reader plans."""
    return {PlannedReads.kind: PlannedReads}


@hookimpl
def s3torch_prefix_strategies() -> Mapping[str, Callable[..., Any]]:
    """Registers the strategies of this package by name."""
    from s3torch.dcp import _prefixes as prefixes

    return {
        "default": prefixes.DefaultPrefixStrategy,
        "round_robin": prefixes.RoundRobinPrefixStrategy,
        "binary": prefixes.BinaryPrefixStrategy,
        "hex": prefixes.HexPrefixStrategy,
    }


@hookimpl
def s3torch_user_agent() -> str | None:
    """Names the version of torch, from its metadata and without importing it."""
    try:
        return f"md/pytorch#{version('torch')}"
    except PackageNotFoundError:
        return None


@hookimpl
def s3torch_commands() -> Mapping[str, click.Command]:
    """Adds ``s3torch checkpoint``."""
    from s3torch.dcp.cli._commands import checkpoint

    return {"checkpoint": checkpoint}


@hookimpl
def s3torch_leftovers() -> Iterable[Callable[[S3Client, str, timedelta], Iterable[ObjectInfo]]]:
    """Adds what interrupted saves have left to ``s3torch gc``."""
    from s3torch.dcp.cli._commands import find_leftovers

    return [find_leftovers]
