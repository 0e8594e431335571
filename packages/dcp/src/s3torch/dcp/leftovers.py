"""Removes the files of a checkpoint that another one has replaced."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from s3torch.core.errors import S3Error
from s3torch.dcp.paths import join_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from s3torch.dcp.filesystem import S3FileSystem

__all__ = ["remove_replaced"]


def remove_replaced(
    fs: S3FileSystem, path: str, list_old: Callable[[], set[str]], *, kept: Collection[str]
) -> None:
    """Removes the files of the old checkpoint that the new one does not have.

    What cannot be removed stays, with a warning: the new checkpoint is whole without that.

    Args:
        fs: The file system.
        path: The URI of the checkpoint.
        list_old: Returns the names of the files of the old one.
        kept: The names of the files that stay.
    """
    try:
        stale = list_old() - set(kept)
        fs.rm_files(join_path(path, name) for name in sorted(stale))
    except S3Error as exc:
        warnings.warn(
            f"the new checkpoint in {path} is complete, but files of the old one were left: {exc}",
            stacklevel=2,
        )
