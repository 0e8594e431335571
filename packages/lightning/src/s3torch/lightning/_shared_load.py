"""One rank downloads a checkpoint and hands its bytes to the others."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core import S3Reader

T = TypeVar("T")
_CHUNK = 64 * 1024 * 1024


def ranks_are_many() -> bool:
    """Whether this is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def told_by_rank_0(work: Callable[[], T]) -> T:
    """Returns on all ranks what a function returns on rank 0; all ranks have to come here.

    Raises:
        Exception: The function raised it; all ranks raise the same.
    """
    if not ranks_are_many():
        return work()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except Exception as error:  # noqa: BLE001 - The other ranks wait for it.
            told[1] = error
    dist.broadcast_object_list(told, src=0)
    if told[1] is not None:
        raise told[1]
    result: T = told[0]
    return result


def load_from_rank_0(open_reader: Callable[[], S3Reader]) -> mmap.mmap:
    """Returns a file in memory with the bytes that rank 0 reads; all ranks have to come here.

    Raises:
        S3Error: Rank 0 could not read it; all ranks raise the same.
    """
    files: list[mmap.mmap] = []

    def download() -> int:
        files.append(_downloaded(open_reader))
        return len(files[0])

    size = told_by_rank_0(download)
    file = files[0] if files else mmap.mmap(-1, size)
    _broadcast(file)
    return file


def _downloaded(open_reader: Callable[[], S3Reader]) -> mmap.mmap:
    with open_reader() as reader:
        size = reader.size
        pages = mmap.mmap(-1, max(1, size))
        with memoryview(pages) as view:
            done = 0
            while done < size and (count := reader.readinto(view[done:])):
                done += count
    return pages


def _broadcast(file: mmap.mmap) -> None:
    whole = torch.frombuffer(file, dtype=torch.uint8)
    on_gpu = "nccl" in str(dist.get_backend())
    for piece in whole.split(_CHUNK):
        sent = piece.to(torch.device("cuda", torch.cuda.current_device())) if on_gpu else piece
        dist.broadcast(sent, src=0)
        if on_gpu and dist.get_rank() != 0:
            piece.copy_(sent)
