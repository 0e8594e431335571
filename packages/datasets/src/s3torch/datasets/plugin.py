"""What this package registers with s3torch, in the entry-point group ``s3torch.plugins``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from s3torch.core.plugins.hookspecs import hookimpl

__all__ = ["s3torch_user_agent"]


@hookimpl
def s3torch_user_agent() -> str | None:
    """Names the version of torch, from its metadata and without importing it."""
    try:
        return f"md/pytorch#{version('torch')}"
    except PackageNotFoundError:
        return None
