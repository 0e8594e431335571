"""One rank downloads a checkpoint and hands its bytes to the others."""

from __future__ import annotations

import mmap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core import S3Reader

_CHUNK = 64 * 1024 * 1024


def ranks_are_many() -> bool:
    """Whether this is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def load_from_rank_0(open_reader: Callable[[], S3Reader]) -> Iterator[mmap.mmap]:
    """Gives a file in memory with the bytes that rank 0 reads; all ranks have to come here.

    Raises:
        BaseException: Rank 0 could not read it; all ranks raise the same.
    """
    pages: mmap.mmap | None = None
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            pages = _downloaded(open_reader)
            told = [len(pages)]
        except Exception as error:  # noqa: BLE001 - The other ranks wait for it.
            told = [error]
    dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], BaseException):
        raise told[0]
    file = mmap.mmap(-1, told[0]) if pages is None else pages
    _broadcast(file)
    yield file


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
