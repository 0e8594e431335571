"""Where the tensors of a conversion come from: each kind of checkpoint, read part by part."""

from __future__ import annotations

import math
import mmap
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3torch.dcp._filesystem import path_text
from s3torch.dcp._metadata import METADATA_NAME, CheckpointError, decode_metadata
from s3torch.dcp._reader import S3StorageReader
from s3torch.dcp.converting._places import below, download, exists, is_s3, missing, names_in, read_all
from s3torch.dcp.hugging_face._reader import S3HuggingFaceStorageReader, _FileReader
from s3torch.dcp.hugging_face._safetensors import (
    INDEX_NAME,
    LENGTH_SIZE,
    header_length,
    parse_header,
    parse_index,
)
from s3torch.dcp.loading._bands import BandPlanner, dtype_of, read_bands

if TYPE_CHECKING:
    import io
    import os
    from collections.abc import Iterable, Mapping, Sequence
    from contextlib import ExitStack

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import S3Client
    from s3torch.dcp.loading._bands import Band

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Shape:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.sizes) * self.dtype.itemsize


@dataclass
class Contents:
    """What is in a checkpoint.

    Attributes:
        tensors: The tensors by their names.
        objects: Everything else, loaded.
        paths: Where each value belongs in nested dictionaries and lists; ``None`` where nothing is nested.
    """

    tensors: Mapping[str, Shape]
    objects: Mapping[str, Any] = field(default_factory=dict)
    paths: Mapping[str, tuple[Any, ...]] | None = None


class Source(Protocol):
    """A checkpoint that is read."""

    contents: Contents

    def read(self, bands: Sequence[Band]) -> list[torch.Tensor]:
        """Reads parts of tensors; called from many threads."""
        ...


def open_source(place: str | os.PathLike[str], client: S3Client, stack: ExitStack) -> Source:
    """Finds out what kind of checkpoint is at a place, and opens it.

    Args:
        place: A URI or a path.
        client: Serves the requests.
        stack: Is given what is to be done in the end.

    Raises:
        NotFoundError: There is none.
        CheckpointError: It is damaged.
    """
    text = path_text(place).rstrip("/")
    if text.endswith(SUFFIX):
        return _Planned(_FileReader(text, client)) if is_s3(text) else _MappedFiles([Path(text)])
    names = names_in(text, client)
    tensor_files = [name for name in names if name.endswith(SUFFIX)]
    if METADATA_NAME in names and INDEX_NAME not in names:
        return _Planned(S3StorageReader(None, text, s3_client=client) if is_s3(text) else _SafeReader(text))
    if tensor_files and is_s3(text):
        return _Planned(S3HuggingFaceStorageReader(None, text, s3_client=client))
    if tensor_files:
        return _MappedFiles(_local_files(Path(text), tensor_files, client))
    if not exists(text, client):
        raise missing(text)
    if not is_s3(text):
        return _TorchFile(Path(text))
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="s3torch-"))
    copy = Path(folder, "file")
    download(text, copy, client)
    return _TorchFile(copy)


def _local_files(folder: Path, names: Iterable[str], client: S3Client) -> list[Path]:
    index = folder / INDEX_NAME
    if index.is_file():
        names = sorted(parse_index(read_all(index, client), uri=str(index)).files)
    return [folder / name for name in names]


class _SafeReader(FileSystemReader):
    """Reads a checkpoint on a disk, and runs nothing that is in it."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        place = below(self.path, METADATA_NAME)
        return decode_metadata(Path(place).read_bytes(), uri=place)


class _Planned:
    """A checkpoint that a storage reader of ``torch.distributed.checkpoint`` reads."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        metadata = reader.read_metadata()
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._stored = {
            name: one
            for name, one in metadata.state_dict_metadata.items()
            if isinstance(one, TensorStorageMetadata)
        }
        objects = [name for name in metadata.state_dict_metadata if name not in self._stored]
        self.contents = Contents(
            {name: Shape(dtype_of(one), tuple(one.size)) for name, one in self._stored.items()},
            self._load_objects(objects),
            metadata.planner_data if isinstance(metadata.planner_data, dict) else None,
        )

    def read(self, bands: Sequence[Band]) -> list[torch.Tensor]:
        return read_bands(self._reader, bands, self._stored)

    def _load_objects(self, names: Iterable[str]) -> dict[str, Any]:
        planner = _Objects([])
        none = torch.Size((0,))
        items = [
            ReadItem(LoadItemType.BYTE_IO, MetadataIndex(name), none, MetadataIndex(name), none, none)
            for name in names
        ]
        if items:
            self._reader.read_data(LoadPlan(items), planner).wait()
        return planner.objects


class _Objects(BandPlanner):
    """Takes objects, too."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__(tensors)
        self.objects: dict[str, Any] = {}

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # What our reader gives has been checked; what torch's gives is read without running it.
        self.objects[read_item.dest_index.fqn] = torch.load(value, weights_only=True)


class _Mapped:
    """Tensors in mapped files, which the system reads when they are used, and forgets again."""

    contents: Contents

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}

    def read(self, bands: Sequence[Band]) -> list[torch.Tensor]:
        return [self._part(band) for band in bands]

    def _part(self, band: Band) -> torch.Tensor:
        part = self._tensors[band.name]
        for dimension, (at, count) in enumerate(zip(band.offsets, band.sizes, strict=True)):
            part = part.narrow(dimension, at, count)
        return part.contiguous()

    def _shapes(self) -> dict[str, Shape]:
        return {name: Shape(one.dtype, tuple(one.shape)) for name, one in self._tensors.items()}


class _TorchFile(_Mapped):
    """A file of ``torch.save`` on a disk."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as exc:
            raise CheckpointError(f"{path.name} cannot be read as a file of torch.save: {exc}") from exc
        if not isinstance(state, dict):
            raise CheckpointError(f"the file has a {type(state).__name__}, not a state dict")
        flat, paths = flatten_state_dict(state)
        self._tensors = {name: one for name, one in flat.items() if isinstance(one, torch.Tensor)}
        objects = {name: one for name, one in flat.items() if name not in self._tensors}
        self.contents = Contents(self._shapes(), objects, paths)


class _MappedFiles(_Mapped):
    """Safetensors files on a disk."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        for path in paths:
            self._add(path)
        self.contents = Contents(self._shapes())

    def _add(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(LENGTH_SIZE)
            head += file.read(header_length(head, where=str(path)) - LENGTH_SIZE)
            # A copy of it is made where something is written to, which nobody does; torch warns otherwise.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        for one in parse_header(head, where=str(path), size=len(content)).tensors:
            if one.name in self._tensors:
                raise CheckpointError(
                    f"{one.name} is in several files of {path.parent}, and no index says which one to use"
                )
            self._tensors[one.name] = _at(content, one.start, Shape(one.dtype, one.sizes))


def _at(content: mmap.mmap, start: int, shape: Shape) -> torch.Tensor:
    if not shape.size:
        return torch.empty(shape.sizes, dtype=shape.dtype)
    flat = torch.frombuffer(content, dtype=torch.uint8, count=shape.size, offset=start)
    if start % shape.dtype.itemsize:
        # Files of others need not be aligned.
        flat = flat.clone()
    return flat.view(shape.dtype).view(shape.sizes)
