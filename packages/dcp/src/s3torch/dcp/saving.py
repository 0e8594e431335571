"""Writes the files of a rank, several at a time: all of them, or none that a checkpoint would name."""

from __future__ import annotations

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
from s3torch.dcp.archive_writing import ArchiveWriter
from s3torch.dcp.archives import TensorLayout
from s3torch.dcp.errors import CheckpointError
from s3torch.dcp.host_values import HostValues
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
    stream: Any,
    file: FilePlan,
    planner: SavePlanner,
    transforms: Any,
    check: Callable[[], None],
    *,
    copy_ahead: int,
) -> list[WriteResult]:
    """Writes the items of one file, one after the other, as archives or in the safetensors format.

    Tensors are sent from their own memory, which nobody changes before the file is complete.

    Args:
        stream: The file.
        file: What goes into it.
        planner: Gives the data, asked as late as possible.
        transforms: The extensions of torch's writer.
        check: Called before each item.
        copy_ahead: How many bytes are copied ahead from an accelerator.
    """
    values = HostValues(file.items, planner.resolve_data, ahead=copy_ahead)
    if file.is_safetensors:
        return _write_tensors(stream, file, values, check)
    archives = ArchiveWriter(stream, file.name, transforms)
    results = []
    for value in values:
        check()
        results.append(archives.write(value))
    return results


def _write_tensors(
    stream: Any, file: FilePlan, values: HostValues[WriteItem], check: Callable[[], None]
) -> list[WriteResult]:
    """Writes the tensors of one file in the safetensors format."""
    described = (_described(item) for item in file.items)
    header, places = make_header(described, _sharding_texts(file.items))
    stream.write(header)
    results = []
    for value, place in zip(values, places, strict=True):
        check()
        tensor = value.data
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != place.dtype or tensor.shape != place.sizes:
            raise CheckpointError(
                f"{value.item.index} is not the {place.dtype} of {place.sizes} that was planned"
            )
        if value.is_plain:
            value.send(stream)
        else:
            stream.write(bytes_of(tensor))
        info = _StorageInfo(file.name, place.start, place.stop - place.start)
        setattr(info, NOTE, TensorLayout(0, place.dtype, place.sizes).note())
        results.append(WriteResult(index=value.item.index, size_in_bytes=info.length, storage_data=info))
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
