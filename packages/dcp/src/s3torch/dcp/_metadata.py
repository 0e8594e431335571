"""The metadata of a checkpoint: read without running code, shared between ranks, with facts of its files."""

from __future__ import annotations

import io
import pathlib
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem as torch_filesystem
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from s3torch.core.errors import S3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch.distributed import ProcessGroup

T = TypeVar("T")
METADATA_NAME = ".metadata"
# The attribute of torch's own storage entries with the facts of the file.
_NOTE = "file_facts"
_NAMES = {
    torch_metadata.__name__: {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    torch_filesystem.__name__: {"_StorageInfo"},
    "torch.distributed.checkpoint._fsspec_filesystem": {"_StorageInfo"},
    "torch": {"Size", "device"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "builtins": {"bytearray", "complex", "frozenset", "range", "set", "slice"},
}
_PATHS = {"PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"}
# Where these classes live depends on the release of Python.
_PATH_MODULES = {"pathlib", "pathlib._local", "pathlib._abc"}
_VALUES = (torch.dtype, torch.layout, torch.memory_format)


class CheckpointError(S3Error):
    """The checkpoint is not whole, or does not have what the state dict asks for.

    A save raises it instead of committing a checkpoint with holes; a load raises it instead of returning
    wrong tensors.
    """


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the writer of a file knows of it: its bytes, and algorithm and checksum where there is one."""

    size: int
    checksum: tuple[str, str] | None = None

    @classmethod
    def of(cls, note: Mapping[str, Any]) -> FileFacts:
        """Reads what ``note`` has returned, perhaps from JSON."""
        checksum = note["checksum"]
        return cls(int(note["size"]), (str(checksum[0]), str(checksum[1])) if checksum else None)

    def note(self) -> dict[str, Any]:
        """Returns what the metadata of a checkpoint says of them."""
        return {"size": self.size, "checksum": self.checksum}


def note_facts(info: Any, facts: FileFacts) -> None:
    """Notes the facts of a file at the place of one of its items, where stock torch ignores them."""
    setattr(info, _NOTE, facts.note())


def decode_metadata(body: bytes, *, uri: str, safe_globals: Iterable[Any] = ()) -> Metadata:
    """Reads metadata, and runs nothing that is in it.

    ``safe_globals`` may be in it beyond what torch writes and ``torch.serialization.add_safe_globals`` has.

    Raises:
        CheckpointError: It is damaged, or has something that is not allowed.
    """
    try:
        metadata = _MetadataUnpickler(body, uri, safe_globals).load()
    except CheckpointError:
        raise
    except Exception as exc:
        raise CheckpointError(
            f"{uri} is damaged, it cannot be read as the metadata of a checkpoint: {exc}"
        ) from exc
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{uri} is not the metadata of a checkpoint, but a {type(metadata).__name__}")
    if getattr(metadata, "storage_meta", None) is None:
        # Old releases of torch do not write it.
        metadata.storage_meta = StorageMeta()
    return metadata


def file_facts(metadata: Metadata) -> dict[str, FileFacts]:
    """Returns what the metadata notes of the files, by their names; nothing when another library wrote it."""
    return {
        info.relative_path: FileFacts.of(note)
        for info in (metadata.storage_data or {}).values()
        if isinstance(note := getattr(info, _NOTE, None), dict)
    }


def file_names(metadata: Metadata) -> set[str]:
    """Returns the names of all files of a checkpoint, relative to it."""
    return {str(info.relative_path) for info in (metadata.storage_data or {}).values()}


class _MetadataUnpickler(pickle.Unpickler):
    """Builds what torch writes into metadata and nothing else."""

    def __init__(self, body: bytes, uri: str, safe_globals: Iterable[Any]) -> None:
        super().__init__(io.BytesIO(body))
        self._uri = uri
        self._more = dict(map(_named, [*torch.serialization.get_safe_globals(), *safe_globals]))

    def find_class(self, module: str, name: str, /) -> Any:
        if name in _NAMES.get(module, ()):
            return super().find_class(module, name)
        if module in _PATH_MODULES and name in _PATHS:
            return getattr(pathlib, name)
        if module == "torch" and isinstance(value := getattr(torch, name, None), _VALUES):
            return value
        if f"{module}.{name}" in self._more:
            return self._more[f"{module}.{name}"]
        raise CheckpointError(
            f"{self._uri} contains {module}.{name}, which is not known to be harmless, so it was not read; "
            "if you trust who wrote it, give the class to the reader as safe_globals=[...] or to "
            "torch.serialization.add_safe_globals"
        )


def _named(known: Any) -> tuple[str, Any]:
    if isinstance(known, tuple):
        return known[1], known[0]
    return f"{known.__module__}.{known.__qualname__}", known


def shared(fetch: Callable[[], T], group: ProcessGroup | None) -> T:
    """Returns what the first rank of the group has fetched, on all of its ranks.

    All of them must call; without a group the caller is alone. An error of one rank is raised on all.
    """
    if group is None:
        return fetch()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if dist.get_rank(group) == 0:
        outcome, error = _outcome(fetch)
    dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    found, failure = outcome
    if failure is not None:
        raise error or failure
    return cast("T", found)


def everywhere(work: Callable[[], T], group: ProcessGroup | None) -> list[T]:
    """Does something on each rank of the group, as ``shared``; returns the results of all on all of them."""
    if group is None:
        return [work()]
    outcome, error = _outcome(work)
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group=group)
    failures = [failure for _, failure in outcomes if failure is not None]
    if failures:
        raise error or failures[0]
    return [found for found, _ in outcomes]


def _outcome(work: Callable[[], Any]) -> tuple[list[Any], Exception | None]:
    """Returns what other ranks are told, a result and an error, and the error as it was raised."""
    try:
        return [work(), None], None
    except Exception as exc:  # noqa: BLE001 - The other ranks would wait for ever.
        return [None, _portable(exc)], exc


def _portable(error: Exception) -> S3Error:
    """Returns an error that can be pickled, as those of S3 can."""
    return error if isinstance(error, S3Error) else CheckpointError(f"another rank: {error!r}")
