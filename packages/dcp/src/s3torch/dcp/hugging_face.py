"""Checkpoints in the layout of Hugging Face: safetensors files, and an index that tells what is where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.distributed.checkpoint._hf_utils import SUFFIX, _gen_file_name, _metadata_fn
from torch.distributed.checkpoint.filesystem import SerializationFormat
from torch.distributed.checkpoint.metadata import StorageMeta

from s3torch.core import S3ReaderConstructor
from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.header_metadata import metadata_of
from s3torch.dcp.header_reading import read_headers
from s3torch.dcp.paths import join_path
from s3torch.dcp.plan import plan_numbered_files
from s3torch.dcp.reader import S3StorageReader
from s3torch.dcp.sharing import shared
from s3torch.dcp.writer import S3StorageWriter

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, WriteItem

    from s3torch.core import ObjectInfo, PutOptions, S3Client, S3ClientConfig
    from s3torch.core.transfer.source import ObjectSource
    from s3torch.dcp.plan import FilePlan
    from s3torch.dcp.tensor_files import FileHeader

__all__ = ["S3HuggingFaceStorageReader", "S3HuggingFaceStorageWriter"]

_TORCH_METADATA = ".metadata"


class S3HuggingFaceStorageWriter(S3StorageWriter):
    """Writes tensors in the layout of Hugging Face, as torch's ``HuggingFaceStorageWriter`` does.

    The files are ``{path}/model-00001-of-00002.safetensors`` and so on; ``model.safetensors.index.json`` is
    written last, and tells which file has which tensor. Where there was such a checkpoint before, new files
    get other names, and the old ones are removed when the new index is there.

    With ``save_distributed`` tensors are in several files, which an index cannot tell. Then torch's
    ``.metadata`` is written last in its place, which other readers of safetensors ignore.

    Args:
        region: The region of the bucket; ``None`` takes it from the environment.
        path: The ``s3://bucket/prefix`` of the checkpoint.
        s3client_config: The settings of the client.
        fqn_to_index_mapping: The number of the file for each tensor, from 1; ``None`` puts all into one.
        thread_count: How many files are written at a time.
        save_distributed: Each rank writes its own parts of tensors, into files ``shard-00001-model-…``.
        overwrite: Replaces a checkpoint that is there.
        endpoint: The URL of a store that speaks S3.
        s3_client: Serves all requests in place of a client of its own.
        put_options: How all objects of the checkpoint are stored.

    Raises:
        ConfigurationError: An argument is wrong. It is a ``ValueError``, too.
    """

    _suffix = SUFFIX

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        fqn_to_index_mapping: Mapping[str, int] | None = None,
        thread_count: int = 1,
        *,
        save_distributed: bool = False,
        overwrite: bool = True,
        endpoint: str | None = None,
        s3_client: S3Client | None = None,
        put_options: PutOptions | None = None,
    ) -> None:
        numbers = set(fqn_to_index_mapping.values()) if fqn_to_index_mapping else {1}
        if min(numbers) < 1:
            raise ConfigurationError(f"the numbers of files begin with 1, got {min(numbers)}")
        super().__init__(
            region,
            path,
            s3client_config,
            self._file_prefix,
            thread_count,
            endpoint=endpoint,
            s3_client=s3_client,
            put_options=put_options,
            overwrite=overwrite,
            serialization_format=SerializationFormat.SAFETENSORS,
        )
        self.fqn_to_index_mapping = dict(fqn_to_index_mapping) if fqn_to_index_mapping else None
        self.save_distributed = save_distributed
        self._count = max(numbers)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Looks for a checkpoint that is there already.

        Raises:
            RuntimeError: There is one that must not be replaced, or cannot be.
            CheckpointError: There are objects, or parts of tensors without ``save_distributed``.
        """
        if not self.save_distributed and not self.use_collectives:
            raise ConfigurationError("use_collectives=False needs save_distributed=True")
        other = _metadata_fn if self.save_distributed else _TORCH_METADATA
        if self.fs.exists(join_path(self.path, other)):
            raise RuntimeError(
                f"{self.path} has a checkpoint that was saved with save_distributed="
                f"{not self.save_distributed}; save to another path, or delete that one first"
            )
        planned = super().prepare_global_plan(plans)
        for item in (item for plan in plans for item in plan.items):
            data = item.tensor_data
            if data is None:
                raise CheckpointError(f"{item.index.fqn} is no tensor; safetensors files hold only tensors")
            if data.chunk.sizes != data.size and not self.save_distributed:
                raise CheckpointError(f"{item.index.fqn} is sharded; save it with save_distributed=True")
        return planned

    def _file_prefix(self, rank: int) -> str:
        if self.save_distributed:
            return f"shard-{rank + 1:05d}-"
        # Usually one rank has everything. Where others have whole tensors, too, their files are told apart.
        return f"rank-{rank + 1:05d}-model-" if rank else "model-"

    def _metadata_name(self) -> str:
        return super()._metadata_name() if self.save_distributed else _metadata_fn

    def _plan_files(self, items: list[WriteItem], prefix: str) -> list[FilePlan]:
        numbers = self.fqn_to_index_mapping
        shard = int(prefix.split("-")[1]) if self.save_distributed else None

        def name_of(fqn: str) -> str:
            if numbers is not None and fqn not in numbers:
                raise CheckpointError(f"fqn_to_index_mapping has no file for {fqn}")
            name = _gen_file_name(1 if numbers is None else numbers[fqn], self._count, shard)
            return name if self.save_distributed else name.replace("model-", prefix, 1)

        return plan_numbered_files(items, name_of)

    def _commit_body(self, metadata: Metadata) -> bytes:
        if self.save_distributed:
            return super()._commit_body(metadata)
        stored = metadata.storage_data.items()
        weight_map = {index.fqn: info.relative_path for index, info in stored}
        total = sum(info.length for _, info in stored)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        return json.dumps(index, indent=2).encode()

    def _names_in(self, body: bytes) -> set[str]:
        if self.save_distributed:
            return super()._names_in(body)
        return set(_weight_map(body, self._metadata_uri()).values())


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
        weight_map = self._weight_map() if _metadata_fn in objects else None
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

    def _weight_map(self) -> dict[str, str]:
        uri = join_path(self.path, _metadata_fn)
        whole = S3ReaderConstructor.sequential()
        with self.fs.create_stream(uri, "rb", reader_constructor=whole) as stream:
            return _weight_map(stream.read(), uri)


@dataclass(frozen=True, slots=True)
class _Survey:
    files: Mapping[str, ObjectInfo]
    headers: Mapping[str, FileHeader]
    weight_map: Mapping[str, str] | None


def _weight_map(body: bytes, uri: str) -> dict[str, str]:
    try:
        return {str(name): str(file) for name, file in json.loads(body)["weight_map"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{uri} is damaged: {exc!r}") from exc
