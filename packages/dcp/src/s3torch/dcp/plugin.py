"""What this package registers with s3torch, in the entry-point group ``s3torch.plugins``.

It loads no torch: every client asks all plugins for their tokens.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from s3torch.core.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["s3torch_prefix_strategies", "s3torch_reader_kinds", "s3torch_user_agent"]


@hookimpl
def s3torch_reader_kinds() -> Mapping[str, Callable[..., Any]]:
    """Registers the reader that knows from the plan of a load which ranges will be read."""
    from s3torch.dcp.planned import DCPOptimizedConstructor

    return {DCPOptimizedConstructor.kind: DCPOptimizedConstructor}


@hookimpl
def s3torch_prefix_strategies() -> Mapping[str, Callable[..., Any]]:
    """Registers the strategies of this package by name."""
    from s3torch.dcp import prefixes

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
