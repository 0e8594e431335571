"""The checkpoints of a run: listed, verified, deleted, thinned out.

A checkpoint is there from the moment at which its metadata is, which is written last, and deleted first. So
only complete checkpoints are ever listed. (Those that each rank has saved for itself, with
``use_collectives=False``, have no common metadata, and are not listed.) All functions take a ``client``;
``None`` makes one from the environment.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from s3torch.core.errors import NotFoundError
from s3torch.dcp.filesystem import S3FileSystem
from s3torch.dcp.metadata import decode_metadata, file_names
from s3torch.dcp.paths import checked_uri, join_path
from s3torch.dcp.plan import SUFFIX
from s3torch.dcp.retention import CheckpointInfo, superfluous
from s3torch.dcp.verifying import CheckpointReport, check_files

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import ObjectInfo, S3Client
    from s3torch.dcp.verifying import Depth

__all__ = [
    "CheckpointInfo",
    "CheckpointReport",
    "delete_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "prune_checkpoints",
    "sweep_checkpoint",
    "verify_checkpoint",
]

_METADATA = ".metadata"
_DAY = 24 * 60 * 60.0


def list_checkpoints(root: str | os.PathLike[str], *, client: S3Client | None = None) -> list[CheckpointInfo]:
    """Lists the complete checkpoints in a folder and in its folders, oldest first.

    Args:
        root: The ``s3://bucket/prefix`` of the folder.
        client: Serves the requests.
    """
    uri = checked_uri(root).rstrip("/")
    found = []
    for info in _file_system(client).walk_objects(uri):
        folder, _, name = info.key.rpartition("/")
        if name == _METADATA:
            place = join_path(uri, folder) if folder else uri
            found.append(CheckpointInfo(place, folder, info.last_modified))
    return sorted(found, key=lambda one: one.order)


def latest_checkpoint(
    root: str | os.PathLike[str], *, client: S3Client | None = None
) -> CheckpointInfo | None:
    """Returns the complete checkpoint that was committed last; ``None`` where there is none."""
    found = list_checkpoints(root, client=client)
    return found[-1] if found else None


def verify_checkpoint(
    path: str | os.PathLike[str], *, depth: Depth = "sizes", client: S3Client | None = None
) -> CheckpointReport:
    """Compares the files of a checkpoint with what its metadata says of them.

    Args:
        path: The URI of the checkpoint.
        depth: ``"sizes"`` asks for the sizes of all files, with one listing; ``"checksums"`` also for the
            checksums that S3 has stored, with a HEAD for each file; ``"bytes"`` reads everything. Of a
            checkpoint that another library has written there are no checksums to compare with.
        client: Serves the requests.

    Raises:
        NotFoundError: There is no checkpoint.
        CheckpointError: Its metadata is damaged.
    """
    uri, fs = checked_uri(path), _file_system(client)
    metadata = _read_metadata(fs, uri)
    sizes = {info.key: info.size for info in fs.walk_objects(uri)}
    return check_files(fs.client, uri, metadata, sizes, depth)


def delete_checkpoint(path: str | os.PathLike[str], *, client: S3Client | None = None) -> None:
    """Deletes a checkpoint: its metadata first, so that it is never half visible, then all else there.

    Other checkpoints in folders below it stay.

    Raises:
        NotFoundError: There is no checkpoint.
        S3Error: Not all could be deleted; calling ``sweep_checkpoint`` later removes the rest.
    """
    uri, fs = checked_uri(path), _file_system(client)
    names = [info.key for info in _own_objects(fs.walk_objects(uri))]
    if _METADATA not in names:
        raise NotFoundError(f"there is no checkpoint: {join_path(uri, _METADATA)} does not exist")
    fs.rm_file(join_path(uri, _METADATA))
    fs.rm_files(join_path(uri, name) for name in names if name != _METADATA)


def prune_checkpoints(
    root: str | os.PathLike[str],
    *,
    last: int,
    every: int | None = None,
    protect: Collection[str] = (),
    dry_run: bool = False,
    client: S3Client | None = None,
) -> list[CheckpointInfo]:
    """Deletes old checkpoints of a run and returns them, oldest first.

    Args:
        root: The folder with the checkpoints.
        last: How many of the newest are kept, at least 1.
        every: Keeps those whose step, the last number in their name, is a multiple of this, too.
        protect: URIs of checkpoints that are kept in any case: name the one that the run has resumed from.
        dry_run: Deletes nothing.
        client: Serves the requests.
    """
    fs = _file_system(client)
    chosen = superfluous(list_checkpoints(root, client=fs.client), last=last, every=every, protect=protect)
    for one in chosen if not dry_run else ():
        delete_checkpoint(one.uri, client=fs.client)
    return chosen


def sweep_checkpoint(
    path: str | os.PathLike[str], *, older_than: float = _DAY, client: S3Client | None = None
) -> list[str]:
    """Removes files of saves that were not completed, and returns their URIs.

    These are the ``.distcp`` files that no metadata names. The files of a save that is still going on look
    the same, so only old ones are removed.

    Args:
        path: The URI of a checkpoint, or of a place where a save was not completed.
        older_than: Seconds. Longer than any save takes.
        client: Serves the requests.

    Raises:
        CheckpointError: The metadata is damaged, so nothing can be told; nothing is removed.
    """
    uri, fs = checked_uri(path), _file_system(client)
    limit = time.time() - older_than
    objects = _own_objects(fs.walk_objects(uri))
    metadata = [info.key for info in objects if info.key.endswith(_METADATA)]
    named = {name for key in metadata for name in file_names(_read_metadata(fs, uri, key))}
    stray = [
        join_path(uri, info.key)
        for info in objects
        if info.key.endswith(SUFFIX) and info.key not in named and info.last_modified < limit
    ]
    fs.rm_files(stray)
    return stray


def _file_system(client: S3Client | None) -> S3FileSystem:
    return S3FileSystem(None, client)


def _read_metadata(fs: S3FileSystem, uri: str, name: str = _METADATA) -> Metadata:
    place = join_path(uri, name)
    with fs.create_stream(place, "rb") as stream:
        return decode_metadata(stream.read(), uri=place)


def _own_objects(objects: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Leaves out what belongs to other checkpoints, in folders below."""
    everything = list(objects)
    folders = tuple(
        info.key.removesuffix(_METADATA) for info in everything if info.key.endswith(f"/{_METADATA}")
    )
    return [info for info in everything if not info.key.startswith(folders)] if folders else everything
