"""The storage reader of ``torch.distributed.checkpoint`` for S3."""

from __future__ import annotations

import io
import logging
import math
import pickle
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType
from torch.futures import Future

from s3torch.core import RangedS3Reader, S3ReaderConstructor, SequentialS3Reader
from s3torch.core.errors import ConfigurationError, NotFoundError
from s3torch.core.ranges import MIB
from s3torch.dcp._filesystem import S3FileSystem, checked_uri, join_path, read_whole
from s3torch.dcp._known import UnsafeError
from s3torch.dcp._metadata import (
    MALFORMED,
    METADATA_NAME,
    CheckpointError,
    decode_metadata,
    is_intact,
    shared,
)
from s3torch.dcp._tensors import noted_layout, tensor_of
from s3torch.dcp._unpickler import safe_archive
from s3torch.dcp.loading._engine import PlannedLoad, ReaderSources
from s3torch.dcp.loading._exchange import Exchange, group_for_bytes
from s3torch.dcp.loading._pieces import chunks_by_file, stored_at
from s3torch.dcp.loading._replicas import Share, Wants, new_tag, plan_shares, wanted_heads, wants_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping

    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint._extension import ExtensionRegistry
    from torch.distributed.checkpoint.metadata import Metadata
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner

    from s3torch.core import S3Client, S3ClientConfig, S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer import FetchSource, ObjectSource, RangeSource
    from s3torch.dcp.loading._checking import Head
    from s3torch.dcp.loading._pieces import StoredChunk

_log = logging.getLogger(__name__)
_NO_BUCKET = "NoSuchBucket"


@dataclass(frozen=True, slots=True)
class PlannedReads:
    """What ``S3ReaderConstructor.dcp_optimized`` returns: how a storage reader fetches what its plan wants.

    As a reader constructor it makes readers of whole objects for metadata, and of ranges for all else.

    Attributes:
        max_gap_size: Bytes between two items up to which one request fetches both.

    Raises:
        ConfigurationError: ``max_gap_size`` is negative. It is also a ``ValueError``.
        TypeError: It is no number.
    """

    kind: ClassVar[str] = "dcp_optimized"

    max_gap_size: float = 32 * MIB

    def __post_init__(self) -> None:
        if not isinstance(self.max_gap_size, int | float):
            raise TypeError(f"max_gap_size must be int or float, got {type(self.max_gap_size).__name__}")
        if not self.max_gap_size >= 0:
            raise ConfigurationError("max_gap_size must be non-negative")

    def __call__(self, source: RangeSource, /) -> S3Reader:
        return SequentialS3Reader(source) if source.key.endswith(".metadata") else RangedS3Reader(source)


# The readers of these kinds give the bytes of an object as they are, so they need not be asked.
_PLAIN_KINDS = {"sequential", "range_based", "planned", PlannedReads.kind}


class S3StorageReader(FileSystemReader):
    """Reads checkpoints from S3, for ``torch.distributed.checkpoint.load``.

    Reads what ``S3StorageWriter``, torch's ``FileSystemWriter`` and ``FsspecWriter`` have written. All ranges
    that the plan needs, and hardly more, are fetched from all files at once, neighbours with one request; the
    bytes of tensors go straight into their targets where these are contiguous and on the CPU. It can be
    pickled, and used for one load after another.

    Args:
        region: As ``S3FileSystem`` takes it, and so ``s3client_config``, ``endpoint`` and ``s3_client``.
        path: The ``s3://bucket/prefix`` of the checkpoint.
        reader_constructor: ``None``, or ``S3ReaderConstructor.dcp_optimized(max_gap_size)`` to say up to
            which gap one request fetches two items. The other kinds of s3torch change nothing. A constructor
            of your own makes a reader for each file, and all bytes are read through these.
        thread_count: How many large items are decoded at a time; with readers of your own, how many files
            are read.
        process_group: The ranks that load together: one of them reads the metadata and hands it to the
            others. ``None`` lets every rank read it. That is the default, because torch does not tell a
            reader whether the other ranks load, too: one that loads with ``no_dist=True``, or calls
            ``read_metadata`` to look into a checkpoint, would wait for them for ever.
        replicas: ``"broadcast"`` lets one rank read what several of a load want, and send it to the others.
            All ranks of the load must have a reader that says so. ``None`` lets every rank read all it needs.
        safe_globals: Classes and functions that may be in the metadata and in objects, beyond what torch
            writes and what is plain, as for ``torch.serialization.add_safe_globals``.
        weights_only: Loads objects, all that is no tensor, without running what is in them. With ``False``
            the planner gets them as they are, and torch's runs whatever they say.
        _extension_registry: Knows the stream extensions with which the checkpoint was written.

    Attributes:
        fs: The file system.
        path: The URI of the checkpoint.
        verified_bytes: How many bytes this rank has compared with the writer's checksums in the last load.
        unverified_bytes: How many it has loaded without: of checkpoints that others have written, and parts
            of pieces that would have had to be fetched whole for it.

    Raises:
        ConfigurationError: An argument is wrong. It is also a ``ValueError``.
    """

    _heads: Mapping[str, Head] = {}

    def __init__(
        self,
        region: str | None,
        path: str | os.PathLike[str],
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        *,
        endpoint: str | None = None,
        s3_client: S3Client | None = None,
        thread_count: int = 8,
        process_group: ProcessGroup | None = None,
        replicas: Literal["broadcast"] | None = None,
        safe_globals: Iterable[Any] = (),
        weights_only: bool = True,
        _extension_registry: ExtensionRegistry | None = None,
    ) -> None:
        if not isinstance(thread_count, int) or thread_count < 1:
            raise ConfigurationError(f"thread_count must be at least 1, got {thread_count!r}")
        if replicas not in {None, "broadcast"}:
            raise ConfigurationError(f"replicas must be None or 'broadcast', got {replicas!r}")
        super().__init__(path, _extension_registry)
        self._reader_constructor = reader_constructor
        self.fs: S3FileSystem = S3FileSystem(  # type: ignore[assignment]
            region, s3_client, s3client_config, reader_constructor or PlannedReads(), endpoint=endpoint
        )
        self.path: str = checked_uri(path)
        self.fs.init_path(self.path)
        self.thread_count = thread_count
        self._process_group = process_group
        self._replicas = replicas
        self._safe_globals = tuple(safe_globals)
        self._weights_only = weights_only
        self._why_no_metadata = ""
        self.sync_files = False
        self.verified_bytes = self.unverified_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the process group behind, which no other process has."""
        return self.__dict__ | {"_process_group": None}

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return S3FileSystem.validate_checkpoint_id(checkpoint_id)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Prepares another load, of another checkpoint if one is given."""
        super().reset(None if checkpoint_id is None else checked_uri(checkpoint_id))

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002 - As torch has it.
        """Reads the metadata of the checkpoint, or with ``rank=`` that of a rank that saved on its own.

        Nothing that is in it is run. With a process group, one rank reads it for all.

        Raises:
            NotFoundError: There is no checkpoint; the text names the URI.
            CheckpointError: It is damaged, or has classes that are not known to be harmless.
        """
        rank = kwargs.get("rank")
        try:
            metadata = self._metadata() if rank is None else self._metadata_of_rank(rank)
        except Exception as exc:
            if rank is None:
                self._why_no_metadata = str(exc)
            else:
                # torch tries both, and some releases tell the user of neither error.
                _log.warning(
                    "the checkpoint has no metadata that can be read: %s; %s", self._why_no_metadata, exc
                )
            raise
        if metadata.storage_meta is not None:
            metadata.storage_meta.load_id = self.load_id
        return metadata

    def _metadata(self) -> Metadata:
        uri = join_path(self.path, METADATA_NAME)
        body = shared(lambda: self._metadata_body(uri), self._process_group)
        metadata = decode_metadata(body, uri=uri, safe_globals=self._safe_globals)
        for name, stored in metadata.state_dict_metadata.items():
            # A part that is missing would be left as it is in the target, without a word.
            there = sum(math.prod(one.sizes) for one in getattr(stored, "chunks", ()))
            if isinstance(stored, TensorStorageMetadata) and there < math.prod(stored.size):
                raise CheckpointError(
                    f"{uri} has only {there} of the {math.prod(stored.size)} elements of {name}"
                )
        return metadata

    def _metadata_of_rank(self, rank: int) -> Metadata:
        uri = join_path(self.path, f"__{rank}.metadata")
        return decode_metadata(self._metadata_body(uri), uri=uri, safe_globals=self._safe_globals)

    def _metadata_body(self, uri: str) -> bytes:
        try:
            body = read_whole(self.fs, uri)
            return body if is_intact(body) else read_whole(self.fs, uri)
        except NotFoundError as exc:
            if exc.code == _NO_BUCKET:
                raise
            raise _no_checkpoint(uri, exc) from exc

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Sorts the items by their place, and tells the ranges to a constructor that wants them."""
        plan.items.sort(key=lambda item: stored_at(item, self.storage_data).offset)
        tell = getattr(self._reader_constructor, "set_item_ranges_by_file", None)
        if tell is not None:
            tell(plan.items, self.storage_data, self.path)
        group = group_for_bytes(self._process_group) if self._replicas and not self._in_order else None
        if group is None:
            return plan
        files = chunks_by_file(plan.items, self.storage_data)
        return replace(plan, storage_data=wants_of(files, rank=dist.get_rank(), group=group.group_name))

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Decides which rank reads what, where ranks read for each other; only the coordinator does so."""
        wants = [plan.storage_data for plan in plans if isinstance(plan.storage_data, Wants)]
        if not wants:
            return plans
        heads = wanted_heads(wants)
        # No item is finished here, so there is nothing to ask the planner.
        load = PlannedLoad(self._open_file, None, self._value, max_gap=None, threads=1)  # type: ignore[arg-type]
        found = load.layouts(heads)
        layouts = {(path, one.start, one.stop): found.get(id(one)) for path, one in heads}
        shares = plan_shares(wants, layouts, tag=new_tag())
        ranks = [getattr(plan.storage_data, "rank", -1) for plan in plans]
        return [replace(plan, storage_data=shares.get(rank)) for plan, rank in zip(plans, ranks, strict=True)]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads all items of the plan and hands them to the planner, in any order, on this thread.

        Raises:
            CheckpointError: The checkpoint does not have what the plan asks for.
            ChecksumMismatchError: Bytes are not those that were saved, also when they are fetched once more.
            S3Error: A file is missing, damaged, or cannot be read.
        """
        share = plan.storage_data
        group = group_for_bytes(self._process_group) if isinstance(share, Share) else None
        with ExitStack() as stack:
            # From here on the others are told of all that fails.
            exchange = stack.enter_context(Exchange(share, group, where=self.path)) if group else None
            _check_kinds(plan, planner, self.path)
            files = chunks_by_file(plan.items, self.storage_data)
            open_file: Callable[[str], FetchSource] = self._open_file
            if self._in_order:
                # Who brings readers of his own may want other bytes than those of the objects.
                open_file = ReaderSources(self.fs, self.path, self.thread_count, stack).open
            load = PlannedLoad(
                open_file,
                planner,
                self._value,
                max_gap=getattr(self._reader_constructor, "max_gap_size", None),
                threads=self.thread_count,
                in_order=self._in_order,
                verifies=self.fs.client.s3client_config.verifies,
                exchange=exchange,
                heads=self._heads,
            )
            load.run(files)
        self.verified_bytes, self.unverified_bytes = load.verified
        if self.unverified_bytes:
            _log.info(
                "%d of the %d bytes loaded from %s have no checksum from the writer to compare with",
                self.unverified_bytes,
                self.unverified_bytes + self.verified_bytes,
                self.path,
            )
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @property
    def _in_order(self) -> bool:
        """Whether files are read with readers of the user's own kind."""
        kind = S3ReaderConstructor.get_reader_type_string(self._reader_constructor)
        return kind not in _PLAIN_KINDS

    def _open_file(self, path: str) -> ObjectSource:
        return self.fs.open_ranges(join_path(self.path, path))

    def _value(self, chunk: StoredChunk, stored: io.BytesIO) -> Any:
        request = chunk.requests[0]
        layout = None if chunk.descriptors else noted_layout(chunk.note, chunk.size)
        is_object = request.type == LoadItemType.BYTE_IO
        if layout is not None and not is_object and layout.stop - layout.start == chunk.size:
            # Only the bytes of the tensor, as in a safetensors file.
            return tensor_of(stored.read(), layout.dtype, layout.sizes)
        # torch names first what its data went through first; with several, its own reader forgets that the
        # last must be undone first.
        stream = self.transforms.transform_load_stream(request, chunk.descriptors[::-1], stored)
        name = request.storage_index.fqn
        if is_object:
            return self._object(name, stream.read(-1))
        if not stream.seekable():
            stream = io.BytesIO(stream.read(-1))
        try:
            tensor = torch.load(stream, map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError, *MALFORMED) as exc:
            raise CheckpointError(f"{name} in {self.path} is damaged and cannot be loaded: {exc}") from exc
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{name} in {self.path} is a {type(tensor).__name__}, not a tensor")
        return tensor

    def _object(self, name: str, body: bytes) -> bytes:
        """Returns an object as the planner gets it."""
        if not self._weights_only:
            return body
        try:
            return safe_archive(body, self._safe_globals)
        except UnsafeError as exc:
            remedy = f"give {exc.found} to the reader as safe_globals=[...], or " if exc.found else ""
            raise CheckpointError(
                f"{name} in {self.path} contains {exc}, so it was not loaded; if you trust who wrote it, "
                f"{remedy}load it with weights_only=False"
            ) from exc
        except Exception as exc:
            raise CheckpointError(f"{name} in {self.path} is damaged and cannot be loaded: {exc}") from exc


def _check_kinds(plan: LoadPlan, planner: LoadPlanner, path: str) -> None:
    """An object is no tensor: to load it in the place of one could run code that nobody has asked for."""
    targets = getattr(planner, "state_dict", None) or {}
    for item in plan.items:
        name = item.dest_index.fqn
        if item.type == LoadItemType.BYTE_IO and isinstance(targets.get(name), torch.Tensor):
            raise CheckpointError(
                f"{name} is a tensor in the state dict, but an object in {path}; to load the object, put "
                "something else in its place, such as None"
            )


def _no_checkpoint(uri: str, error: NotFoundError) -> NotFoundError:
    made = NotFoundError(
        f"there is no checkpoint: {uri} does not exist (a save writes it last, after everything else)"
    )
    vars(made).update(vars(error), message=made.message)
    return made
