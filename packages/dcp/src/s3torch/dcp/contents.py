"""What a listing tells of checkpoints: which are complete, and what belongs to them; pure functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch.distributed.checkpoint._hf_utils import SHARDED_DIR_NAME

from s3torch.dcp.index_files import INDEX_NAME
from s3torch.dcp.plan import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from s3torch.core import ObjectInfo

__all__ = ["METADATA_NAME", "complete_folders", "is_commit", "own_objects", "strays"]

METADATA_NAME = ".metadata"

# The objects that make a checkpoint complete: torch's metadata, or the index of Hugging Face.
_COMMITS = (METADATA_NAME, INDEX_NAME)
# The names that S3HuggingFaceStorageWriter gives, where something was there before with the id of a save.
_TENSOR_FILE = re.compile(
    rf"(?:(?:{SHARDED_DIR_NAME}/)?shard-\d{{5}}-|rank-\d{{5}}-)?model-\d{{5}}-of-\d{{5}}"
    r"(?P<id>-[0-9a-f]{16})?\.safetensors"
)


def is_commit(info: ObjectInfo) -> bool:
    """Tells whether this object makes a checkpoint complete."""
    return _split(info.key)[1] in _COMMITS


def complete_folders(objects: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """Finds the folders with a complete checkpoint, and for each the objects that make it complete.

    The parts of which whole safetensors files were made, in ``sharded``, belong to the checkpoint above them.

    Args:
        objects: A listing, with keys relative to its folder, which itself is ``""``.
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


def strays(objects: Collection[ObjectInfo], named: Collection[str]) -> list[ObjectInfo]:
    """Finds the files of saves that were not completed.

    These are ``.distcp`` files, and safetensors files with a name that our writer gives. Of the latter, those
    with a plain name may as well be a checkpoint without an index, and only count in a folder where some
    other checkpoint was completed.

    Args:
        objects: What is there.
        named: The names of all files that belong to a complete checkpoint.
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
