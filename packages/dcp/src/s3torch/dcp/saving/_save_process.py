"""Saves in a process of their own, one for each rank, so that training keeps its interpreter."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.reduction import recv_handle, send_handle
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from s3torch.dcp._metadata import CheckpointError
from s3torch.dcp.saving._staging import mapped, pickled, unpickled

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import torch
    from torch.distributed import ProcessGroup

    from s3torch.dcp.saving._staging import Block

_SECONDS_TO_MEET = 300
_SECONDS_TO_END = 5.0
# Where there are few processors, training goes first.
_NICENESS = 5


@dataclass(frozen=True, slots=True)
class _Meeting:
    """Where the processes of all ranks meet."""

    host: str
    port: int
    rank: int
    ranks: int


class SaveProcess:
    """The other process, which is started by the first save.

    Args:
        group: The ranks that save together; each of them has such a process. ``None`` for one alone.
    """

    def __init__(self, group: ProcessGroup | None) -> None:
        meeting = None if group is None or dist.get_world_size(group) == 1 else _arranged(group)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, meeting), daemon=True, name="s3torch-save"
        )
        self._process.start()
        theirs.close()
        self._sent: Block | None = None

    def is_alive(self) -> bool:
        """Whether it can save."""
        return self._process.is_alive()

    def save(self, options: dict[str, Any], block: Block | None) -> Any:
        """Calls ``torch.distributed.checkpoint.save`` with these options there, and returns its result.

        Tensors in the block are not copied.

        Raises:
            CheckpointError: The process has ended.
            BaseException: What the call has raised.
        """
        memory = None if block is None else block.memory
        try:
            size = 0
            if block is not None and block is not self._sent:
                size = block.memory.nbytes
            self._pipe.send((size, pickled(options, memory)))
            if size and block is not None and block.descriptor is not None:
                send_handle(self._pipe, block.descriptor, self._process.pid)
            self._sent = block
            failure, result = self._pipe.recv()
        except (EOFError, OSError) as exc:
            self._process.join(_SECONDS_TO_END)
            raise CheckpointError(
                f"the process that saves ended with exit code {self._process.exitcode}; the checkpoint "
                "that was there is whole, and the next save starts another process"
            ) from exc
        if failure is not None:
            raise failure
        return result

    def close(self, *, kill: bool = False) -> None:
        """Ends the process, at once or after what it does."""
        if kill:
            self._process.kill()
        self._pipe.close()
        self._process.join(_SECONDS_TO_END)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _arranged(group: ProcessGroup) -> _Meeting:
    """Agrees on where the other processes meet; the first rank chooses."""
    place: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        with socket.socket() as free:
            free.bind(("", 0))
            place = [os.environ.get("MASTER_ADDR") or socket.gethostname(), free.getsockname()[1]]
    dist.broadcast_object_list(place, src=dist.get_global_rank(group, 0), group=group)
    return _Meeting(place[0], place[1], dist.get_rank(group), dist.get_world_size(group))


def _serve(pipe: Connection, meeting: _Meeting | None) -> None:
    """What the other process does."""
    os.nice(_NICENESS)
    warnings.simplefilter("ignore")
    if meeting is not None:
        # The agent of torchrun has a store, but not for these processes.
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://{meeting.host}:{meeting.port}",
            rank=meeting.rank,
            world_size=meeting.ranks,
            timeout=timedelta(seconds=_SECONDS_TO_MEET),
        )
    memory: torch.Tensor | None = None
    # The end of the pipe is the end of the process that trains.
    with suppress(EOFError, OSError):
        while True:
            size, body = pipe.recv()
            if size:
                descriptor = recv_handle(pipe)
                memory = mapped(descriptor, size)
                os.close(descriptor)
            pipe.send(_answer(body, memory))


def _answer(body: bytes, memory: torch.Tensor | None) -> tuple[BaseException | None, Any]:
    try:
        return None, dcp.save(**unpickled(body, memory), no_dist=not dist.is_initialized())
    except BaseException as exc:  # noqa: BLE001 - CheckpointException is none of the others.
        return exc, None
