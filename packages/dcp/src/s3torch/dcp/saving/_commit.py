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
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from torch.distributed.checkpoint._hf_utils import SHARDED_DIR_NAME
from torch.distributed.checkpoint._hf_utils import SUFFIX as TENSOR_SUFFIX

from s3torch.core import parse_s3_uri
from s3torch.core.errors import ConflictError, NotFoundError, PreconditionFailedError, S3Error
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import METADATA_NAME
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME
from s3torch.dcp.saving._plan import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from s3torch.core import ObjectInfo, PutOptions, S3Client
    from s3torch.dcp._filesystem import S3FileSystem

# The objects that make a checkpoint complete: torch's metadata, or the index of Hugging Face.
_COMMITS = (METADATA_NAME, INDEX_NAME)
# The names that torch gives, and S3StorageWriter with the id of a save.
_DATA_FILE = re.compile(rf"[^/]*\d(?:-[0-9a-f]{{16}})?{re.escape(SUFFIX)}")
# The names that S3HuggingFaceStorageWriter gives, with the id of a save; releases before had it only where
# something was there already.
_TENSOR_FILE = re.compile(
    rf"(?:(?:{SHARDED_DIR_NAME}/)?shard-\d{{5}}-|rank-\d{{5}}-)?model-\d{{5}}-of-\d{{5}}"
    r"(?P<id>-[0-9a-f]{16})?\.safetensors"
)
# What torch's own writer says.
EXISTS = "Checkpoint already exists and self.overwrite=False."
_ATTEMPTS = 10
# The buckets whose stores were asked whether they ignore conditions, by the client.
_TRIED: WeakKeyDictionary[S3Client, set[str]] = WeakKeyDictionary()
_NOT_IMPLEMENTED = 501


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

    def exists(self, *, overwrite: bool) -> bool:
        """Whether there is a checkpoint already.

        Raises:
            RuntimeError: There is one, and ``overwrite`` is false.
        """
        found = self.fs.exists(join_path(self.path, self.name))
        if found and not overwrite:
            raise RuntimeError(EXISTS)
        return found

    def run(self, body: bytes, *, overwrite: bool, is_new: bool) -> None:
        """Commits, and removes the files of the old checkpoint, of which the new one has none.

        Files that cannot be removed stay, with a warning: the new checkpoint is whole without that.
        With ``is_new`` there was nothing when the save began, so nothing is read first.

        Raises:
            RuntimeError: Something is there, and ``overwrite`` is false.
        """
        if not overwrite:
            self._create(body)
            return
        previous = self._replace(body, None if is_new else self._read())
        if previous is None or previous.body == body:
            return
        try:
            self._remove(self.names_in(previous.body))
        except S3Error as exc:
            warnings.warn(
                f"the new checkpoint in {self.path} is complete, but files of the old one are left: {exc}",
                stacklevel=2,
            )

    def _remove(self, names: set[str]) -> None:
        """Removes files of the old checkpoint; of what its metadata names, only what can be its own."""
        if any("/" in name for name in names):
            # Other checkpoints may be in folders below.
            names &= {info.key for info in own_objects(self.fs.walk_objects(self.path))}
        own = sorted(name for name in names if is_own_file(name, strict=True))
        self.fs.rm_files(join_path(self.path, name) for name in own)

    def _create(self, body: bytes) -> None:
        """Commits where nothing is."""
        try:
            self._put(body, replace(self.options, if_none_match="*"))
        except (PreconditionFailedError, ConflictError) as exc:
            present = self._read()
            if present is None:
                raise
            if not self._is_ours(present, body):
                raise RuntimeError(EXISTS) from exc
        except S3Error as exc:
            if not _knows_no_conditions(exc):
                raise
            self.exists(overwrite=False)
            self._put_anyway(body, "refuses")
        else:
            self._try_condition(body)

    def _try_condition(self, body: bytes) -> None:
        """Finds out, once, whether the store ignores conditions: it may store the same bytes once more."""
        bucket = parse_s3_uri(self.path).bucket
        tried = _TRIED.setdefault(self.fs.client, set())
        if bucket in tried:
            return
        tried.add(bucket)
        try:
            self._put(body, replace(self.options, if_none_match="*"))
        except S3Error:
            return
        _warn_of_conditions(bucket, "ignores")

    def _replace(self, body: bytes, previous: _Stored | None) -> _Stored | None:
        """Commits in the place of what is there, and returns that."""
        what = "does not settle"
        for _ in range(_ATTEMPTS):
            condition = {"if_match": previous.etag} if previous is not None else {"if_none_match": "*"}
            try:
                self._put(body, replace(self.options, **condition))
            except (PreconditionFailedError, ConflictError, NotFoundError) as exc:
                if previous is None and isinstance(exc, NotFoundError):
                    raise
                present = self._read()
                if self._is_ours(present, body):
                    return previous
                if present == previous and isinstance(exc, PreconditionFailedError):
                    # The condition does hold.
                    what = "does not understand"
                    break
                previous = present
            except S3Error as exc:
                if not _knows_no_conditions(exc):
                    raise
                what = "refuses"
                break
            else:
                return previous
        self._put_anyway(body, what)
        return previous

    def _put_anyway(self, body: bytes, what: str) -> None:
        self._put(body, self.options)
        _warn_of_conditions(parse_s3_uri(self.path).bucket, what)

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


def _warn_of_conditions(bucket: str, what: str) -> None:
    # Python shows the same text once.
    warnings.warn(
        f"the store of the bucket {bucket} {what} conditional PUTs. Checkpoints are whole in any case, but "
        "of two jobs that save to one path at the same moment, one may replace the other's without an error",
        stacklevel=2,
    )


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


def is_own_file(name: str, *, strict: bool = False) -> bool:
    """Whether a file that metadata or an index names can be the checkpoint's own, by its name.

    Safetensors files of others have any name, but are in the folder of their index; with ``strict`` only
    those count that our writer may have written.
    """
    folder, last = _split(name)
    if _TENSOR_FILE.fullmatch(name) or (last.endswith(TENSOR_SUFFIX) and not folder and not strict):
        return True
    return bool(_DATA_FILE.fullmatch(last)) and not {"", ".", ".."} & set(name.split("/"))


def orphans(objects: Collection[ObjectInfo], named: Collection[str]) -> list[ObjectInfo]:
    """Finds the files of saves that were not completed.

    These are ``.distcp`` files, and safetensors files with a name that our writer gives. Of the latter, those
    with a plain name may as well be a checkpoint without an index, and only count in a folder where some
    other checkpoint was completed.
    """
    complete = {_split(info.key)[0] for info in objects if is_commit(info)}
    return [info for info in objects if info.key not in named and _is_ours(info.key, in_complete=complete)]


def _is_ours(key: str, *, in_complete: Collection[str]) -> bool:
    folder, name = _split(key)
    if _DATA_FILE.fullmatch(name):
        return True
    match = _TENSOR_FILE.fullmatch(key)
    return match is not None and (match["id"] is not None or folder in in_complete)


def _knows_no_conditions(error: S3Error) -> bool:
    return error.status == _NOT_IMPLEMENTED or error.code == "NotImplemented"


def _split(key: str) -> tuple[str, str]:
    folder, _, name = key.rpartition("/")
    return folder, name
