"""Reads checkpoints in the layout of Hugging Face, and plain state dicts in safetensors files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.distributed.checkpoint._hf_utils import SUFFIX
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

from s3torch.core import S3Client, S3ReaderConstructor
from s3torch.core.errors import NotFoundError
from s3torch.dcp._filesystem import checked_uri, join_path, read_whole
from s3torch.dcp._metadata import METADATA_NAME, CheckpointError, shared
from s3torch.dcp._reader import S3StorageReader
from s3torch.dcp.hugging_face._safetensors import (
    INDEX_NAME,
    FileHeader,
    metadata_of,
    parse_index,
    read_headers,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import ObjectInfo
    from s3torch.core.transfer import ObjectSource


class S3HuggingFaceStorageReader(S3StorageReader):
    """Reads checkpoints in the layout of Hugging Face from S3, for ``torch.distributed.checkpoint.load``.

    The headers of all files tell what is where; then all ranges that the plan needs are fetched at once,
    straight into the tensors. With an index only the files that it names are read. A file that is replaced
    between its header and its tensors is an error. Arguments are those of ``S3StorageReader``.
    """

    # What the last listing told of the files, to read those and no others.
    _files: Mapping[str, ObjectInfo] = {}

    def _metadata(self) -> Metadata:
        self._files = {}
        found = shared(self._survey, self._process_group)
        if found is None:
            return super()._metadata()
        self._files = found.files
        metadata = metadata_of(found.headers, found.weight_map, where=self.path)
        metadata.storage_meta = StorageMeta(checkpoint_id=self.path)
        return metadata

    def _survey(self) -> _Survey | None:
        """Finds out what is there; ``None`` where torch's own metadata tells it."""
        objects = {info.key: info for info in self.fs.list_folder(self.path)}
        files = {name: info for name, info in objects.items() if name.endswith(SUFFIX)}
        weight_map = self._weight_map() if INDEX_NAME in objects else None
        if weight_map is not None:
            if lost := set(weight_map.values()) - files.keys():
                raise CheckpointError(f"{self.path} lacks files that its index names: {sorted(lost)}")
            files = {name: files[name] for name in sorted(set(weight_map.values()))}
        elif any(name.endswith(METADATA_NAME) for name in objects):
            return None
        if not files:
            raise NotFoundError(f"there is no safetensors file in {self.path}")
        headers = read_headers({join_path(self.path, name): self._source(name, files) for name in files})
        return _Survey(files, dict(zip(files, headers.values(), strict=True)), weight_map)

    def _open_file(self, path: str) -> ObjectSource:
        return self._source(path, self._files)

    def _source(self, name: str, files: Mapping[str, ObjectInfo]) -> ObjectSource:
        return self.fs.open_ranges(join_path(self.path, name), object_info=files.get(name))

    def _weight_map(self) -> Mapping[str, str]:
        uri = join_path(self.path, INDEX_NAME)
        body = read_whole(self.fs, uri, S3ReaderConstructor.sequential())
        return parse_index(body, uri=uri).weight_map


@dataclass(frozen=True, slots=True)
class _Survey:
    files: Mapping[str, ObjectInfo]
    headers: Mapping[str, FileHeader]
    weight_map: Mapping[str, str] | None


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
    return _load_all(_FileReader(path, client), device)


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
    loaded = _load_all(S3HuggingFaceStorageReader(None, path, s3_client=client), device)
    return dict(sorted(loaded.items()))


class _FileReader(S3HuggingFaceStorageReader):
    """Reads one file, as if it were a checkpoint."""

    def __init__(self, path: str | os.PathLike[str], client: S3Client | None) -> None:
        folder, _, self.name = checked_uri(path).rpartition("/")
        super().__init__(None, folder, s3_client=client)
        self._file = super()._open_file(self.name)

    def _survey(self) -> _Survey:
        (header,) = read_headers({join_path(self.path, self.name): self._file}).values()
        # Where the tensors would belong in larger ones is of no interest.
        return _Survey({}, {self.name: FileHeader(header.tensors, {})}, None)

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
