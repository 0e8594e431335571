"""The files of a save: which there are, what it left out, and how they are written, several at a time.

The names of all files contain an id of the save. So no file that a checkpoint may name is written over, in no
store, whoever saves to the same path.
"""

from __future__ import annotations

import heapq
import io
import json
import math
import threading
import uuid
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain, filterfalse
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
)
from torch.distributed.checkpoint.storage import WriteResult

from s3torch.core.errors import TransferCancelledError
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import CheckpointError, FileFacts, note_facts
from s3torch.dcp._tensors import (
    HEAD_SIZE,
    TensorLayout,
    archive_frame,
    find_content,
    is_plain,
    storage_entry,
)
from s3torch.dcp.hugging_face._safetensors import make_header
from s3torch.dcp.saving._values import HostValues, without_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

    from s3torch.core import PutOptions
    from s3torch.dcp._filesystem import S3FileSystem
    from s3torch.dcp.saving._values import HostValue

T = TypeVar("T")
SUFFIX = ".distcp"
# What we add to what torch notes of the parts of a tensor: the shape of the whole.
SHAPE_KEY = "global_shape"


@dataclass(frozen=True, slots=True)
class FilePlan:
    """A file that a save writes.

    Attributes:
        name: Its path relative to the checkpoint, ``{prefix}{n}.distcp``, and later with the id of the save.
        items: What goes into it, in order: objects, then tensors.
        is_safetensors: It has the safetensors format.
    """

    name: str
    items: tuple[WriteItem, ...]
    is_safetensors: bool = False

    @property
    def size(self) -> int:
        """About how many bytes it has: those of its tensors."""
        return sum(map(_tensor_bytes, self.items))

    def named_for(self, save_id: str) -> FilePlan:
        """Returns the same file with a name that no other save uses."""
        stem, dot, suffix = self.name.rpartition(".")
        return replace(self, name=f"{stem}-{save_id}{dot}{suffix}")


def new_save_id() -> str:
    """Returns what tells the files of this save from those of all others, also at the same moment."""
    return uuid.uuid4().hex[:16]


def plan_files(
    items: Sequence[WriteItem], prefix: str, *, files: int, single_file_per_rank: bool = True
) -> list[FilePlan]:
    """Shares the items of one rank out between files; there is no file without items."""
    if single_file_per_rank:
        buckets = [sorted(bucket, key=_is_tensor) for bucket in _share_out(items, files)]
    else:
        buckets = [[item] for item in items]
    return _numbered(prefix, filter(None, buckets))


def plan_numbered_files(items: Sequence[WriteItem], name_of: Callable[[str], str]) -> list[FilePlan]:
    """Puts tensors into the safetensors files that are chosen by their names."""
    buckets: dict[str, list[WriteItem]] = {}
    for item in items:
        buckets.setdefault(name_of(item.index.fqn), []).append(item)
    return [
        FilePlan(name, tuple(sorted(bucket, key=_element_size, reverse=True)), is_safetensors=True)
        for name, bucket in sorted(buckets.items())
    ]


def plan_tensor_files(
    items: Sequence[WriteItem], prefix: str, *, files: int, single_file_per_rank: bool = True
) -> list[FilePlan]:
    """Does what ``plan_files`` does, for the safetensors format: it holds only tensors, and each name once.

    Tensors are sorted by the size of their elements, largest first, so that each is aligned. Objects go into
    a file of their own.
    """
    tensors = list(filter(_is_tensor, items))
    buckets = _share_out(tensors, files) if single_file_per_rank else [[item] for item in tensors]
    parts = [sorted(part, key=_element_size, reverse=True) for bucket in buckets for part in _apart(bucket)]
    objects = list(filterfalse(_is_tensor, items))
    rest = [objects] if single_file_per_rank else [[item] for item in objects]
    plans = _numbered(prefix, parts, is_safetensors=True)
    return plans + _numbered(prefix, filter(None, rest), first=len(plans))


def _numbered(
    prefix: str, buckets: Iterable[Sequence[WriteItem]], *, first: int = 0, is_safetensors: bool = False
) -> list[FilePlan]:
    return [
        FilePlan(f"{prefix}{n}{SUFFIX}", tuple(bucket), is_safetensors)
        for n, bucket in enumerate(buckets, start=first)
    ]


def unstored(state_dict_metadata: Mapping[str, Any], stored: Iterable[Any]) -> list[str]:
    """Lists what the metadata promises and no file holds."""
    there = {(index.fqn, _offsets(index.offset)) for index in stored}
    promised = chain.from_iterable(
        [(name, _offsets(chunk.offsets)) for chunk in value.chunks]
        if hasattr(value, "chunks")
        else [(name, None)]
        for name, value in state_dict_metadata.items()
    )
    return [name if at is None else f"{name} at {at}" for name, at in promised if (name, at) not in there]


def _offsets(offsets: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if offsets is None else tuple(offsets)


def _is_tensor(item: WriteItem) -> bool:
    return item.tensor_data is not None


def _tensor_bytes(item: WriteItem) -> int:
    data = item.tensor_data
    return 0 if data is None else math.prod(data.chunk.sizes) * data.properties.dtype.itemsize


def _element_size(item: WriteItem) -> int:
    data = item.tensor_data
    return 0 if data is None else data.properties.dtype.itemsize


def _apart(items: Sequence[WriteItem]) -> list[list[WriteItem]]:
    """Puts the second, third … chunk of one tensor into lists of their own."""
    parts: list[list[WriteItem]] = []
    seen: dict[str, int] = {}
    for item in items:
        turn = seen.get(item.index.fqn, 0)
        seen[item.index.fqn] = turn + 1
        if turn == len(parts):
            parts.append([])
        parts[turn].append(item)
    return parts


def _share_out(items: Sequence[WriteItem], count: int) -> list[list[WriteItem]]:
    """Puts objects into the buckets in turn, and each tensor, largest first, into the emptiest bucket."""
    if count == 1:
        return [list(items)]
    buckets: list[list[WriteItem]] = [[] for _ in range(count)]
    for n, item in enumerate(filterfalse(_is_tensor, items)):
        buckets[n % count].append(item)
    by_fill = [(0, n) for n in range(count)]
    for item in sorted(filter(_is_tensor, items), key=_tensor_bytes, reverse=True):
        fill, n = heapq.heappop(by_fill)
        buckets[n].append(item)
        heapq.heappush(by_fill, (fill + _tensor_bytes(item), n))
    return buckets


def write_files(
    files: Sequence[FilePlan],
    write: Callable[[FilePlan, Callable[[], None]], list[T]],
    *,
    threads: int,
) -> list[T]:
    """Writes files in threads and returns the results of all.

    The first error stops the others, whose uploads are aborted, and is raised. (The threads of torch's own
    writer end in silence when they fail, and leave holes in the checkpoint.)
    """
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise TransferCancelledError("another file of this checkpoint could not be written")

    if threads == 1 or len(files) < 2:
        return [result for file in files for result in write(file, check)]
    pool = ThreadPoolExecutor(min(threads, len(files)), thread_name_prefix="s3torch-save")
    try:
        futures = [pool.submit(write, file, check) for file in files]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for error in filter(None, (future.exception() for future in done)):
            raise error
        return [result for future in futures for result in future.result()]
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)


def write_file(
    fs: S3FileSystem, path: str, name: str, fill: Callable[[io.IOBase], T], options: PutOptions, size: int = 0
) -> tuple[T, FileFacts]:
    """Writes a file of about ``size`` bytes; returns what ``fill``, which writes them, returns, and facts."""
    uri = join_path(path, name)
    with fs.create_stream(uri, "wb", put_options=options, expected_size=size) as stream:
        result = fill(stream)
    return result, FileFacts(stream.tell(), getattr(stream, "checksum", None))


@dataclass(frozen=True, slots=True)
class RankFiles:
    """Writes files with the items of a plan, and notes the size and the checksum of each.

    Tensors are sent from their own memory, which nobody changes before the file is complete.
    """

    fs: S3FileSystem
    path: str
    options: PutOptions
    planner: SavePlanner
    transforms: Any
    copy_ahead: int

    def write(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        """Writes one file. Many threads may do so."""

        def fill(stream: Any) -> list[WriteResult]:
            values = HostValues(file.items, self.planner.resolve_data, ahead=self.copy_ahead)
            write = _write_tensors if file.is_safetensors else self._write_archives
            return write(stream, file, values, check)

        results, facts = write_file(self.fs, self.path, file.name, fill, self.options, file.size)
        note_facts(results[0].storage_data, facts)
        return results

    def _write_archives(
        self, stream: Any, file: FilePlan, values: Iterable[HostValue[WriteItem]], check: Callable[[], None]
    ) -> list[WriteResult]:
        """Writes each item as torch's own writer does: as a whole archive of ``torch.save``.

        Of a plain tensor only what stands around its bytes is made here. All other tensors, and those that go
        through an extension, are left to ``torch.save``.
        """
        results = []
        for value in values:
            check()
            offset = stream.tell()
            frame = None
            if value.is_plain and not self.transforms.extensions:
                frame = archive_frame(value.data.dtype, tuple(value.data.shape))
            if frame is None:
                descriptors, layout = _write_whole(stream, value, self.transforms)
            else:
                descriptors, layout = [], frame.layout
                stream.write(frame.head)
                value.send(stream)
                stream.write(frame.tail)
            entry = storage_entry(file.name, offset, stream.tell() - offset, layout, descriptors)
            results.append(WriteResult(value.item.index, entry.length, entry))
        return results


def _write_whole(
    stream: Any, value: HostValue[WriteItem], transforms: Any
) -> tuple[list[str], TensorLayout | None]:
    """Writes an item by ``torch.save``; returns the extensions it went through, and where its tensor is."""
    target, data = _Target(stream), value.on_host()
    if isinstance(data, torch.Tensor):
        data = without_rest(data)
    elif not isinstance(data, io.BytesIO):
        raise CheckpointError(f"{value.item.index} is a {type(data).__name__}, not a tensor or a BytesIO")
    descriptors: list[str] = []
    try:
        into: Any = target
        if transforms.extensions:
            into, descriptors = transforms.transform_save_stream(value.item, target)
        if isinstance(data, io.BytesIO):
            into.write(data.getbuffer())
        else:
            torch.save(data, into)
        if descriptors:
            # The end of the transformed item; torch keeps it from the file itself.
            into.close()
    except Exception as exc:
        if target.error is None or target.error is exc:
            raise
        raise target.error from exc
    if not descriptors and isinstance(data, torch.Tensor) and is_plain(data):
        start = find_content(bytes(target.head))
        if start is not None:
            return descriptors, TensorLayout(start, data.dtype, tuple(data.shape))
    return descriptors, None


class _Target(io.IOBase):
    """What ``torch.save`` writes to. It keeps the first error: torch puts others in its place.

    The C++ code of torch calls ``write``; when that fails, it fails again while it cleans up, with an
    error about an unexpected position.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: BaseException | None = None
        # The first bytes of the item.
        self.head = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(self.head) < HEAD_SIZE:
            self.head += memoryview(data).cast("B")[: HEAD_SIZE - len(self.head)]
        try:
            return int(self._stream.write(data))
        except BaseException as exc:
            self.error = self.error or exc
            raise

    def tell(self) -> int:
        return int(self._stream.tell())


def _write_tensors(
    stream: Any, file: FilePlan, values: Iterable[HostValue[WriteItem]], check: Callable[[], None]
) -> list[WriteResult]:
    """Writes the tensors of one file in the safetensors format."""
    header, places = make_header(map(_described, file.items), _sharding_texts(file.items))
    stream.write(header)
    results = []
    for value, place in zip(values, places, strict=True):
        check()
        tensor = value.data
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != place.dtype or tensor.shape != place.sizes:
            raise CheckpointError(
                f"{value.item.index} is not the {place.dtype} of {place.sizes} that was planned"
            )
        value.send_elements(stream)
        entry = place.entry(file.name)
        results.append(WriteResult(value.item.index, entry.length, entry))
    return results


def _sharding_texts(items: Sequence[WriteItem]) -> dict[str, str]:
    """Returns what torch's Hugging Face reader wants in a header: where each tensor is in the whole one.

    Beside that is the shape of the whole, which tells when a part at its end is missing.
    """
    found = ((item.index.fqn, item.tensor_data) for item in items)
    chunks = {name: (data.chunk, data.size) for name, data in found if data is not None}
    offsets = {
        name: {SAVED_OFFSETS_KEY: list(chunk.offsets), SHAPE_KEY: list(size)}
        for name, (chunk, size) in chunks.items()
    }
    return {
        CUSTOM_METADATA_KEY: json.dumps(offsets),
        DCP_VERSION_KEY: str(HF_DCP_VERSION),
        FORMAT_KEY: FORMAT_VALUE,
    }


def _described(item: WriteItem) -> tuple[str, torch.dtype, tuple[int, ...]]:
    """Returns name, type and shape of a tensor that will be written."""
    data = item.tensor_data
    if data is None:
        raise CheckpointError(f"{item.index} is an object; the safetensors format holds only tensors")
    return item.index.fqn, data.properties.dtype, tuple(data.chunk.sizes)
