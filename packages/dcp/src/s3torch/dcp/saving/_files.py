"""Writes the files of a rank, several at a time: all of them, or none that a checkpoint would name."""

from __future__ import annotations

import io
import json
import logging
import threading
import uuid
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
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

from s3torch.core.errors import S3Error, TransferCancelledError
from s3torch.dcp._filesystem import join_path
from s3torch.dcp._metadata import CheckpointError, FileFacts, note_facts
from s3torch.dcp._tensors import (
    HEAD_SIZE,
    TensorLayout,
    archive_frame,
    find_content,
    is_plain,
    memory_of,
    storage_entry,
)
from s3torch.dcp.hugging_face._safetensors import make_header
from s3torch.dcp.saving._commit import is_refused
from s3torch.dcp.saving._values import HostValues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

    from s3torch.core import PutOptions
    from s3torch.dcp._filesystem import S3FileSystem
    from s3torch.dcp.saving._plan import FilePlan
    from s3torch.dcp.saving._values import HostValue

T = TypeVar("T")
_log = logging.getLogger(__name__)


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


class NewFiles:
    """Writes files beside those that are there; many threads may do so.

    Where nothing is, files have their plain names, and S3 is asked to refuse a name that is taken, as it is
    when another job saves to the same path. Then, and wherever there was something before, the names contain
    an id of this save. So no file that a checkpoint may name is written over.

    Args:
        fs: The file system.
        path: The URI of the checkpoint.
        options: How the files are stored.
        plain: Nothing is there that has the plain names.
    """

    def __init__(self, fs: S3FileSystem, path: str, *, options: PutOptions, plain: bool) -> None:
        self._fs = fs
        self._path = path
        self._options = options
        self._plain = plain
        self._save_id = uuid.uuid4().hex[:16]

    def write(self, file: FilePlan, fill: Callable[[io.IOBase, FilePlan], T]) -> tuple[T, FileFacts]:
        """Writes one file, and returns what ``fill`` has returned, and size and checksum.

        ``fill`` writes the content; it is told the file with its name, and called again where that changes.
        """
        if self._plain:
            try:
                return self._write(file, fill, replace(self._options, if_none_match="*"))
            except S3Error as exc:
                if not is_refused(exc):
                    raise
                _log.debug("%s gets another name: %s", file.name, exc)
                self._plain = False
        return self._write(file.named_for(self._save_id), fill, self._options)

    def _write(
        self, file: FilePlan, fill: Callable[[io.IOBase, FilePlan], T], options: PutOptions
    ) -> tuple[T, FileFacts]:
        uri = join_path(self._path, file.name)
        with self._fs.create_stream(uri, "wb", put_options=options, expected_size=file.size) as stream:
            result = fill(stream, file)
        return result, FileFacts(stream.tell(), getattr(stream, "checksum", None))


class RankFiles:
    """Writes files with the items of a plan, and notes the size and the checksum of each.

    Tensors are sent from their own memory, which nobody changes before the file is complete.
    """

    def __init__(self, files: NewFiles, planner: SavePlanner, transforms: Any, *, copy_ahead: int) -> None:
        self._files = files
        self._planner = planner
        self._transforms = transforms
        self._copy_ahead = copy_ahead

    def write(self, file: FilePlan, check: Callable[[], None]) -> list[WriteResult]:
        """Writes one file. Many threads may do so."""

        def fill(stream: Any, named: FilePlan) -> list[WriteResult]:
            values = HostValues(named.items, self._planner.resolve_data, ahead=self._copy_ahead)
            write = _write_tensors if named.is_safetensors else self._write_archives
            return write(stream, named, values, check)

        results, facts = self._files.write(file, fill)
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
            if value.is_plain and not self._transforms.extensions:
                frame = archive_frame(value.data.dtype, tuple(value.data.shape))
            if frame is None:
                descriptors, layout = _write_whole(stream, value, self._transforms)
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
        data = _without_rest(data)
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


def _without_rest(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor whose storage has nothing else; of a view, torch would save the whole storage."""
    if tensor.untyped_storage().size() == tensor.nbytes:
        return tensor
    if is_plain(tensor):
        return torch.frombuffer(memory_of(tensor), dtype=tensor.dtype).view(tensor.shape)
    return tensor.clone()


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
    """Returns what torch's Hugging Face reader wants in a header: where each tensor is in the whole one."""
    chunks = {item.index.fqn: item.tensor_data.chunk for item in items if item.tensor_data is not None}
    offsets = {name: {SAVED_OFFSETS_KEY: list(chunk.offsets)} for name, chunk in chunks.items()}
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
