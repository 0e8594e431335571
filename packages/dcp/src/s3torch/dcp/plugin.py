"""What this package registers with s3torch, in the entry-point group ``s3torch.plugins``.

It loads no torch: every client asks all plugins for their tokens.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from s3torch.core.plugins import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta

    import click

    from s3torch.core import ObjectInfo, S3Client

__all__ = [
    "s3torch_commands",
    "s3torch_leftovers",
    "s3torch_prefix_strategies",
    "s3torch_reader_kinds",
    "s3torch_user_agent",
]


@hookimpl
def s3torch_reader_kinds() -> Mapping[str, Callable[..., Any]]:
    """Registers the reads that a storage reader plans."""
    return {"dcp_optimized": _planned_reads}


def _planned_reads(**options: Any) -> Any:
    from s3torch.dcp._reader import PlannedReads

    return PlannedReads(**options)


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
