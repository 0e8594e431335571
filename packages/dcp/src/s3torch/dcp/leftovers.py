"""Removes the files of a checkpoint that another one has replaced."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from s3torch.core.errors import S3Error
from s3torch.dcp.metadata import decode_metadata, file_names
from s3torch.dcp.paths import join_path

if TYPE_CHECKING:
    from collections.abc import Collection

    from s3torch.dcp.filesystem import S3FileSystem

__all__ = ["remove_replaced"]


def remove_replaced(fs: S3FileSystem, path: str, uri: str, *, old: bytes, kept: Collection[str]) -> None:
    """Removes the files that the old metadata names and the new does not.

    What cannot be removed stays, with a warning: the new checkpoint is whole without that.

    Args:
        fs: The file system.
        path: The URI of the checkpoint.
        uri: The URI of the metadata.
        old: The metadata that was replaced.
        kept: The names of the files that stay.
    """
    try:
        stale = file_names(decode_metadata(old, uri=uri)) - set(kept)
        fs.rm_files(join_path(path, name) for name in sorted(stale))
    except S3Error as exc:
        warnings.warn(
            f"the new checkpoint in {path} is complete, but files of the old one were left: {exc}",
            stacklevel=2,
        )
