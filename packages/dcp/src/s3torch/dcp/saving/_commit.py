"""How a checkpoint becomes visible: by one atomic PUT, in the place of a predecessor that is known.

The metadata of a checkpoint names all its files, and no file of a visible checkpoint is ever written over. So
at any moment there is the old checkpoint or the new one, whole. When two jobs save to one path, each commit
takes the place of one that it has seen, and only the files of that one are removed. What a listing shows is
told apart by the same rule.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from torch.distributed.checkpoint._hf_utils import SHARDED_DIR_NAME

from s3torch.core.errors import ConflictError, NotFoundError, PreconditionFailedError, S3Error
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import METADATA_NAME
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME
from s3torch.dcp.saving._plan import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from s3torch.core import ObjectInfo, PutOptions
    from s3torch.dcp._filesystem import S3FileSystem

# The objects that make a checkpoint complete: torch's metadata, or the index of Hugging Face.
_COMMITS = (METADATA_NAME, INDEX_NAME)
# The names that S3HuggingFaceStorageWriter gives, where something was there before with the id of a save.
_TENSOR_FILE = re.compile(
    rf"(?:(?:{SHARDED_DIR_NAME}/)?shard-\d{{5}}-|rank-\d{{5}}-)?model-\d{{5}}-of-\d{{5}}"
    r"(?P<id>-[0-9a-f]{16})?\.safetensors"
)
# What torch's own writer says.
EXISTS = "Checkpoint already exists and self.overwrite=False."
_PAGE = 1000
_ATTEMPTS = 10
_NOT_IMPLEMENTED = 501


@dataclass(frozen=True, slots=True)
class ExistingFiles:
    """What was at the path of a checkpoint before the save.

    Attributes:
        committed: There is a checkpoint.
        taken: There are files with the names that this save would use, of a save that was not completed.
    """

    committed: bool
    taken: bool

    @property
    def is_fresh(self) -> bool:
        """Whether files can have their plain names."""
        return not self.committed and not self.taken


def is_refused(error: S3Error) -> bool:
    """Whether a conditional PUT failed for its condition, or because the store knows no conditions."""
    return isinstance(error, PreconditionFailedError | ConflictError) or error.status == _NOT_IMPLEMENTED


@dataclass(frozen=True, slots=True)
class _Stored:
    """The metadata of a checkpoint as it is stored."""

    etag: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Commit:
    """The PUT that makes a checkpoint visible."""

    fs: S3FileSystem
    path: str
    name: str
    options: PutOptions
    names_in: Callable[[bytes], set[str]]

    def find_existing(self, *, prefixes: Iterable[str], suffix: str, overwrite: bool) -> ExistingFiles:
        """Lists the path of the checkpoint, with one request in all usual cases.

        Raises:
            RuntimeError: There is one, and ``overwrite`` is false.
        """
        names = list(islice(self.fs.walk(self.path), _PAGE))
        committed = self.name in names
        if not committed and len(names) == _PAGE:
            committed = self.fs.exists(join_path(self.path, self.name))
        if committed and not overwrite:
            raise RuntimeError(EXISTS)
        beginnings = tuple(prefix.lstrip("/") for prefix in prefixes)
        taken = any(name.startswith(beginnings) and name.endswith(suffix) for name in names)
        return ExistingFiles(committed, taken)

    def run(self, body: bytes, *, overwrite: bool, is_new: bool, kept: Collection[str]) -> None:
        """Commits, and removes the files of the old checkpoint that the new one does not have.

        Files that cannot be removed stay, with a warning: the new checkpoint is whole without that.

        With ``is_new`` there was nothing when the save began, so nothing is read first. ``kept`` are the
        names of the files of the new checkpoint.

        Raises:
            RuntimeError: Something is there, and ``overwrite`` is false.
        """
        if not overwrite:
            if not self._create(body):
                raise RuntimeError(EXISTS)
            return
        previous = self._replace(body, None if is_new else self._read())
        if previous is None:
            return
        try:
            replaced = self.names_in(previous.body) - set(kept)
            self.fs.rm_files(join_path(self.path, name) for name in sorted(replaced))
        except S3Error as exc:
            warnings.warn(
                f"the new checkpoint in {self.path} is complete, but files of the old one were left: {exc}",
                stacklevel=2,
            )

    def _create(self, body: bytes) -> bool:
        """Commits where nothing is; returns ``False`` where another job was first."""
        try:
            self._put(body, replace(self.options, if_none_match="*"))
        except (PreconditionFailedError, ConflictError):
            return self._is_ours(self._read(), body)
        return True

    def _replace(self, body: bytes, previous: _Stored | None) -> _Stored | None:
        """Commits in the place of what is there, and returns that."""
        for _ in range(_ATTEMPTS):
            condition = {"if_match": previous.etag} if previous is not None else {"if_none_match": "*"}
            try:
                self._put(body, replace(self.options, **condition))
            except S3Error as exc:
                if not is_refused(exc) and not (previous is not None and isinstance(exc, NotFoundError)):
                    raise
                if exc.status == _NOT_IMPLEMENTED:
                    break
                present = self._read()
                if self._is_ours(present, body):
                    return previous
                if present == previous and isinstance(exc, PreconditionFailedError):
                    # The condition does hold: the store does not know it.
                    break
                previous = present
            else:
                return previous
        self._put(body, self.options)
        return previous

    @staticmethod
    def _is_ours(present: _Stored | None, body: bytes) -> bool:
        """Whether a refused commit was ambiguous: the PUT succeeded, its answer was lost, it was repeated."""
        return present is not None and present.body == body

    def _read(self) -> _Stored | None:
        try:
            with self.fs.create_stream(join_path(self.path, self.name), "rb") as stream:
                return _Stored(body=bytes(stream.read()), etag=getattr(stream, "etag", None))
        except NotFoundError:
            return None

    def _put(self, body: bytes, options: PutOptions) -> None:
        with self.fs.create_stream(join_path(self.path, self.name), "wb", put_options=options) as stream:
            stream.write(body)


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
    consolidated = {
        folder for folder, commits in found.items() if any(one.key.endswith(INDEX_NAME) for one in commits)
    }
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


def _split(key: str) -> tuple[str, str]:
    folder, _, name = key.rpartition("/")
    return folder, name
