"""What this package adds to s3torch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from s3torch.core.plugins import hookimpl

__all__ = ["s3torch_user_agent"]


@hookimpl
def s3torch_user_agent() -> str | None:
    """Returns the token of the Lightning that is installed, without importing it."""
    found = lightning_version()
    return None if found is None else f"md/lightning#{found}"


def lightning_version() -> str | None:
    """Returns the version of Lightning, without importing it; ``None`` where there is none."""
    for distribution in ("lightning", "pytorch-lightning"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None
