"""The checkpoints of a run: listed, verified, deleted, thinned out.

A checkpoint is there from the moment at which its metadata is, which is written last, and deleted first:
torch's ``.metadata``, or in the layout of Hugging Face ``model.safetensors.index.json``. So only complete
checkpoints are ever listed. (What each rank has saved for itself, with ``use_collectives=False``, has no
common metadata, and of safetensors files without an index nothing tells whether all are there; neither is
listed.) What ``enable_consolidation`` leaves in ``sharded`` belongs to the checkpoint above it. All functions
take a ``client``; ``None`` makes one from the environment.
"""

from __future__ import annotations

import re
import time
import warnings
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, TypeVar

from s3torch.core.errors import ConfigurationError, NotFoundError, S3Error
from s3torch.dcp._filesystem import S3FileSystem, checked_uri, join_path, read_whole
from s3torch.dcp._metadata import METADATA_NAME, CheckpointError, decode_metadata, file_facts, file_names
from s3torch.dcp._verifying import KnownFile, compare_files, files_of
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME, parse_index, read_headers
from s3torch.dcp.saving._commit import complete_folders, is_commit, is_own_file, orphans, own_objects

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from s3torch.core import ObjectInfo, S3Client
    from s3torch.dcp._verifying import Depth
    from s3torch.dcp.hugging_face._safetensors import Index

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

T = TypeVar("T")
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


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What a verification has found.

    Attributes:
        uri: The checkpoint.
        files: How many files it has.
        size: Their bytes, as the metadata has them.
        unchecked: Files of which the metadata or the store has no checksum; only the sizes were compared.
        problems: What is wrong, one sentence each.
    """

    uri: str
    files: int
    size: int
    unchecked: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def list_checkpoints(root: str | os.PathLike[str], *, client: S3Client | None = None) -> list[CheckpointInfo]:
    """Lists the complete checkpoints in a folder and in its folders, oldest first.

    Args:
        root: The ``s3://bucket/prefix`` of the folder.
        client: Serves the requests.
    """
    uri = checked_uri(root).rstrip("/")
    folders = complete_folders(S3FileSystem(None, client).walk_objects(uri))
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
            checksums that S3 has stored, with a HEAD for each file; ``"bytes"`` reads everything, and names
            the tensors that are damaged. Of a checkpoint that another library has written there are no
            checksums to compare with; of one with an index the headers of its files are read, which tell
            their sizes.
        client: Serves the requests.

    Raises:
        NotFoundError: There is no checkpoint.
        CheckpointError: Its metadata is damaged.
    """
    if depth not in {"sizes", "checksums", "bytes"}:
        raise ConfigurationError(f"depth must be sizes, checksums or bytes, got {depth!r}")
    uri, fs = checked_uri(path), S3FileSystem(None, client)
    objects = {info.key: info for info in fs.walk_objects(uri)}
    sizes = {name: info.size for name, info in objects.items()}
    files: dict[str, KnownFile] = {}
    problems: list[str] = []
    for commit in _commits_in(uri, objects.values()):
        if commit.key == INDEX_NAME:
            index = _read(fs, uri, INDEX_NAME, parse_index)
            files |= {
                name: KnownFile(sizes.get(name, 0), index.facts.get(name)) for name in sorted(index.files)
            }
            problems += _unlike_index(fs, uri, index, objects)
        else:
            metadata = _read(fs, uri, METADATA_NAME, decode_metadata)
            files |= files_of(metadata, file_facts(metadata))
    wrong, unchecked = compare_files(fs.client, uri, files, sizes, depth)
    size = sum(known.size for known in files.values())
    return CheckpointReport(uri, len(files), size, tuple(unchecked), (*problems, *wrong))


def delete_checkpoint(path: str | os.PathLike[str], *, client: S3Client | None = None) -> None:
    """Deletes a checkpoint: its metadata first, so that it is never half visible, then the files it names.

    With them go files in the same folder that saves before this one left. Everything else stays: logs and
    other objects, checkpoints in folders below, and what is newer, as the files of a save that is going on.

    Raises:
        NotFoundError: There is no checkpoint.
        S3Error: Not all could be deleted; calling ``sweep_checkpoint`` later removes the rest.
    """
    uri, fs = checked_uri(path), S3FileSystem(None, client)
    objects = own_objects(fs.walk_objects(uri))
    _commits_in(uri, objects)
    commits = [info for info in objects if is_commit(info)]
    try:
        going = _files_to_delete(fs, uri, objects, commits)
    except CheckpointError as exc:
        going = []
        warnings.warn(
            f"{exc}. Only the metadata is deleted; sweep_checkpoint removes the files", stacklevel=2
        )
    # Of what was consolidated the index, and then the metadata of the parts.
    for info in sorted(commits, key=lambda info: info.key.count("/")):
        fs.rm_file(join_path(uri, info.key))
    fs.rm_files(join_path(uri, name) for name in going)


def _files_to_delete(
    fs: S3FileSystem, uri: str, objects: Collection[ObjectInfo], commits: Collection[ObjectInfo]
) -> list[str]:
    """Chooses the files of a checkpoint, and what old saves to the same folder have left."""
    named = set(filter(is_own_file, _named(fs, uri, commits)))
    others = set(_named(fs, uri, [info for info in objects if not is_commit(info)]))
    committed = min(info.last_modified for info in commits)
    left = {info.key for info in orphans(objects, named | others) if info.last_modified <= committed}
    going = named & {info.key for info in objects} | {key for key in left if "/" not in key}
    return sorted(going - others)


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

    A checkpoint with others in folders below it, as an old one in ``root`` itself, stays and is not counted.

    Args:
        root: The folder with the checkpoints.
        last: How many of the newest are kept, at least 1.
        every: Keeps those whose step, the last number in their name, is a multiple of this, too.
        protect: URIs of checkpoints that are kept in any case: name the one that the run has resumed from.
        dry_run: Deletes nothing.
        client: Serves the requests.
    """
    fs = S3FileSystem(None, client)
    chosen = _superfluous(list_checkpoints(root, client=fs.client), last=last, every=every, protect=protect)
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
    uri, fs = checked_uri(path), S3FileSystem(None, client)
    limit = time.time() - older_than
    objects = own_objects(fs.walk_objects(uri))
    named = set(_named(fs, uri, objects))
    old = [join_path(uri, info.key) for info in orphans(objects, named) if info.last_modified < limit]
    fs.rm_files(old)
    return old


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
            files = _read(fs, uri, info.key, parse_index).files
        elif name.endswith(METADATA_NAME):
            files = file_names(_read(fs, uri, info.key, decode_metadata))
        else:
            continue
        yield from (f"{folder}{slash}{file}" for file in files)


def _unlike_index(
    fs: S3FileSystem, uri: str, index: Index, objects: Mapping[str, ObjectInfo]
) -> Iterator[str]:
    """Yields what is wrong with files of which the index notes nothing, by their headers."""
    present: dict[str, set[str]] = {}
    for name in sorted(index.files - index.facts.keys()):
        if name not in objects:
            continue
        place = join_path(uri, name)
        try:
            header = read_headers({place: fs.open_ranges(place, object_info=objects[name])})[place]
        except S3Error as exc:
            yield str(exc)
        else:
            present[name] = {tensor.name for tensor in header.tensors}
    for tensor, file in index.weight_map.items():
        if file in present and tensor not in present[file]:
            yield f"{file} does not have {tensor}, which the index says it has"


def _read(fs: S3FileSystem, uri: str, name: str, parse: Callable[..., T]) -> T:
    place = join_path(uri, name)
    return parse(read_whole(fs, place), uri=place)


def _superfluous(
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
    above = {parent for one in checkpoints for parent in accumulate(one.uri.split("/")[:-1], "{}/{}".format)}
    leaves = [one for one in checkpoints if one.uri.rstrip("/") not in above]
    by_age = sorted(leaves, key=lambda one: one.order)
    return [
        one
        for one in by_age[:-last]
        if one.uri.rstrip("/") not in kept
        and not (every is not None and one.step is not None and one.step % every == 0)
    ]
