"""Reads checkpoints in the layout of Hugging Face, and plain state dicts in safetensors files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY, SUFFIX
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from s3torch.core import S3Client, S3ReaderConstructor
from s3torch.core.errors import NotFoundError
from s3torch.core.transfer import read_again
from s3torch.dcp._filesystem import checked_uri, join_path, read_whole
from s3torch.dcp._metadata import (
    CHECKSUMS,
    MALFORMED,
    METADATA_NAME,
    CheckpointError,
    shared,
    sizes_of,
    unlike_tiles,
)
from s3torch.dcp._reader import S3StorageReader
from s3torch.dcp.hugging_face._safetensors import (
    INDEX_NAME,
    FileHeader,
    Index,
    parse_index,
    parse_json,
    read_headers,
    short,
)
from s3torch.dcp.saving._files import SHAPE_KEY

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch.distributed.checkpoint.filesystem import _StorageInfo

    from s3torch.core import ObjectInfo
    from s3torch.core.transfer import ObjectSource
    from s3torch.dcp.hugging_face._safetensors import FileTensor

_SHOWN = 5


class S3HuggingFaceStorageReader(S3StorageReader):
    """Reads checkpoints in the layout of Hugging Face from S3, for ``torch.distributed.checkpoint.load``.

    The headers of all files tell what is where; then all ranges that the plan needs are fetched at once,
    straight into the tensors. With an index only the files that it names are read. A file that is replaced
    between its header and its tensors is an error. Arguments are those of ``S3StorageReader``.
    """

    # What the last listing told of the files, to read those and no others.
    _files: Mapping[str, ObjectInfo] = {}

    def _metadata(self) -> Metadata:
        self._files, self._heads = {}, {}
        found = shared(self._survey, self._process_group)
        if found is None:
            return super()._metadata()
        self._files = found.files
        self._heads = {name: header.head for name, header in found.headers.items()}
        index = found.index
        metadata = metadata_of(found.headers, None if index is None else index.weight_map, where=self.path)
        if index is not None:
            for one, info in metadata.storage_data.items():
                setattr(info, CHECKSUMS, index.checksums.get(one.fqn))
        metadata.storage_meta = StorageMeta(checkpoint_id=self.path)
        return metadata

    def _survey(self) -> _Survey | None:
        """Finds out what is there; ``None`` where torch's own metadata tells it."""
        objects = {info.key: info for info in self.fs.list_folder(self.path)}
        files = {name: info for name, info in objects.items() if name.endswith(SUFFIX)}
        index = self._index() if INDEX_NAME in objects else None
        if index is not None:
            if lost := index.files - files.keys():
                raise CheckpointError(f"{self.path} lacks files that its index names: {sorted(lost)}")
            files = {name: files[name] for name in sorted(index.files)}
        elif any(name.endswith(METADATA_NAME) for name in objects):
            return None
        if not files:
            raise NotFoundError(f"there is no safetensors file in {self.path}")
        headers = read_headers({join_path(self.path, name): self._source(name, files) for name in files})
        return _Survey(files, dict(zip(files, headers.values(), strict=True)), index)

    def file_of(self, path: str) -> tuple[str, str | None]:
        """Returns the URI of a file of the checkpoint, and its ETag where the listing has told it."""
        info = self._files.get(path)
        return join_path(self.path, path), None if info is None else info.etag

    def _open_file(self, path: str) -> ObjectSource:
        return self._source(path, self._files)

    def _source(self, name: str, files: Mapping[str, ObjectInfo]) -> ObjectSource:
        return self.fs.open_ranges(join_path(self.path, name), object_info=files.get(name))

    def _index(self) -> Index:
        uri = join_path(self.path, INDEX_NAME)
        body = read_whole(self.fs, uri, S3ReaderConstructor.sequential())
        return parse_index(body, uri=uri)


@dataclass(frozen=True, slots=True)
class _Survey:
    files: Mapping[str, ObjectInfo]
    headers: Mapping[str, FileHeader]
    index: Index | None


def load_file(
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    client: S3Client | None = None,
) -> dict[str, torch.Tensor]:
    """Loads all tensors of a safetensors file, as ``safetensors.torch.load_file`` does.

    Many ranges are in flight, and their bytes go straight into the tensors.

    Args:
        path: The URI of the file.
        device: Where the tensors go.
        client: Serves the requests; ``None`` takes one that is shared in this process.

    Raises:
        NotFoundError: There is no such file.
        CheckpointError: It is not in the format.
    """
    return read_again(lambda: _load_all(_FileReader(path, client), device))


def load_sharded(
    path: str | os.PathLike[str],
    device: str | int | torch.device = "cpu",
    *,
    client: S3Client | None = None,
) -> dict[str, torch.Tensor]:
    """Loads all tensors of a folder with safetensors files, as one state dict.

    An index, where there is one, tells which files count; parts of tensors are put together.
    Arguments are those of ``load_file``.

    Raises:
        NotFoundError: There is no safetensors file.
        CheckpointError: A file is not in the format, or something is missing or there twice.
    """

    def load() -> dict[str, torch.Tensor]:
        return _load_all(S3HuggingFaceStorageReader(None, path, s3_client=client), device)

    return dict(sorted(read_again(load).items()))


class _FileReader(S3HuggingFaceStorageReader):
    """Reads one file, as if it were a checkpoint."""

    def __init__(self, path: str | os.PathLike[str], client: S3Client | None) -> None:
        folder, _, self.name = checked_uri(path).rpartition("/")
        super().__init__(None, folder, s3_client=client)
        self._file = super()._open_file(self.name)

    def _survey(self) -> _Survey:
        (header,) = read_headers({join_path(self.path, self.name): self._file}).values()
        # Where the tensors would belong in larger ones is of no interest.
        return _Survey({}, {self.name: replace(header, metadata={})}, None)

    def _open_file(self, _: str) -> ObjectSource:
        return self._file


def _load_all(
    reader: S3HuggingFaceStorageReader, device: str | int | torch.device
) -> dict[str, torch.Tensor]:
    metadata = reader.read_metadata()
    loaded = {
        name: torch.empty(one.size, dtype=one.properties.dtype, device=device)
        for name, one in metadata.state_dict_metadata.items()
        if isinstance(one, TensorStorageMetadata)
    }
    planner = DefaultLoadPlanner()
    planner.set_up_planner(loaded, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()
    return loaded


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
    shapes: dict[str, tuple[int, ...]] = {}
    for file, header in headers.items():
        places = _places(header, file)
        for tensor in header.tensors:
            if weight_map is not None and weight_map.get(tensor.name, file) != file:
                continue
            found, shape = places.get(tensor.name, ((), None))
            if shape is not None and shapes.setdefault(tensor.name, shape) != shape:
                raise CheckpointError(f"the parts of {tensor.name} are not parts of one tensor")
            offsets = torch.Size(found or [0] * len(tensor.sizes))
            index = MetadataIndex(tensor.name, offsets)
            if index in storage:
                raise CheckpointError(
                    f"{tensor.name} is in {storage[index].relative_path} and in {file} of {where}, and no "
                    "index says which one to use"
                )
            if len(offsets) != len(tensor.sizes):
                raise CheckpointError(
                    f"the header of {file} in {where} is damaged: {tensor.name} at {offsets}"
                )
            _add_chunk(tensors, tensor, offsets)
            storage[index] = tensor.entry(file)
    if lost := sorted((weight_map or {}).keys() - tensors.keys()):
        raise CheckpointError(f"{where} lacks tensors that its index names: {lost[:_SHOWN]}")
    for name, stored in tensors.items():
        if problem := _unlike_whole(stored, shapes.get(name)):
            files = {storage[MetadataIndex(name, one.offsets)].relative_path for one in stored.chunks}
            raise CheckpointError(
                f"{where} has {problem} of {name}, in {', '.join(sorted(files)[:_SHOWN])}; a file is "
                "missing, or one too many is there"
            )
    return Metadata(tensors, storage_data=storage)  # type: ignore[arg-type] # A dict is invariant.


def _places(header: FileHeader, file: str) -> dict[str, tuple[tuple[int, ...], tuple[int, ...] | None]]:
    """Reads where in the whole tensors the parts in a file belong, and the shapes of those where noted."""
    try:
        noted = parse_json(header.metadata.get(CUSTOM_METADATA_KEY) or "{}")
        return {
            name: (
                sizes_of(entry[SAVED_OFFSETS_KEY]),
                sizes_of(entry[SHAPE_KEY]) if SHAPE_KEY in entry else None,
            )
            for name, entry in noted.items()
        }
    except MALFORMED as exc:
        raise CheckpointError(f"the header of {file} is damaged: {short(exc)}") from exc


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


def _unlike_whole(tensor: TensorStorageMetadata, shape: tuple[int, ...] | None) -> str | None:
    """A part that nobody has written would be left as it is in the target, without a word."""
    if shape is not None:
        end, tensor.size = tensor.size, torch.Size(shape)
        if len(shape) != len(end) or any(at > most for at, most in zip(end, shape, strict=True)):
            return f"parts outside of the shape {shape}"
    return unlike_tiles(tensor)
