"""How the files of a save are written, several at a time, and what a save has left out."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import chain
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
from s3torch.core.ranges import MIB
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import CHECKSUMS, CRC_WIDTHS, CheckpointError, FileFacts, ItemChecksums, note_facts
from s3torch.dcp._tensors import (
    HEAD_SIZE,
    NOTE,
    TensorLayout,
    archive_frame,
    find_content,
    is_plain,
    noted_layout,
    storage_entry,
)
from s3torch.dcp.hugging_face._safetensors import make_header
from s3torch.dcp.saving._values import HostValues, without_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

    from s3torch.core import PutOptions
    from s3torch.dcp._filesystem import S3FileSystem
    from s3torch.dcp.hugging_face._safetensors import FileTensor
    from s3torch.dcp.saving._plan import FilePlan
    from s3torch.dcp.saving._values import HostValue

T = TypeVar("T")
# What we add to what torch notes of the parts of a tensor: the shape of the whole.
SHAPE_KEY = "global_shape"
# How much has one checksum. Parts of downloads are whole MiB, so none is cut; and of a resharded load little
# has to be fetched in addition.
_PIECE_SIZE = MIB
# The algorithm of a file, and begin, end and CRC of each of its pieces.
Pieces = tuple[str, "Sequence[tuple[int, int, int]]"]


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
) -> tuple[T, FileFacts, Pieces | None]:
    """Writes a file of about ``size`` bytes.

    Returns:
        What ``fill`` returns, which writes them, the facts of the file, and the checksums of its pieces.
    """
    uri = join_path(path, name)
    with fs.create_stream(uri, "wb", put_options=options, expected_size=size) as stream:
        result = fill(stream)
    facts = FileFacts(stream.tell(), getattr(stream, "checksum", None))
    return result, facts, getattr(stream, "piece_checksums", None)


@dataclass(frozen=True, slots=True)
class RankFiles:
    """Writes files with the items of a plan, and notes the size and the checksums of each.

    Tensors are sent from their own memory, which nobody changes before the file is complete.
    """

    fs: S3FileSystem
    path: str
    options: PutOptions
    planner: SavePlanner
    transforms: Any
    copy_ahead: int

    def write(
        self,
        file: FilePlan,
        check: Callable[[], None],
        before: Callable[[Any], list[WriteResult]] = lambda _: [],
        through: Callable[[Any], Any] = lambda stream: stream,
    ) -> list[WriteResult]:
        """Writes one file. Many threads may do so.

        Args:
            file: The file.
            check: Raises when the save has failed elsewhere.
            before: Puts other items at the beginning of the file, and returns their results.
            through: Gives the stream that is written to, for that of the file.
        """

        def fill(stream: Any) -> list[WriteResult]:
            first = before(stream)
            values = HostValues(file.items, self.planner.resolve_data, ahead=self.copy_ahead)
            write = _write_tensors if file.is_safetensors else self._write_archives
            return first + write(through(stream), file, values, check)

        results, facts, pieces = write_file(self.fs, self.path, file.name, fill, self.options, file.size)
        note_facts(results[0].storage_data, facts)
        note_checksums([result.storage_data for result in results], pieces)
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
            begin_piece(stream)
            frame = None
            if not self.transforms.extensions and value.make_plain():
                frame = archive_frame(value.data.dtype, tuple(value.data.shape))
            if frame is None:
                descriptors, layout = _write_whole(stream, value, self.transforms)
            else:
                descriptors, layout = [], frame.layout
                stream.write(frame.head)
                begin_piece(stream)
                value.send(stream)
                begin_piece(stream)
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
    header, places = tensor_layout(file)
    begin_piece(stream)
    stream.write(header)
    results = []
    for value, place in zip(values, places, strict=True):
        check()
        tensor = value.data
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != place.dtype or tensor.shape != place.sizes:
            raise CheckpointError(
                f"{value.item.index} is not the {place.dtype} of {place.sizes} that was planned"
            )
        begin_piece(stream)
        value.send_elements(stream)
        entry = place.entry(file.name)
        results.append(WriteResult(value.item.index, entry.length, entry))
    return results


def tensor_layout(file: FilePlan) -> tuple[bytes, list[FileTensor]]:
    """Returns the beginning of a safetensors file, and where its tensors belong."""
    return make_header(map(_described, file.items), _sharding_texts(file.items))


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


def note_checksums(entries: Iterable[Any], found: Pieces | None) -> None:
    """Notes the checksums of the items of a file at their places in the metadata.

    Args:
        entries: torch's storage entries of the items, with the notes of their layouts.
        found: What ``S3Writer.piece_checksums`` tells of the file; ``None`` notes nothing.
    """
    if found is None:
        return
    algorithm, pieces = found
    crcs = {stop: (start, crc) for start, stop, crc in pieces}
    for entry in entries:
        if getattr(entry, CHECKSUMS, None) is not None:
            # It was copied with what was noted.
            continue
        layout = noted_layout(getattr(entry, NOTE, None), entry.length)
        shapes = [(layout.start, entry.length - layout.stop)] if layout is not None else []
        for head, tail in (*shapes, (0, 0)):
            noted = ItemChecksums(algorithm, _PIECE_SIZE, head, tail, b"")
            values = _values(crcs, entry.offset, noted.borders(entry.length), CRC_WIDTHS[algorithm])
            if values is not None:
                setattr(entry, CHECKSUMS, replace(noted, values=values).note())
                break


def _values(
    crcs: Mapping[int, tuple[int, int]], begin: int, borders: Sequence[int], width: int
) -> bytes | None:
    """Returns the CRCs of what is between borders; ``None`` where those of the file are at other places."""
    values, at = [], begin
    for border in borders:
        start, crc = crcs.get(begin + border, (-1, 0))
        if start != at:
            return None
        at = begin + border
        values.append(crc.to_bytes(width, "big"))
    return b"".join(values)


def begin_piece(stream: Any) -> None:
    """Tells a stream, if it can be told, that what follows gets checksums of its own."""
    begin = getattr(stream, "begin_piece", None)
    if begin is not None:
        begin(_PIECE_SIZE)
