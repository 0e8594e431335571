"""Writes checkpoints in the layout of Hugging Face: safetensors files, and an index of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.distributed.checkpoint._hf_utils import SHARDED_DIR_NAME, _gen_file_name
from torch.distributed.checkpoint.filesystem import SerializationFormat

from s3torch.core.errors import ConfigurationError
from s3torch.dcp._filesystem import checked_uri, join_path
from s3torch.dcp._metadata import CHECKSUMS, METADATA_NAME, CheckpointError, file_facts
from s3torch.dcp._writer import S3StorageWriter
from s3torch.dcp.hugging_face._consolidation import consolidate_safetensors_files
from s3torch.dcp.hugging_face._reader import S3HuggingFaceStorageReader
from s3torch.dcp.hugging_face._safetensors import INDEX_NAME, Index, file_count, make_index, parse_index
from s3torch.dcp.saving._assembly import SaveReport
from s3torch.dcp.saving._commit import EXISTS
from s3torch.dcp.saving._copies import find_old
from s3torch.dcp.saving._plan import plan_numbered_files
from s3torch.dcp.saving._reuse import OldCheckpoint

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, WriteItem
    from torch.distributed.checkpoint.storage import WriteResult

    from s3torch.core import PutOptions, S3Client, S3ClientConfig
    from s3torch.dcp.saving._plan import FilePlan


class S3HuggingFaceStorageWriter(S3StorageWriter):
    """Writes tensors in the layout of Hugging Face, as torch's ``HuggingFaceStorageWriter`` does.

    The files are ``{path}/model-00001-of-00002-{id}.safetensors`` and so on, with an id of the save;
    ``model.safetensors.index.json`` is written last, and tells which file has which tensor. The files of an
    older checkpoint are removed when the new index is there.

    With ``save_distributed`` tensors are in several files, which an index cannot tell. Then torch's
    ``.metadata`` is written last in its place, which other readers of safetensors ignore.

    With ``enable_consolidation``, too, that checkpoint is in ``{path}/sharded``, and when it is complete, the
    rank that coordinates puts the parts together into whole files in ``path``, which get their index last. If
    that fails, the save fails, and ``{path}/sharded`` can be loaded; an older checkpoint in ``path`` stays.
    The other ranks wait meanwhile, no longer than their process group does. Of a large model let all ranks
    share that work, with ``consolidate_safetensors_files(…, process_group=…)`` after the save.

    Args, beside those of ``S3StorageWriter``:
        fqn_to_index_mapping: The number of the file for each tensor, from 1; ``None`` puts all into one.
        save_distributed: Each rank writes its own parts of tensors, into files ``shard-00001-model-…``.
        enable_consolidation: Puts the parts together when all are there; needs ``save_distributed``.
        thread_count_consolidation: How many whole files are written at a time.
        overwrite: Replaces a checkpoint that is there.

    Attributes:
        consolidated_output_path: The URI of the whole files; ``None`` without consolidation.
        report: As that of ``S3StorageWriter``; with consolidation, on the rank that coordinates, also what
            was sent for the whole files, and what S3 has copied.

    Raises:
        ConfigurationError: An argument is wrong. It is also a ``ValueError``.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        fqn_to_index_mapping: Mapping[str, int] | None = None,
        thread_count: int = 1,
        *,
        save_distributed: bool = False,
        enable_consolidation: bool = False,
        thread_count_consolidation: int = 1,
        overwrite: bool = True,
        endpoint: str | None = None,
        s3_client: S3Client | None = None,
        put_options: PutOptions | None = None,
        reuse: str | os.PathLike[str] | None = None,
    ) -> None:
        self._count = file_count(fqn_to_index_mapping)
        if enable_consolidation and not save_distributed:
            raise ConfigurationError("enable_consolidation=True needs save_distributed=True")
        if not isinstance(thread_count_consolidation, int) or thread_count_consolidation < 1:
            raise ConfigurationError(
                f"thread_count_consolidation must be at least 1, got {thread_count_consolidation!r}"
            )
        self.consolidated_output_path = checked_uri(path) if enable_consolidation else None
        self.enable_consolidation = enable_consolidation
        self.thread_count_consolidation = thread_count_consolidation
        super().__init__(
            region,
            self._files_path(path),
            s3client_config,
            self._file_prefix,
            thread_count,
            endpoint=endpoint,
            s3_client=s3_client,
            put_options=put_options,
            overwrite=overwrite,
            reuse=reuse,
            serialization_format=SerializationFormat.SAFETENSORS,
        )
        self.fqn_to_index_mapping = dict(fqn_to_index_mapping) if fqn_to_index_mapping else None
        self.save_distributed = save_distributed

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Prepares another save, to another place if one is given."""
        if checkpoint_id is not None and self.enable_consolidation:
            self.consolidated_output_path = checked_uri(checkpoint_id)
        super().reset(None if checkpoint_id is None else self._files_path(checkpoint_id))

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Looks for a checkpoint that is there already.

        Raises:
            RuntimeError: There is one that must not be replaced, or cannot be.
            CheckpointError: There are objects, or parts of tensors without ``save_distributed``.
        """
        self._check_collectives()
        self._check_other_checkpoints()
        planned = super().prepare_global_plan(plans)
        for item in (item for plan in plans for item in plan.items):
            data = item.tensor_data
            if data is None:
                raise CheckpointError(
                    f"{item.index.fqn} is not a tensor; safetensors files hold only tensors"
                )
            if data.chunk.sizes != data.size and not self.save_distributed:
                raise CheckpointError(f"{item.index.fqn} is sharded; save it with save_distributed=True")
        return planned

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commits the checkpoint; with ``enable_consolidation``, puts the parts together then.

        Raises:
            CheckpointError: Something that was planned was not written; nothing is committed.
            RuntimeError: Another job has committed a checkpoint here meanwhile, and ``overwrite`` is false.
        """
        super().finish(metadata, results)
        if self.consolidated_output_path is not None:
            saved = SaveReport() if self.report is None or self._reuse is None else self.report
            self.report = saved + consolidate_safetensors_files(
                self.path,
                self.consolidated_output_path,
                self.fqn_to_index_mapping,
                self.thread_count_consolidation,
                overwrite=self.overwrite,
                put_options=self._put_options,
                client=self.fs.client,
            )

    def _find_old(self) -> OldCheckpoint | None:
        if self._reuse is None:
            return None
        return find_old(self.fs, self._reuse, self.consolidated_output_path or self.path, self._read_old)

    def _read_old(self, uri: str) -> OldCheckpoint:
        files = self._files_path(uri)
        reader = S3HuggingFaceStorageReader(None, files, s3_client=self.fs.client)
        return OldCheckpoint.of(files, reader.read_metadata())

    def _files_path(self, path: str | os.PathLike[str]) -> str:
        """Returns where the ranks write, for a checkpoint at a path."""
        return join_path(path, SHARDED_DIR_NAME) if self.enable_consolidation else checked_uri(path)

    def _check_collectives(self) -> None:
        if self.use_collectives:
            return
        if not self.save_distributed:
            raise ConfigurationError("use_collectives=False needs save_distributed=True")
        if self.enable_consolidation:
            raise ConfigurationError("enable_consolidation=True needs use_collectives=True")

    def _check_other_checkpoints(self) -> None:
        """Two checkpoints of different kinds in one place would be taken for each other."""
        whole = self.consolidated_output_path
        if whole is not None and not self.overwrite and self.fs.exists(join_path(whole, INDEX_NAME)):
            raise RuntimeError(EXISTS)
        if not self.save_distributed:
            others = [(self.path, METADATA_NAME), (join_path(self.path, SHARDED_DIR_NAME), METADATA_NAME)]
        else:
            others = [(self.path, INDEX_NAME)]
            if whole is not None:
                others.append((whole, METADATA_NAME))
        for path, name in others:
            if self.fs.exists(join_path(path, name)):
                raise RuntimeError(
                    f"{path} has a checkpoint of another kind, to which {name} belongs; save to another "
                    "path, or delete that one first"
                )

    def _file_prefix(self, rank: int) -> str:
        if self.save_distributed:
            return f"shard-{rank + 1:05d}-"
        # Usually one rank has everything. Where others have whole tensors, too, their files are told apart.
        return f"rank-{rank + 1:05d}-model-" if rank else "model-"

    def _metadata_name(self) -> str:
        return super()._metadata_name() if self.save_distributed else INDEX_NAME

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
        pieces = {
            one.fqn: note for one, info in stored if (note := getattr(info, CHECKSUMS, None)) is not None
        }
        index = Index({one.fqn: info.relative_path for one, info in stored}, file_facts(metadata), pieces)
        return make_index(index, total_size=sum(info.length for _, info in stored))

    def _names_in(self, body: bytes) -> set[str]:
        if self.save_distributed:
            return super()._names_in(body)
        return parse_index(body, uri=self._metadata_uri()).files
