"""What this package adds to s3torch."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

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


def lightning_class(name: str, *modules: str) -> Any:
    """Returns a class of the Lightning that is in use: of the module that is imported already.

    Raises:
        ModuleNotFoundError: None is installed.
    """
    for module in sorted(modules, key=lambda module: module not in sys.modules):
        try:
            return getattr(import_module(module), name)
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(
        "No module named 'lightning'; install s3torch-lightning, lightning or pytorch-lightning",
        name="lightning",
    )
