"""What this package registers with s3torch, in the entry-point group ``s3torch.plugins``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from s3torch.core.plugins import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import click

__all__ = ["s3torch_commands", "s3torch_shard_formats", "s3torch_user_agent"]


@hookimpl
def s3torch_shard_formats() -> Mapping[str, Callable[..., Any]]:
    """Registers the formats of this package; a format imports what it needs when it is used."""
    from s3torch.datasets.shards._parquet import ParquetFormat
    from s3torch.datasets.shards._tar_format import TarFormat

    return {"parquet": ParquetFormat, "tar": TarFormat}


@hookimpl
def s3torch_user_agent() -> str | None:
    """Names the version of torch, from its metadata and without importing it."""
    try:
        return f"md/pytorch#{version('torch')}"
    except PackageNotFoundError:
        return None


@hookimpl
def s3torch_commands() -> Mapping[str, click.Command]:
    """Adds ``s3torch manifest``."""
    from s3torch.datasets._commands import manifest

    return {"manifest": manifest}
