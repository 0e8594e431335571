"""What this package adds to s3torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from s3torch.core.plugins.hookspecs import hookimpl

__all__ = ["s3torch_user_agent"]


@hookimpl
def s3torch_user_agent() -> str | None:
    """Tells which Lightning is installed, without importing it."""
    for distribution in ("lightning", "pytorch-lightning"):
        try:
            return f"md/lightning#{version(distribution)}"
        except PackageNotFoundError:
            continue
    return None
