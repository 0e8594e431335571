"""Reads checkpoints in the layout of Hugging Face: safetensors files, and an index of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.distributed.checkpoint._hf_utils import SUFFIX
from torch.distributed.checkpoint.metadata import StorageMeta

from s3torch.core import S3ReaderConstructor
from s3torch.core.errors import NotFoundError
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.header_metadata import metadata_of
from s3torch.dcp.header_reading import read_headers
from s3torch.dcp.index_files import INDEX_NAME, parse_index
from s3torch.dcp.paths import join_path
from s3torch.dcp.reader import S3StorageReader
from s3torch.dcp.sharing import shared

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata

    from s3torch.core import ObjectInfo
    from s3torch.core.transfer.source import ObjectSource
    from s3torch.dcp.tensor_files import FileHeader

__all__ = ["S3HuggingFaceStorageReader"]

_TORCH_METADATA = ".metadata"


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
        elif any(name.endswith(_TORCH_METADATA) for name in objects):
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
        whole = S3ReaderConstructor.sequential()
        with self.fs.create_stream(uri, "rb", reader_constructor=whole) as stream:
            return parse_index(stream.read(), uri=uri).weight_map


@dataclass(frozen=True, slots=True)
class _Survey:
    files: Mapping[str, ObjectInfo]
    headers: Mapping[str, FileHeader]
    weight_map: Mapping[str, str] | None
