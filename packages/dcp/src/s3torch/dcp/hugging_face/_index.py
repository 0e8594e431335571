"""What the index and the headers of a checkpoint in the layout of Hugging Face tell; pure functions."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY, _metadata_fn
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from s3torch.core.errors import ConfigurationError
from s3torch.dcp._archives import TensorLayout, storage_entry
from s3torch.dcp._errors import CheckpointError
from s3torch.dcp._metadata import FileFacts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.checkpoint.filesystem import _StorageInfo

    from s3torch.dcp.hugging_face._safetensors import FileHeader, FileTensor

INDEX_NAME = _metadata_fn
# What we add to the metadata of an index; others have entries of their own there, too.
_NOTE = "s3torch_files"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Index:
    """What an index tells.

    Attributes:
        weight_map: The name of the file of each tensor.
        facts: Sizes and checksums of the files by their names, where our writer has noted them.
    """

    weight_map: Mapping[str, str]
    facts: Mapping[str, FileFacts] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """The names of all files."""
        return set(self.weight_map.values())


def file_count(numbers: Mapping[str, int] | None) -> int:
    """Returns how many files there are, from the number of the file for each tensor; ``None`` for one.

    Raises:
        ConfigurationError: A number is out of range. It is also a ``ValueError``.
    """
    found = set((numbers or {}).values())
    for number in found:
        if not isinstance(number, int) or number < 1:
            raise ConfigurationError(f"the numbers of files begin with 1, got {number!r}")
    return max(found, default=1)


def make_index(index: Index, *, total_size: int) -> bytes:
    """Returns the bytes of an index."""
    metadata: dict[str, Any] = {"total_size": total_size}
    if index.facts:
        metadata[_NOTE] = {name: facts.note() for name, facts in sorted(index.facts.items())}
    content = {"metadata": metadata, "weight_map": dict(sorted(index.weight_map.items()))}
    return json.dumps(content, indent=2).encode()


def parse_index(body: bytes, *, uri: str) -> Index:
    """Reads an index.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        content = json.loads(body)
        weight_map = {str(name): str(file) for name, file in content["weight_map"].items()}
        noted = (content.get("metadata") or {}).get(_NOTE) or {}
        facts = {str(name): FileFacts.of(entry) for name, entry in noted.items()}
    except (AttributeError, LookupError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{uri} is damaged: {exc!r}") from exc
    return Index(weight_map, facts)


def metadata_of(
    headers: Mapping[str, FileHeader], weight_map: Mapping[str, str] | None, *, where: str
) -> Metadata:
    """Puts together what torch plans a load with, from the headers of the files by their names.

    Where there is an index, its map decides between files that have tensors of the same name.

    Raises:
        CheckpointError: Tensors are missing, or parts of them, or there are several and nothing tells which
            one holds.
    """
    tensors: dict[str, TensorStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for file, header in headers.items():
        offsets_of = _offsets(header, file)
        for tensor in header.tensors:
            if weight_map is not None and weight_map.get(tensor.name, file) != file:
                continue
            offsets = torch.Size(offsets_of.get(tensor.name) or [0] * len(tensor.sizes))
            index = MetadataIndex(tensor.name, offsets)
            if index in storage:
                raise CheckpointError(
                    f"{tensor.name} is in {storage[index].relative_path} and in {file} of {where}, and no "
                    "index tells which one holds"
                )
            if len(offsets) != len(tensor.sizes):
                raise CheckpointError(
                    f"the header of {file} in {where} is damaged: {tensor.name} at {offsets}"
                )
            _add_chunk(tensors, tensor, offsets)
            layout = TensorLayout(0, tensor.dtype, tensor.sizes)
            storage[index] = storage_entry(file, tensor.start, tensor.stop - tensor.start, layout)
    _check_whole(tensors, weight_map or {}, where)
    return Metadata(tensors, storage_data=storage)  # type: ignore[arg-type] # A dict is invariant.


def _offsets(header: FileHeader, file: str) -> dict[str, list[int]]:
    """Reads where in the whole tensors the parts in a file belong."""
    try:
        noted = json.loads(header.metadata.get(CUSTOM_METADATA_KEY) or "{}")
        return {name: list(map(int, entry[SAVED_OFFSETS_KEY])) for name, entry in noted.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(f"the header of {file} is damaged: {exc!r}") from exc


def _add_chunk(tensors: dict[str, TensorStorageMetadata], tensor: FileTensor, offsets: torch.Size) -> None:
    chunk = ChunkStorageMetadata(offsets=offsets, sizes=torch.Size(tensor.sizes))
    end = torch.Size(at + size for at, size in zip(offsets, tensor.sizes, strict=True))
    known = tensors.get(tensor.name)
    if known is None:
        tensors[tensor.name] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), end, [chunk])
        return
    if known.properties.dtype != tensor.dtype or len(known.size) != len(end):
        raise CheckpointError(f"the parts of {tensor.name} are not parts of one tensor")
    known.chunks.append(chunk)
    known.size = torch.Size(max(pair) for pair in zip(known.size, end, strict=True))


def _check_whole(
    tensors: Mapping[str, TensorStorageMetadata], weight_map: Mapping[str, str], where: str
) -> None:
    """A part that nobody has written would be left as it is in the target, without a word."""
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise CheckpointError(f"{where} lacks tensors that its index names: {lost[:_SHOWN]}")
    for name, tensor in tensors.items():
        there = sum(math.prod(chunk.sizes) for chunk in tensor.chunks)
        if there != math.prod(tensor.size):
            raise CheckpointError(
                f"{where} has {there} of the {math.prod(tensor.size)} elements of {name}; a file is missing, "
                "or there is one too many"
            )
