"""Makes whole safetensors files of sharded ones, from S3 to S3, without a copy on any disk."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._hf_utils import FORMAT_KEY, FORMAT_VALUE, _gen_file_name
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, ReadItem

from s3torch.core import PutOptions
from s3torch.core.ranges import MIB
from s3torch.dcp._filesystem import S3FileSystem, checked_uri, join_path
from s3torch.dcp._metadata import CheckpointError, everywhere, shared
from s3torch.dcp._tensors import bytes_of
from s3torch.dcp.hugging_face._reader import S3HuggingFaceStorageReader
from s3torch.dcp.hugging_face._safetensors import (
    INDEX_NAME,
    Index,
    file_count,
    make_header,
    make_index,
    parse_index,
)
from s3torch.dcp.saving._commit import Commit
from s3torch.dcp.saving._files import write_file, write_files
from s3torch.dcp.saving._plan import FilePlan, new_save_id

if TYPE_CHECKING:
    import io
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.storage import StorageReader

    from s3torch.core import S3Client
    from s3torch.dcp._metadata import FileFacts

# Bytes of tensors that each thread holds.
_WINDOW = 64 * MIB


@dataclass(frozen=True, slots=True)
class Band:
    """A part of a tensor whose elements follow one after the other."""

    name: str
    dtype: torch.dtype
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.sizes) * self.dtype.itemsize


def bands_of(name: str, dtype: torch.dtype, sizes: Sequence[int], *, limit: int) -> Iterator[Band]:
    """Cuts a tensor into parts of at most ``limit`` bytes, in the order of their elements."""
    if not sizes or 0 in sizes:
        if 0 not in sizes:
            yield Band(name, dtype, (), ())
        return
    # The first dimension of which several steps fit; those before it are walked through one by one.
    steps = [math.prod(sizes[n + 1 :]) * dtype.itemsize for n in range(len(sizes))]
    cut = next(n for n, step in enumerate(steps) if step <= limit)
    most = limit // steps[cut]
    for outer in itertools.product(*map(range, sizes[:cut])):
        for at in range(0, sizes[cut], most):
            inner = sizes[cut + 1 :]
            count = min(most, sizes[cut] - at)
            yield Band(name, dtype, (*outer, at, *(0 for _ in inner)), (*(1 for _ in outer), count, *inner))


def windows(bands: Iterable[Band], *, limit: int) -> Iterator[list[Band]]:
    """Puts parts together up to ``limit`` bytes, in their order."""
    window: list[Band] = []
    total = 0
    for band in bands:
        if window and total + band.size > limit:
            yield window
            window, total = [], 0
        window.append(band)
        total += band.size
    if window:
        yield window


def reads_of(band: Band, number: int, stored: TensorStorageMetadata) -> Iterator[ReadItem]:
    """Yields what has to be read of each stored chunk of the tensor."""
    end = [at + count for at, count in zip(band.offsets, band.sizes, strict=True)]
    for chunk in stored.chunks:
        chunk_end = [at + count for at, count in zip(chunk.offsets, chunk.sizes, strict=True)]
        start = [max(pair) for pair in zip(band.offsets, chunk.offsets, strict=True)]
        counts = [min(pair) - at for *pair, at in zip(end, chunk_end, start, strict=True)]
        if all(count > 0 for count in counts):
            yield ReadItem(
                LoadItemType.TENSOR,
                MetadataIndex(band.name, index=number),
                torch.Size(at - begin for at, begin in zip(start, band.offsets, strict=True)),
                MetadataIndex(band.name, chunk.offsets),
                torch.Size(at - begin for at, begin in zip(start, chunk.offsets, strict=True)),
                torch.Size(counts),
            )


def consolidate_safetensors_files(
    input_dir: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    fqn_to_index_mapping: Mapping[str, int] | None = None,
    num_threads: int = 1,
    *,
    process_group: ProcessGroup | None = None,
    overwrite: bool = True,
    put_options: PutOptions | None = None,
    client: S3Client | None = None,
) -> None:
    """Puts the parts of tensors that many ranks have saved together, as torch's function of this name does.

    The files are those of ``S3HuggingFaceStorageWriter``; the index is written last. The bytes go through
    this process, 64 MiB of tensors at a time for each thread, however large a tensor is. What was in
    ``output_dir`` stays whole until the new index is there.

    Args:
        input_dir: The URI of the folder with the parts.
        output_dir: The URI of the folder for the whole files.
        fqn_to_index_mapping: As ``S3HuggingFaceStorageWriter`` takes it.
        num_threads: How many files are written at a time.
        process_group: The ranks that share the files between them, all of which must call this; ``None`` for
            this process alone.
        overwrite: Replaces a checkpoint that is there.
        put_options: How the new objects are stored.
        client: Serves the requests; ``None`` makes one from the environment.

    Raises:
        NotFoundError: There is no safetensors file.
        CheckpointError: Parts are missing, or a tensor has no number.
        RuntimeError: There is a checkpoint already, and ``overwrite`` is false.
    """
    shards = S3HuggingFaceStorageReader(None, input_dir, s3_client=client, process_group=process_group)
    work = _Consolidation(
        shards, checked_uri(output_dir), dict(fqn_to_index_mapping or {}), put_options or PutOptions()
    )
    replaces = shared(lambda: work.target.exists(overwrite=overwrite), process_group)
    rank, size = (0, 1)
    if process_group is not None:
        rank, size = dist.get_rank(process_group), dist.get_world_size(process_group)
    written = everywhere(lambda: work.write(work.files[rank::size], num_threads), process_group)
    index = work.index([one for ranks in written for one in ranks])
    shared(lambda: work.target.run(index, overwrite=overwrite, is_new=not replaces), process_group)


@dataclass(frozen=True, slots=True)
class _Written:
    """A file that was written."""

    plain: str
    name: str
    facts: FileFacts


class _Consolidation:
    def __init__(
        self,
        shards: S3HuggingFaceStorageReader,
        path: str,
        numbers: Mapping[str, int],
        options: PutOptions,
    ) -> None:
        self._shards = shards
        self._fs = S3FileSystem(None, shards.fs.client)
        self._path = path
        self._options = options
        uri = join_path(path, INDEX_NAME)
        self.target = Commit(
            self._fs, path, INDEX_NAME, options, lambda body: parse_index(body, uri=uri).files
        )
        metadata = shards.read_metadata()
        shards.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            name: one
            for name, one in metadata.state_dict_metadata.items()
            if isinstance(one, TensorStorageMetadata)
        }
        if lost := sorted(self._tensors.keys() - numbers.keys()) if numbers else []:
            raise CheckpointError(f"fqn_to_index_mapping has no file for {lost[0]}")
        count = file_count(numbers)
        # The tensors of each file, the widest elements first, so that each is aligned.
        self._contents: dict[str, list[str]] = {}
        for name in sorted(self._tensors, key=lambda name: (-self._dtype_of(name).itemsize, name)):
            self._contents.setdefault(_gen_file_name(numbers.get(name, 1), count), []).append(name)
        self.files = sorted(self._contents)

    def write(self, files: list[str], threads: int) -> list[_Written]:
        """Writes some of the files."""
        save_id = new_save_id()
        plans = [FilePlan(name, (), is_safetensors=True) for name in files]

        def write(file: FilePlan, check: Callable[[], None]) -> list[_Written]:
            return [self._write(file.name, file.named_for(save_id).name, check)]

        return write_files(plans, write, threads=threads)

    def index(self, written: list[_Written]) -> bytes:
        """Returns the index of all files."""
        weight_map = {fqn: one.name for one in written for fqn in self._contents[one.plain]}
        facts = {one.name: one.facts for one in written}
        total = sum(
            math.prod(one.size) * self._dtype_of(name).itemsize for name, one in self._tensors.items()
        )
        return make_index(Index(weight_map, facts), total_size=total)

    def _write(self, plain: str, name: str, check: Callable[[], None]) -> _Written:
        tensors = self._contents[plain]

        def fill(stream: io.IOBase) -> None:
            header, _ = make_header(
                ((name, self._dtype_of(name), self._tensors[name].size) for name in tensors),
                {FORMAT_KEY: FORMAT_VALUE},
            )
            stream.write(header)
            for window in windows(self._bands(tensors), limit=_WINDOW):
                check()
                stream.writelines(
                    bytes_of(tensor) for tensor in read_bands(self._shards, window, self._tensors)
                )

        _, facts, _ = write_file(self._fs, self._path, name, fill, self._options)
        return _Written(plain, name, facts)

    def _bands(self, names: list[str]) -> Iterator[Band]:
        return itertools.chain.from_iterable(
            bands_of(name, dtype_of(self._tensors[name]), self._tensors[name].size, limit=_WINDOW)
            for name in names
        )

    def _dtype_of(self, name: str) -> torch.dtype:
        return dtype_of(self._tensors[name])


def dtype_of(stored: TensorStorageMetadata) -> torch.dtype:
    """Returns the type of the elements of a stored tensor."""
    dtype = stored.properties.dtype
    assert isinstance(dtype, torch.dtype)  # noqa: S101 - For the type checker.
    return dtype


def read_bands(
    reader: StorageReader, bands: Sequence[Band], stored: Mapping[str, TensorStorageMetadata]
) -> list[torch.Tensor]:
    """Reads parts of tensors, each into memory of its own."""
    planner = BandPlanner([torch.empty(band.sizes, dtype=band.dtype) for band in bands])
    items = [item for number, band in enumerate(bands) for item in reads_of(band, number, stored[band.name])]
    reader.read_data(LoadPlan(items), planner).wait()
    return planner.tensors


class BandPlanner(DefaultLoadPlanner):
    """Has a tensor for each part that is read."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        super().__init__()
        self.tensors = tensors

    def resolve_tensor(self, read_item: ReadItem) -> torch.Tensor:
        tensor = self.tensors[read_item.dest_index.index or 0]
        for dimension, (at, count) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            tensor = tensor.narrow(dimension, at, count)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        pass
