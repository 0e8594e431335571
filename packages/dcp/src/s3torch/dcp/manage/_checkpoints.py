"""What can be done with the checkpoints of a run."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError, NotFoundError, S3Error
from s3torch.dcp._filesystem import S3FileSystem, checked_uri, join_path, read_whole
from s3torch.dcp._metadata import decode_metadata, file_names
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME, parse_index, read_headers
from s3torch.dcp.manage._contents import (
    METADATA_NAME,
    CheckpointReport,
    Expected,
    check_files,
    complete_folders,
    expected_of,
    is_commit,
    orphans,
    own_objects,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import ObjectInfo, S3Client
    from s3torch.dcp.hugging_face._safetensors import FileHeader, Index
    from s3torch.dcp.manage._contents import Depth

_DAY = 24 * 60 * 60.0
_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint.

    Attributes:
        uri: Where it is.
        name: Its path relative to the folder that was listed; empty for that folder itself.
        committed: When it became complete, in seconds since 1970.
    """

    uri: str
    name: str
    committed: int

    @property
    def step(self) -> int | None:
        """The last number in its name, as 1000 of ``run-3/step-1000``; ``None`` where there is none."""
        numbers = _NUMBER.findall(self.name)
        return int(numbers[-1]) if numbers else None

    @property
    def order(self) -> tuple[int, list[tuple[int, str]]]:
        """Sorts by time, and within a second by name, with numbers by their value."""
        parts = _NUMBER.split(self.name)
        return self.committed, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def list_checkpoints(root: str | os.PathLike[str], *, client: S3Client | None = None) -> list[CheckpointInfo]:
    """Lists the complete checkpoints in a folder and in its folders, oldest first.

    Args:
        root: The ``s3://bucket/prefix`` of the folder.
        client: Serves the requests.
    """
    uri = checked_uri(root).rstrip("/")
    folders = complete_folders(_file_system(client).walk_objects(uri))
    found = [
        CheckpointInfo(
            join_path(uri, folder) if folder else uri, folder, max(one.last_modified for one in commits)
        )
        for folder, commits in folders.items()
    ]
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
            checkpoint that another library has written there are no checksums to compare with; of one with
            an index the headers of its files are read, which tell their sizes.
        client: Serves the requests.

    Raises:
        NotFoundError: There is no checkpoint.
        CheckpointError: Its metadata is damaged.
    """
    uri, fs = checked_uri(path), _file_system(client)
    objects = {info.key: info for info in fs.walk_objects(uri)}
    expected = Expected({}, {})
    for commit in _commits_in(uri, objects.values()):
        if commit.key == INDEX_NAME:
            expected |= _expected_of_index(fs, uri, _read_index(fs, uri), objects)
        else:
            expected |= expected_of(_read_metadata(fs, uri))
    sizes = {name: info.size for name, info in objects.items()}
    return check_files(fs.client, uri, expected, sizes, depth)


def delete_checkpoint(path: str | os.PathLike[str], *, client: S3Client | None = None) -> None:
    """Deletes a checkpoint: its metadata first, so that it is never half visible, then all else there.

    Other checkpoints in folders below it stay.

    Raises:
        NotFoundError: There is no checkpoint.
        S3Error: Not all could be deleted; calling ``sweep_checkpoint`` later removes the rest.
    """
    uri, fs = checked_uri(path), _file_system(client)
    objects = own_objects(fs.walk_objects(uri))
    _commits_in(uri, objects)
    commits = [info.key for info in objects if is_commit(info)]
    # Of what was consolidated the index, and then the metadata of the parts.
    for name in sorted(commits, key=lambda name: name.count("/")):
        fs.rm_file(join_path(uri, name))
    fs.rm_files(join_path(uri, info.key) for info in objects if info.key not in commits)


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

    These are the ``.distcp`` files, and the safetensors files of ``S3HuggingFaceStorageWriter``, that no
    metadata and no index names. The files of a save that is still going on look the same, so only old ones
    are removed. Safetensors files with plain names stay where no checkpoint was ever completed: they may be
    one without an index.

    Args:
        path: The URI of a checkpoint, or of a place where a save was not completed.
        older_than: Seconds. Longer than any save takes.
        client: Serves the requests.

    Raises:
        CheckpointError: The metadata is damaged, so nothing can be told; nothing is removed.
    """
    uri, fs = checked_uri(path), _file_system(client)
    limit = time.time() - older_than
    objects = own_objects(fs.walk_objects(uri))
    named = set(_named(fs, uri, objects))
    old = [join_path(uri, info.key) for info in orphans(objects, named) if info.last_modified < limit]
    fs.rm_files(old)
    return old


def _file_system(client: S3Client | None) -> S3FileSystem:
    return S3FileSystem(None, client)


def _commits_in(uri: str, objects: Collection[ObjectInfo]) -> list[ObjectInfo]:
    """Returns what makes the checkpoint complete."""
    commits = complete_folders(objects).get("")
    if commits is None:
        raise NotFoundError(
            f"there is no checkpoint: neither {join_path(uri, METADATA_NAME)} nor {INDEX_NAME} exists there"
        )
    return commits


def _named(fs: S3FileSystem, uri: str, objects: Collection[ObjectInfo]) -> Iterator[str]:
    """Yields the names of all files that a checkpoint has, also one that a rank has saved for itself."""
    for info in objects:
        folder, slash, name = info.key.rpartition("/")
        if name == INDEX_NAME:
            files = _read_index(fs, uri, info.key).files
        elif name.endswith(METADATA_NAME):
            files = file_names(_read_metadata(fs, uri, info.key))
        else:
            continue
        yield from (f"{folder}{slash}{file}" for file in files)


def _expected_of_index(
    fs: S3FileSystem, uri: str, index: Index, objects: Mapping[str, ObjectInfo]
) -> Expected:
    """Finds out what the files should be: as noted in the index, else by their headers."""
    problems: list[str] = []
    headers: dict[str, FileHeader] = {}
    for name in sorted(index.files - index.facts.keys()):
        if name not in objects:
            continue
        place = join_path(uri, name)
        try:
            headers |= {name: read_headers({place: fs.open_ranges(place, object_info=objects[name])})[place]}
        except S3Error as exc:
            problems.append(str(exc))
    present = {name: {tensor.name for tensor in header.tensors} for name, header in headers.items()}
    problems += [
        f"{file} does not have {tensor}, which the index says it has"
        for tensor, file in index.weight_map.items()
        if file in present and tensor not in present[file]
    ]
    least = {name: objects[name].size if name in objects else 0 for name in sorted(index.files)}
    return Expected(least, index.facts, tuple(problems))


def _read_metadata(fs: S3FileSystem, uri: str, name: str = METADATA_NAME) -> Metadata:
    place = join_path(uri, name)
    return decode_metadata(read_whole(fs, place), uri=place)


def _read_index(fs: S3FileSystem, uri: str, name: str = INDEX_NAME) -> Index:
    place = join_path(uri, name)
    return parse_index(read_whole(fs, place), uri=place)


def superfluous(
    checkpoints: Sequence[CheckpointInfo],
    *,
    last: int,
    every: int | None = None,
    protect: Collection[str] = (),
) -> list[CheckpointInfo]:
    """Chooses the checkpoints that may go, oldest first.

    Raises:
        ConfigurationError: A number is out of range. It is also a ``ValueError``.
    """
    if last < 1:
        raise ConfigurationError(f"last must be at least 1, so that a checkpoint remains, got {last}")
    if every is not None and every < 1:
        raise ConfigurationError(f"every must be None or at least 1, got {every}")
    if isinstance(protect, str):
        raise ConfigurationError(f"protect must be several URIs, got {protect!r}")
    kept = {uri.rstrip("/") for uri in protect}
    by_age = sorted(checkpoints, key=lambda one: one.order)
    return [
        one
        for one in by_age[:-last]
        if one.uri.rstrip("/") not in kept
        and not (every is not None and one.step is not None and one.step % every == 0)
    ]
