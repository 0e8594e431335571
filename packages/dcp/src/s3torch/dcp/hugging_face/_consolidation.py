"""Makes whole safetensors files of sharded ones, from S3 to S3, without a copy on any disk."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch.distributed.checkpoint._hf_utils import FORMAT_KEY, FORMAT_VALUE, _gen_file_name
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from s3torch.core import PutOptions
from s3torch.core.ranges import MIB, MIN_PART_SIZE
from s3torch.core.transfer import piece_algorithm
from s3torch.dcp._filesystem import S3FileSystem, checked_uri, join_path
from s3torch.dcp._metadata import CHECKSUMS, CheckpointError, FileFacts, ItemChecksums, everywhere, shared
from s3torch.dcp._tensors import NOTE as LAYOUT
from s3torch.dcp._tensors import bytes_of, noted_layout
from s3torch.dcp.hugging_face._reader import S3HuggingFaceStorageReader
from s3torch.dcp.hugging_face._safetensors import (
    INDEX_NAME,
    Index,
    file_count,
    make_header,
    make_index,
    parse_index,
)
from s3torch.dcp.loading._bands import bands_of, dtype_of, read_bands, windows
from s3torch.dcp.saving._assembly import CopyAttempts, Extent, SaveReport, plan_assembly
from s3torch.dcp.saving._commit import Commit
from s3torch.dcp.saving._files import write_file, write_files
from s3torch.dcp.saving._plan import FilePlan, new_save_id

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    from s3torch.core import S3Client
    from s3torch.dcp.hugging_face._safetensors import FileTensor
    from s3torch.dcp.loading._bands import Band

# Bytes of tensors that each thread holds.
_WINDOW = 64 * MIB


def runs_of(chunk: ChunkStorageMetadata, sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yields elements of a stored chunk that follow each other in the whole tensor, too.

    Each run is where it begins in the whole and in the chunk, and how many elements there are.
    """
    if 0 in chunk.sizes:
        return
    pairs = list(zip(chunk.sizes, sizes, strict=True))
    cut = max((n for n, (part, whole) in enumerate(pairs) if part != whole), default=0)
    count = math.prod(chunk.sizes[cut:])
    steps = [math.prod(sizes[n + 1 :]) for n in range(len(sizes))]
    begin = sum(at * step for at, step in zip(chunk.offsets, steps, strict=True))
    for number, outer in enumerate(itertools.product(*map(range, chunk.sizes[:cut]))):
        there = begin + sum(at * step for at, step in zip(outer, steps, strict=False))
        yield there, number * count, count


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
) -> SaveReport:
    """Puts the parts of tensors that many ranks have saved together, as torch's function of this name does.

    The files are those of ``S3HuggingFaceStorageWriter``; the index is written last. S3 copies what is in
    one piece in a part and in the whole, from 5 MiB on, as rows of large tensors are. The rest goes through
    this process, 64 MiB of tensors at a time for each thread, however large a tensor is, and so does all of
    it where S3 cannot copy. What was in ``output_dir`` stays whole until the new index is there.

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

    Returns:
        How many bytes were sent, how many S3 has copied, and why it has not copied more; of all ranks.

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
    found = everywhere(lambda: work.write(work.files[rank::size], num_threads), process_group)
    written = [one for ranks in found for one in ranks]
    index = work.index(written)
    shared(lambda: work.target.run(index, overwrite=overwrite, is_new=not replaces), process_group)
    return sum((one.report for one in written), SaveReport())


@dataclass(frozen=True, slots=True)
class _Written:
    """A file that was written."""

    plain: str
    name: str
    facts: FileFacts
    report: SaveReport


@dataclass(frozen=True, slots=True)
class _Layout:
    """What is where in a file."""

    plain: str
    header: bytes
    places: Sequence[FileTensor]

    @property
    def size(self) -> int:
        return self.places[-1].stop if self.places else len(self.header)

    def bands(self, start: int, stop: int) -> Iterator[Band]:
        """Yields the parts of tensors that are between two positions of the file."""
        for place in self.places[bisect_right(self.places, start, key=lambda place: place.stop) :]:
            if place.start >= stop:
                break
            first, last = max(start, place.start) - place.start, min(stop, place.stop) - place.start
            width = place.dtype.itemsize
            yield from bands_of(
                *(place.name, place.dtype, place.sizes),
                limit=_WINDOW,
                start=first // width,
                stop=last // width,
            )


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
        self._attempts = CopyAttempts(self._fs, path, shards.path)
        self._algorithm = piece_algorithm(self._fs.client.s3client_config.upload_checksum)
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
            layout = self._layout(file.name)
            name = file.named_for(save_id).name
            copies = plan_assembly(self._extents(layout.places), layout.size)

            def send(name: str) -> _Written:
                return self._write(layout, name, [], check)

            if not copies:
                return [send(name)]
            return [
                self._attempts.write(name, save_id, lambda: self._write(layout, name, copies, check), send)
            ]

        return write_files(plans, write, threads=threads)

    def index(self, written: list[_Written]) -> bytes:
        """Returns the index of all files."""
        weight_map = {fqn: one.name for one in written for fqn in self._contents[one.plain]}
        facts = {one.name: one.facts for one in written}
        total = sum(
            math.prod(one.size) * self._dtype_of(name).itemsize for name, one in self._tensors.items()
        )
        return make_index(Index(weight_map, facts), total_size=total)

    def _layout(self, plain: str) -> _Layout:
        tensors = ((name, self._dtype_of(name), self._tensors[name].size) for name in self._contents[plain])
        return _Layout(plain, *make_header(tensors, {FORMAT_KEY: FORMAT_VALUE}))

    def _write(
        self, layout: _Layout, name: str, copies: Sequence[Extent], check: Callable[[], None]
    ) -> _Written:
        def fill(stream: Any) -> None:
            for copy in copies:
                stream.expect_copy(copy.start - stream.tell())
                self._send(stream, layout, copy.start, check)
                copy.copy_to(stream, self._algorithm)
            self._send(stream, layout, layout.size, check)

        _, facts, _ = write_file(self._fs, self._path, name, fill, self._options, layout.size)
        copied = sum(copy.size for copy in copies)
        if copies:
            told = self._attempts.confirm(name, layout.size, facts.checksum)
            if facts.checksum is None and self._algorithm in told:
                facts = FileFacts(facts.size, (self._algorithm, told[self._algorithm]))
        why = () if self._attempts.why_not is None else (self._attempts.why_not,)
        return _Written(layout.plain, name, facts, SaveReport(layout.size - copied, copied, why))

    def _send(self, stream: Any, layout: _Layout, stop: int, check: Callable[[], None]) -> None:
        """Sends what comes next of a file."""
        begin = stream.tell()
        if not begin:
            stream.write(layout.header)
        for window in windows(layout.bands(begin, stop), limit=_WINDOW):
            check()
            stream.writelines(bytes_of(tensor) for tensor in read_bands(self._shards, window, self._tensors))

    def _extents(self, places: Iterable[FileTensor]) -> Iterator[Extent]:
        """Yields what S3 can copy of some tensors, in order, from the files with their parts."""
        if self._attempts.why_not is not None:
            return
        for place in places:
            found = (self._extents_of(place, chunk) for chunk in self._tensors[place.name].chunks)
            yield from sorted(itertools.chain.from_iterable(found), key=lambda extent: extent.start)

    def _extents_of(self, place: FileTensor, chunk: ChunkStorageMetadata) -> Iterator[Extent]:
        info = self._shards.storage_data[MetadataIndex(place.name, chunk.offsets)]
        layout = noted_layout(getattr(info, LAYOUT, None), info.length)
        noted = ItemChecksums.of(getattr(info, CHECKSUMS, None), info.length)
        is_other = noted is not None and noted.algorithm != self._algorithm
        if layout is None or is_other or getattr(info, "transform_descriptors", None):
            return
        if (layout.dtype, layout.sizes) != (place.dtype, tuple(chunk.sizes)):
            return
        uri, etag = self._shards.file_of(info.relative_path)
        for whole, part, count in runs_of(chunk, place.sizes):
            size = count * place.dtype.itemsize
            if size < MIN_PART_SIZE and count < math.prod(chunk.sizes):
                # Of many short rows none is long enough.
                return
            begin = layout.start + part * place.dtype.itemsize
            start = place.start + whole * place.dtype.itemsize
            if noted is None:
                yield Extent(start, start + size, uri, info.offset + begin, (), etag)
                continue
            found = noted.pieces(info.length, begin, begin + size)
            inside = [one for one in found if begin <= one[0] and one[1] <= begin + size]
            if inside:
                pieces = tuple((start + at - begin, start + to - begin, crc) for at, to, crc in inside)
                yield Extent(pieces[0][0], pieces[-1][1], uri, info.offset + inside[0][0], pieces, etag)

    def _dtype_of(self, name: str) -> torch.dtype:
        return dtype_of(self._tensors[name])
