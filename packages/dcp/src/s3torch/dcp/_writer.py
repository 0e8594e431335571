"""The storage writer of ``torch.distributed.checkpoint`` for S3."""

from __future__ import annotations

import pickle
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat
from torch.futures import Future

from s3torch.core import PutOptions, S3ReaderConstructor
from s3torch.core.errors import ConfigurationError
from s3torch.core.plugins import prefix_strategy as named_strategy
from s3torch.dcp._filesystem import S3FileSystem, checked_uri, join_path, read_whole
from s3torch.dcp._metadata import METADATA_NAME, CheckpointError, decode_metadata, file_names, sealed
from s3torch.dcp._prefixes import DefaultPrefixStrategy
from s3torch.dcp.saving._commit import Commit
from s3torch.dcp.saving._copies import LATEST, RankCopies, find_old, report_of
from s3torch.dcp.saving._files import RankFiles, unstored, write_files
from s3torch.dcp.saving._plan import new_save_id, plan_files, plan_tensor_files
from s3torch.dcp.saving._reuse import OldCheckpoint

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
    from torch.distributed.checkpoint.storage import WriteResult

    from s3torch.core import S3Client, S3ClientConfig
    from s3torch.dcp.saving._assembly import SaveReport
    from s3torch.dcp.saving._plan import FilePlan

# The version of the layout, as torch writes it into the metadata.
_LAYOUT_VERSION = "1.0.0"
_SHOWN_NAMES = 5


@dataclass
class StorageMetadata:
    """What the writer notes in the plan of a rank.

    Attributes:
        prefix: What stands in front of the names of the rank's files.
        old: What the rank knows of the checkpoint that is reused.
    """

    prefix: str
    old: OldCheckpoint | None = None


class S3StorageWriter(FileSystemWriter):
    """Writes checkpoints to S3, for ``torch.distributed.checkpoint.save`` and ``async_save``.

    The files are ``{path}/{prefix}{n}-{id}.distcp``, in torch's own format, with an id of the save: no save
    ever writes over a file of another one. ``{path}/.metadata`` is written last, by one atomic PUT: without
    it there is no checkpoint, and it is only written when the files of all ranks are complete. An error in
    any thread of any rank fails the save. The writer can be pickled, and can write one checkpoint after
    another.

    An old checkpoint stays whole until the new one is committed in its place; then its files are removed. So
    whatever fails, one of the two can be loaded, and so it is when two jobs save to one path.
    ``s3torch.dcp.manage.sweep_checkpoint`` removes what interrupted saves leave.

    With ``serialization_format=SerializationFormat.SAFETENSORS`` each file of tensors has the safetensors
    format; ``S3StorageReader`` loads it, stock torch does not.

    Args:
        region: As ``S3FileSystem`` takes it, and so ``s3client_config``, ``endpoint``, ``s3_client`` and
            ``put_options``.
        path: The ``s3://bucket/prefix`` of the checkpoint.
        prefix_strategy: Names the files of each rank, asked at every save; or the name under which a plugin
            has registered one, such as ``"hex"``. ``None`` for ``DefaultPrefixStrategy``.
        thread_count: How many files a rank writes, and how many at a time.
        reuse: The URI of an older checkpoint, or ``"latest"`` for the one that was committed last in the
            folder of the new one. What has not changed since is not sent: S3 copies it. The new checkpoint
            needs nothing of the old one, which may be deleted. Where that is not possible, everything is
            sent, and ``report`` says why.
        sync_files: Has no effect; what S3 has confirmed is durable.
        kwargs: What torch's ``FileSystemWriter`` takes: ``single_file_per_rank``, ``per_thread_copy_ahead``,
            ``cache_staged_state_dict``, ``overwrite``, ``_extensions``, ``serialization_format``.

    Attributes:
        fs: The file system.
        path: The URI of the checkpoint.
        prefix_strategy: Names the files of each rank.
        report: With ``reuse``, what the last save has sent and what S3 has copied: of all ranks on the one
            that coordinates, of the rank alone on others.

    Raises:
        ConfigurationError: An argument is wrong. It is also a ``ValueError``.
        TypeError: A keyword is not known.
    """

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        prefix_strategy: Callable[[int], str] | str | None = None,
        thread_count: int = 1,
        *,
        endpoint: str | None = None,
        s3_client: S3Client | None = None,
        put_options: PutOptions | None = None,
        reuse: str | os.PathLike[str] | None = None,
        sync_files: bool = False,  # noqa: ARG002 - Accepted, because torch's writer has it.
        **kwargs: Any,
    ) -> None:
        if not isinstance(thread_count, int) or thread_count < 1:
            raise ConfigurationError(f"thread_count must be at least 1, got {thread_count!r}")
        super().__init__(path=path, sync_files=False, thread_count=thread_count, **kwargs)
        self._is_safetensors = self.serialization_format is SerializationFormat.SAFETENSORS
        if self._is_safetensors and self.transforms.extensions:
            raise ConfigurationError("_extensions work with SerializationFormat.TORCH_SAVE only")
        self.fs: S3FileSystem = S3FileSystem(  # type: ignore[assignment]
            region, s3_client, s3client_config, endpoint=endpoint, put_options=put_options
        )
        self.path: str = checked_uri(path)
        self.fs.init_path(self.path)
        named = named_strategy(prefix_strategy)() if isinstance(prefix_strategy, str) else prefix_strategy
        self.prefix_strategy: Callable[[int], str] = named or DefaultPrefixStrategy()
        self._put_options = put_options or PutOptions()
        self._reuse = reuse if reuse is None or reuse == LATEST else checked_uri(reuse)
        self.report: SaveReport | None = None
        # Whether the rank that plans has seen a checkpoint at the path; of the save that is going on.
        self._replaces: bool | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Prepares another save, to another place if one is given."""
        super().reset(None if checkpoint_id is None else checked_uri(checkpoint_id))

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: FBT001
        super().set_up_storage_writer(is_coordinator, *args, **kwargs)
        self._replaces = None

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        # Only one rank asks whether there is a checkpoint already.
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Notes the prefix of each rank, and looks for a checkpoint that is there already.

        Raises:
            RuntimeError: There is one, and ``overwrite`` is false.
            ConfigurationError: Two ranks would write files of the same name.
        """
        if not self.use_collectives and self.rank is not None:
            # Each rank plans for itself, in a list of one.
            prefixes = [self._prefix(self.rank) for _ in plans]
        else:
            prefixes = [self._prefix(rank) for rank in range(len(plans))]
            if len(set(prefixes)) < len(prefixes):
                raise ConfigurationError(
                    f"the prefix strategy gives several ranks the same prefix: {prefixes[:16]}"
                )
        self._replaces = self._commit().exists(overwrite=self.overwrite)
        if self._replaces:
            warnings.warn(
                f"Detected an existing checkpoint in {self.path}, overwriting since self.overwrite=True. "
                "It stays whole until the new one is complete.",
                stacklevel=2,
            )
        old = self._find_old()
        return [
            replace(plan, storage_data=StorageMetadata(prefix, old and old.for_items(plan.items)))
            for plan, prefix in zip(plans, prefixes, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes the files of this rank and returns when all are complete.

        Raises:
            S3Error: A file could not be written; those that were not complete do not appear.
        """
        # A plan that torch has cached carries the prefix of an older save; the rank, where torch tells
        # it, is that of this one.
        prefix = plan.storage_data.prefix if self.rank is None else self._prefix(self.rank)
        files = RankFiles(
            self.fs, self.path, self._put_options, planner, self.transforms, self.per_thread_copy_ahead
        )
        done: Future[list[WriteResult]] = Future()
        old = plan.storage_data.old
        if self._reuse is not None and getattr(planner, "_enable_plan_caching", False):
            # A plan that torch has cached carries what was true of an older save.
            found = self._find_old()
            old = found and found.for_items(plan.items)
        if old is None:
            save_id = new_save_id()
            planned = [file.named_for(save_id) for file in self._plan_files(plan.items, prefix)]
            results = write_files(planned, files.write, threads=self.thread_count)
        else:
            copies = RankCopies(files, old, threads=self.thread_count, joins=self.single_file_per_rank)
            results = copies.write(plan.items, prefix, partial(self._plan_files, prefix=prefix))
            self.report = report_of(results)
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commits the checkpoint by one atomic PUT of its metadata; then the files of the old one go.

        A failure to remove old files is a warning: the checkpoint is whole.

        Raises:
            CheckpointError: Something that was planned was not written; nothing is committed.
            RuntimeError: Another job has committed a checkpoint here meanwhile, and ``overwrite`` is false.
        """
        stored = {result.index: result.storage_data for rank in results for result in rank}
        if holes := unstored(metadata.state_dict_metadata, stored):
            raise CheckpointError(
                f"{len(holes)} entries of the checkpoint were not written, so it is not committed: "
                f"{', '.join(holes[:_SHOWN_NAMES])}"
            )
        if self._reuse is not None:
            self.report = report_of([result for rank in results for result in rank])
        metadata.version = _LAYOUT_VERSION
        metadata.storage_data = stored
        metadata.storage_meta = self.storage_meta()
        is_new, self._replaces = self._replaces is False, None
        self._commit().run(self._commit_body(metadata), overwrite=self.overwrite, is_new=is_new)

    def _find_old(self) -> OldCheckpoint | None:
        if self._reuse is None:
            return None
        return find_old(self.fs, self._reuse, self.path, self._read_old)

    def _read_old(self, uri: str) -> OldCheckpoint:
        place = join_path(uri, self._metadata_name())
        body = read_whole(self.fs, place, S3ReaderConstructor.sequential())
        return OldCheckpoint.of(uri, decode_metadata(body, uri=place))

    def _plan_files(self, items: list[WriteItem], prefix: str) -> list[FilePlan]:
        make = plan_tensor_files if self._is_safetensors else plan_files
        return make(items, prefix, files=self.thread_count, single_file_per_rank=self.single_file_per_rank)

    def _commit(self) -> Commit:
        return Commit(self.fs, self.path, self._metadata_name(), self._put_options, self._names_in)

    def _commit_body(self, metadata: Metadata) -> bytes:
        """Returns what makes the checkpoint visible."""
        return sealed(pickle.dumps(metadata))

    def _names_in(self, body: bytes) -> set[str]:
        """Lists the files that a checkpoint with this body has."""
        return file_names(decode_metadata(body, uri=self._metadata_uri()))

    def _prefix(self, rank: int) -> str:
        prefix = self.prefix_strategy(rank)
        if not isinstance(prefix, str):
            raise ConfigurationError(f"a prefix strategy must return a string, got {prefix!r}")
        return prefix

    def _metadata_name(self) -> str:
        alone = not self.use_collectives and self.rank is not None
        return f"__{self.rank}.metadata" if alone else METADATA_NAME

    def _metadata_uri(self) -> str:
        return join_path(self.path, self._metadata_name())
