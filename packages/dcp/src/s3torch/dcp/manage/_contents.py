"""What belongs to the checkpoints of a listing, and whether it is what their metadata says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch.distributed.checkpoint._hf_utils import SHARDED_DIR_NAME

from s3torch.core import parse_s3_uri
from s3torch.core.errors import ConfigurationError, S3Error
from s3torch.core.ranges import MIB
from s3torch.core.transfer import PartedChecksum, checksum, checksum_type
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import file_facts
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME
from s3torch.dcp.saving._plan import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import ObjectInfo, S3Client
    from s3torch.dcp._metadata import FileFacts

METADATA_NAME = ".metadata"
# The objects that make a checkpoint complete: torch's metadata, or the index of Hugging Face.
_COMMITS = (METADATA_NAME, INDEX_NAME)
# The names that S3HuggingFaceStorageWriter gives, where something was there before with the id of a save.
_TENSOR_FILE = re.compile(
    rf"(?:(?:{SHARDED_DIR_NAME}/)?shard-\d{{5}}-|rank-\d{{5}}-)?model-\d{{5}}-of-\d{{5}}"
    r"(?P<id>-[0-9a-f]{16})?\.safetensors"
)
Depth = Literal["sizes", "checksums", "bytes"]
_BUFFER = 16 * MIB


def is_commit(info: ObjectInfo) -> bool:
    """Whether this object makes a checkpoint complete."""
    return _split(info.key)[1] in _COMMITS


def complete_folders(objects: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """Finds the folders with a complete checkpoint, and for each the objects that make it complete.

    The parts of which whole safetensors files were made, in ``sharded``, belong to the checkpoint above them.
    """
    found: dict[str, list[ObjectInfo]] = {}
    for info in filter(is_commit, objects):
        found.setdefault(_split(info.key)[0], []).append(info)
    consolidated = {folder for folder, commits in found.items() if any(_is_index(one) for one in commits)}
    return {
        folder: commits
        for folder, commits in found.items()
        if _split(folder)[1] != SHARDED_DIR_NAME or _split(folder)[0] not in consolidated
    }


def own_objects(objects: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """Leaves out of a listing what belongs to other checkpoints, in folders below."""
    everything = list(objects)
    others = tuple(f"{folder}/" for folder in complete_folders(everything) if folder)
    return [info for info in everything if not info.key.startswith(others)] if others else everything


def orphans(objects: Collection[ObjectInfo], named: Collection[str]) -> list[ObjectInfo]:
    """Finds the files of saves that were not completed.

    These are ``.distcp`` files, and safetensors files with a name that our writer gives. Of the latter, those
    with a plain name may as well be a checkpoint without an index, and only count in a folder where some
    other checkpoint was completed.
    """
    complete = {_split(info.key)[0] for info in objects if is_commit(info)}
    return [info for info in objects if info.key not in named and _is_ours(info.key, in_complete=complete)]


def _is_ours(key: str, *, in_complete: Collection[str]) -> bool:
    if key.endswith(SUFFIX):
        return True
    match = _TENSOR_FILE.fullmatch(key)
    return match is not None and (match["id"] is not None or _split(key)[0] in in_complete)


def _is_index(info: ObjectInfo) -> bool:
    return _split(info.key)[1] == INDEX_NAME


def _split(key: str) -> tuple[str, str]:
    folder, _, name = key.rpartition("/")
    return folder, name


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


@dataclass(frozen=True, slots=True)
class Expected:
    """What the files of a checkpoint should be.

    Attributes:
        least: How long each must be at least, by the names.
        facts: What their writer has noted.
        problems: What is wrong already.
    """

    least: Mapping[str, int]
    facts: Mapping[str, FileFacts]
    problems: tuple[str, ...] = ()

    def __or__(self, other: Expected) -> Expected:
        """Returns what two descriptions of one checkpoint say."""
        return Expected(
            {**self.least, **other.least}, {**self.facts, **other.facts}, self.problems + other.problems
        )


def expected_of(metadata: Metadata) -> Expected:
    """Returns what the metadata says of the files: each ends where its last item does, at least."""
    least: dict[str, int] = {}
    for info in (metadata.storage_data or {}).values():
        end = info.offset + info.length
        least[info.relative_path] = max(end, least.get(info.relative_path, 0))
    return Expected(least, file_facts(metadata))


def check_files(
    client: S3Client, uri: str, expected: Expected, sizes: Mapping[str, int], depth: Depth
) -> CheckpointReport:
    """Checks all files of a checkpoint."""
    if depth not in {"sizes", "checksums", "bytes"}:
        raise ConfigurationError(f"depth must be sizes, checksums or bytes, got {depth!r}")
    facts, least = expected.facts, expected.least
    problems = list(expected.problems)
    unchecked: list[str] = []
    for name, size in least.items():
        known = facts.get(name)
        wrong = list(_wrong_size(name, sizes.get(name), known, size))
        problems += wrong
        if wrong or depth == "sizes":
            continue
        try:
            found = _checksum(client, join_path(uri, name), known, depth)
        except S3Error as exc:
            problems.append(f"{name} cannot be read: {exc}")
            continue
        if known is None or known.checksum is None or found is None:
            unchecked.append(name)
        elif found != known.checksum[1]:
            problems.append(f"{name} has the {known.checksum[0]} {found}, not {known.checksum[1]}")
    size = sum(facts[name].size if name in facts else least[name] for name in least)
    return CheckpointReport(uri, len(least), size, tuple(unchecked), tuple(problems))


def _wrong_size(name: str, found: int | None, known: FileFacts | None, least: int) -> Iterator[str]:
    if found is None:
        yield f"{name} is missing"
    elif known is not None and found != known.size:
        yield f"{name} has {found} bytes, not {known.size}"
    elif found < least:
        yield f"{name} has {found} bytes, but its items end at {least}"


def _checksum(client: S3Client, uri: str, known: FileFacts | None, depth: Depth) -> str | None:
    if known is None or known.checksum is None:
        return None
    bucket, key = parse_s3_uri(uri)
    algorithm, stored = known.checksum
    if depth == "checksums":
        return client.head_object(bucket, key).checksums.get(algorithm)
    if "-" in stored:
        # A checksum of the parts' checksums, and nothing tells where the parts were.
        return None
    if checksum_type(algorithm) == "COMPOSITE":
        with client.get_object(bucket, key) as reader:
            return _value(checksum(algorithm, memoryview(reader.read())))
    parts = PartedChecksum(algorithm)
    buffer = memoryview(bytearray(min(_BUFFER, max(1, known.size))))
    with client.get_object(bucket, key) as reader:
        while count := reader.readinto(buffer):
            parts.add(buffer[:count])
    return _value(parts.value)


def _value(computed: tuple[str, str] | None) -> str | None:
    return None if computed is None else computed[1]
