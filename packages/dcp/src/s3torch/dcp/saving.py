"""Writes the files of a rank, several at a time: all of them, or none that a checkpoint would name."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.storage import WriteResult

from s3torch.core.errors import TransferCancelledError
from s3torch.dcp.archives import HEAD_SIZE, TensorLayout, find_content
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.pieces import memory_of
from s3torch.dcp.plan import NOTE
from s3torch.dcp.tensor_files import make_header

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.distributed.checkpoint.planner import SavePlanner, WriteItem

    from s3torch.dcp.plan import FilePlan

__all__ = ["bytes_of", "write_file", "write_files"]

T = TypeVar("T")


def write_files(
    files: Sequence[FilePlan],
    write: Callable[[FilePlan, Callable[[], None]], list[T]],
    *,
    threads: int,
) -> list[T]:
    """Writes files in threads and returns the results of all.

    The first error stops the others, whose uploads are aborted, and is raised. (The threads of torch's own
    writer end in silence when they fail, and leave holes in the checkpoint.)

    Args:
        files: What to write.
        write: Writes one file; it calls its second argument between the items, to be stopped there.
        threads: How many files are written at a time.
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
    stream: io.IOBase,
    file: FilePlan,
    planner: SavePlanner,
    transforms: Any,
    check: Callable[[], None],
) -> list[WriteResult]:
    """Writes the items of one file, one after the other, each a whole archive of ``torch.save``.

    (Or all in the safetensors format, if the plan says so.)

    Args:
        stream: The file.
        file: What goes into it.
        planner: Gives the data, asked as late as possible.
        transforms: The extensions of torch's writer.
        check: Called before each item.
    """
    if file.is_safetensors:
        return _write_tensors(stream, file, planner, check)
    target = _Target(stream)
    try:
        return [_write_item(target, file.name, item, planner, transforms, check) for item in file.items]
    except Exception as exc:
        if target.error is None or target.error is exc:
            raise
        raise target.error from exc


def _write_tensors(
    stream: io.IOBase,
    file: FilePlan,
    planner: SavePlanner,
    check: Callable[[], None],
) -> list[WriteResult]:
    """Writes the tensors of one file in the safetensors format, each straight from its memory.

    Args:
        stream: The file.
        file: What goes into it, tensors only.
        planner: Gives the data, asked as late as possible.
        check: Called before each tensor.
    """
    described = (_described(item) for item in file.items)
    header, places = make_header(described, _sharding_texts(file.items))
    stream.write(header)
    results = []
    for item, place in zip(file.items, places, strict=True):
        check()
        tensor = planner.resolve_data(item)
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != place.dtype or tensor.shape != place.sizes:
            raise CheckpointError(f"{item.index} is not the {place.dtype} of {place.sizes} that was planned")
        stream.write(bytes_of(tensor))
        info = _StorageInfo(file.name, place.start, place.stop - place.start)
        setattr(info, NOTE, TensorLayout(0, place.dtype, place.sizes).note())
        results.append(WriteResult(index=item.index, size_in_bytes=info.length, storage_data=info))
    return results


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Returns the elements of a tensor in order; without a copy where they are so on the CPU."""
    if not tensor.nbytes:
        return memoryview(b"")
    return memory_of(tensor.detach().cpu().resolve_conj().resolve_neg().contiguous())


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
    """Tells name, type and shape of a tensor that will be written."""
    data = item.tensor_data
    if data is None:
        raise CheckpointError(f"{item.index} is an object; the safetensors format holds only tensors")
    return item.index.fqn, data.properties.dtype, tuple(data.chunk.sizes)


class _Target(io.IOBase):
    """What ``torch.save`` writes to. It keeps the first error: torch puts others in its place.

    The C++ code of torch calls ``write``; when that fails, it fails again while it cleans up, with an
    error about an unexpected position.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: BaseException | None = None
        # The first bytes of the current item.
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


def _write_item(
    target: _Target,
    name: str,
    item: WriteItem,
    planner: SavePlanner,
    transforms: Any,
    check: Callable[[], None],
) -> WriteResult:
    check()
    offset = target.tell()
    data = planner.resolve_data(item)
    if isinstance(data, torch.Tensor):
        data = _on_cpu(data)
    target.head.clear()
    descriptors = _write_value(target, item, data, transforms)
    length = target.tell() - offset
    place = _StorageInfo(name, offset, length, transform_descriptors=descriptors or None)
    if not descriptors and isinstance(data, torch.Tensor) and _is_plain(data):
        start = find_content(bytes(target.head))
        if start is not None:
            setattr(place, NOTE, TensorLayout(start, data.dtype, tuple(data.shape)).note())
    return WriteResult(index=item.index, size_in_bytes=length, storage_data=place)


def _write_value(target: _Target, item: WriteItem, data: Any, transforms: Any) -> list[str]:
    stream: Any = target
    descriptors: list[str] = []
    if transforms.extensions:
        stream, descriptors = transforms.transform_save_stream(item, target)
    if isinstance(data, io.BytesIO):
        stream.write(data.getbuffer())
    elif isinstance(data, torch.Tensor):
        torch.save(data, stream)
    else:
        raise CheckpointError(f"{item.index} is a {type(data).__name__}, not a tensor or a BytesIO")
    if descriptors:
        # The end of the transformed item; torch keeps it from the file itself.
        stream.close()
    return descriptors


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    if tensor.untyped_storage().size() == tensor.nbytes:
        return tensor
    # Of a view, torch would save the whole storage.
    if type(tensor) is torch.Tensor and _is_plain(tensor):
        return torch.frombuffer(memory_of(tensor), dtype=tensor.dtype).view(tensor.shape)
    return tensor.clone()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tells whether the bytes of a tensor are just its elements, in order."""
    return bool(
        tensor.layout == torch.strided
        and tensor.nbytes
        and tensor.is_contiguous()
        and not tensor.is_quantized
        and not tensor.is_conj()
        and not tensor.is_neg()
    )
