"""What is in a checkpoint, from its metadata alone, and in what two checkpoints differ."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from s3torch.dcp._metadata import METADATA_NAME, file_facts
from s3torch.dcp._reader import S3StorageReader
from s3torch.dcp.converting._places import missing, names_in
from s3torch.dcp.converting._sources import SUFFIX, open_source
from s3torch.dcp.converting._targets import WINDOW
from s3torch.dcp.hugging_face._reader import S3HuggingFaceStorageReader, _FileReader
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME
from s3torch.dcp.loading._bands import bands_of, windows

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import S3Client
    from s3torch.dcp._metadata import FileFacts

# Where a writer notes the checksums of the pieces of an item; equal notes mean equal bytes.
_PIECES = "piece_checksums"


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value of a checkpoint.

    Attributes:
        name: Its name.
        dtype: The type of its elements; ``None`` for what is no tensor.
        shape: Its shape.
        size: Bytes of its elements, or of the object as it is stored.
        parts: In how many parts it is stored.
        files: The names of the files that have them.
        identity: Equal for equal parts with equal checksums; ``None`` where nothing is noted.
    """

    name: str
    dtype: str | None
    shape: tuple[int, ...]
    size: int
    parts: int
    files: tuple[str, ...]
    identity: Hashable | None = None


def stored_values(path: str, client: S3Client) -> list[StoredValue]:
    """Lists what is in a checkpoint on S3, by name; no tensor is read.

    Raises:
        NotFoundError: There is none.
        CheckpointError: Its metadata is damaged.
    """
    metadata = _reader(path.rstrip("/"), client).read_metadata()
    facts = file_facts(metadata)
    places: dict[str, list[tuple[MetadataIndex, Any]]] = {}
    for index, info in (metadata.storage_data or {}).items():
        places.setdefault(index.fqn, []).append((index, info))
    found = (_described(name, metadata, places.get(name, []), facts) for name in metadata.state_dict_metadata)
    return sorted(found, key=lambda one: one.name)


def _reader(path: str, client: S3Client) -> S3StorageReader:
    if path.endswith(SUFFIX):
        return _FileReader(path, client)
    names = names_in(path, client)
    if METADATA_NAME in names and INDEX_NAME not in names:
        return S3StorageReader(None, path, s3_client=client)
    if any(name.endswith(SUFFIX) for name in names):
        return S3HuggingFaceStorageReader(None, path, s3_client=client)
    raise missing(path)


def _described(
    name: str, metadata: Metadata, places: list[tuple[MetadataIndex, Any]], facts: Mapping[str, FileFacts]
) -> StoredValue:
    stored = metadata.state_dict_metadata[name]
    files = tuple(sorted({info.relative_path for _, info in places}))
    noted = [_identity(index, info, facts) for index, info in places]
    identity = None if None in noted or not noted else frozenset(noted)
    if not isinstance(stored, TensorStorageMetadata):
        size = sum(info.length for _, info in places)
        return StoredValue(name, None, (), size, len(places), files, identity)
    dtype = stored.properties.dtype
    assert isinstance(dtype, torch.dtype)  # noqa: S101 - For the type checker.
    shape = tuple(stored.size)
    text = str(dtype).removeprefix("torch.")
    return StoredValue(
        name, text, shape, math.prod(shape) * dtype.itemsize, len(stored.chunks), files, identity
    )


def _identity(index: MetadataIndex, info: Any, facts: Mapping[str, FileFacts]) -> Hashable | None:
    """Says what bytes a part has: by the checksums of its pieces, or as a range of a file with a checksum."""
    offset = None if index.offset is None else tuple(index.offset)
    note = getattr(info, _PIECES, None)
    if isinstance(note, bytes):
        return offset, note
    known = facts.get(info.relative_path)
    if known is None or known.checksum is None:
        return None
    return offset, known.checksum, known.size, info.offset, info.length


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that is not the same in two checkpoints.

    Attributes:
        name: Its name.
        kind: Whether it is only in one of them, has another type or shape, or other bytes.
        text: What is different.
    """

    name: str
    kind: Literal["removed", "added", "shape", "content"]
    text: str


def differences(one: str, other: str, client: S3Client) -> Iterator[Difference]:
    """Yields in what a checkpoint differs from another one, by name.

    Where both note equal checksums of the same parts, nothing is read. The rest is read from both, part by
    part.

    Raises:
        NotFoundError: One of them does not exist.
        CheckpointError: One of them is damaged.
    """
    old = {value.name: value for value in stored_values(one, client)}
    new = {value.name: value for value in stored_values(other, client)}
    with ExitStack() as stack:
        compare = _Contents(one, other, client, stack)
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                yield Difference(name, "removed", _short(old[name]))
            elif name not in old:
                yield Difference(name, "added", _short(new[name]))
            elif (old[name].dtype, old[name].shape) != (new[name].dtype, new[name].shape):
                yield Difference(name, "shape", f"{_short(old[name])} -> {_short(new[name])}")
            elif not compare.are_equal(old[name], new[name]):
                yield Difference(name, "content", _short(new[name]))


def _short(value: StoredValue) -> str:
    return "object" if value.dtype is None else f"{value.dtype}{list(value.shape)}"


class _Contents:
    """Compares values by their checksums or their bytes; checkpoints are opened when bytes are needed."""

    def __init__(self, one: str, other: str, client: S3Client, stack: ExitStack) -> None:
        self._places = (one, other)
        self._client = client
        self._stack = stack
        self._sources: list[Any] = []

    def are_equal(self, old: StoredValue, value: StoredValue) -> bool:
        """Compares what the metadata notes, else reads the value from both."""
        if old.identity is not None and old.identity == value.identity:
            return True
        if not self._sources:
            self._sources = [open_source(place, self._client, self._stack) for place in self._places]
        one, other = self._sources
        if value.dtype is None:
            return bool(
                _plain(one.contents.objects[value.name]) == _plain(other.contents.objects[value.name])
            )
        dtype = getattr(torch, value.dtype)
        for window in windows(bands_of(value.name, dtype, value.shape, limit=WINDOW), limit=WINDOW):
            for a, b in zip(one.read(window), other.read(window), strict=True):
                # By bytes, since a NaN is not equal to itself.
                if not torch.equal(_bytes(a), _bytes(b)):
                    return False
        return True


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _plain(value: Any) -> Any:
    """Makes of what has tensors or arrays in it something that can be compared."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.tolist())
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value
