"""Makes the metadata that torch plans a load with from the headers of safetensors files; pure functions."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from s3torch.dcp.archives import TensorLayout
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.plan import NOTE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.dcp.tensor_files import FileHeader, FileTensor

__all__ = ["metadata_of"]

_SHOWN = 5


def metadata_of(
    headers: Mapping[str, FileHeader], weight_map: Mapping[str, str] | None, *, where: str
) -> Metadata:
    """Puts together what torch plans a load with.

    Args:
        headers: The headers of the files by their names.
        weight_map: Which file has which tensor, where there is an index. It decides between files that have
            tensors of the same name.
        where: What the checkpoint is called in errors.

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
            storage[index] = _StorageInfo(file, tensor.start, tensor.stop - tensor.start)
            setattr(storage[index], NOTE, TensorLayout(0, tensor.dtype, tensor.sizes).note())
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
