"""Saves that go on while training does."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - It registers what is called at exit, and has to be first.
import logging
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from s3torch.core.errors import ConfigurationError
from s3torch.dcp._metadata import CheckpointError
from s3torch.dcp.saving._save_process import SaveProcess
from s3torch.dcp.saving._staging import Staging

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from torch.distributed import ProcessGroup
    from torch.distributed.checkpoint.planner import SavePlanner
    from torch.distributed.checkpoint.storage import StorageWriter

_log = logging.getLogger(__name__)


class AsyncSaver:
    """Saves distributed checkpoints while training goes on; one object for all saves of a run.

    ``save`` copies the state dict to the host and returns; the upload goes on in a thread or in a process of
    its own. From the second save on the copy goes into memory that is there already, which is the memory of
    one copy and no more. One save is under way at a time. If the program is killed, the last checkpoint that
    was committed is whole.

    Where torch.distributed is in use, all ranks make such an object and call ``save`` alike. The saves have
    process groups of their own (gloo), so they do not meet what training sends.

    Args:
        process: Saves from another process, which has an interpreter of its own: Python code of the training
            loop runs on undisturbed. Tensors are not pickled, but shared. The program needs
            ``if __name__ == "__main__":``, as always with spawned processes.
        when_busy: What ``save`` does while the last save goes on. ``"wait"`` waits for it; ``"skip"`` saves
            nothing, on all ranks, says so in the log, and returns ``None``.
        at_exit: What happens to a save when the program ends, or an error leaves the ``with`` block.
            ``"wait"`` completes it; ``"abort"`` cancels it, with all that its client has in flight, and
            nothing of it becomes visible.
        process_group: The ranks that save together; ``None`` for all.

    Raises:
        ConfigurationError: An argument is wrong. It is also a ``ValueError``.
    """

    def __init__(
        self,
        *,
        process: bool = False,
        when_busy: Literal["wait", "skip"] = "wait",
        at_exit: Literal["wait", "abort"] = "wait",
        process_group: ProcessGroup | None = None,
    ) -> None:
        if when_busy not in {"wait", "skip"}:
            raise ConfigurationError(f"when_busy must be 'wait' or 'skip', got {when_busy!r}")
        if at_exit not in {"wait", "abort"}:
            raise ConfigurationError(f"at_exit must be 'wait' or 'abort', got {at_exit!r}")
        self._in_process = process
        self._when_busy = when_busy
        self._aborts = at_exit == "abort"
        self._group = process_group
        self._own_groups: tuple[ProcessGroup, ProcessGroup] | None = None
        self._staging = Staging(shared=process)
        self._process: SaveProcess | None = None
        self._saving: _Saving | None = None

    def save(
        self,
        state_dict: dict[str, Any],
        *,
        storage_writer: StorageWriter,
        checkpoint_id: str | os.PathLike[str] | None = None,
        planner: SavePlanner | None = None,
    ) -> Future[Any] | None:
        """Starts a save, and returns when the state dict may change again.

        Args:
            state_dict: As for ``torch.distributed.checkpoint.save``.
            storage_writer: Writes the checkpoint.
            checkpoint_id: Where to, if not to the path of the writer.
            planner: Plans the save; ``None`` for torch's.

        Returns:
            A future of the metadata, whose ``result`` raises what has failed; ``None`` if nothing is saved.

        Raises:
            BaseException: What the last save has failed with, unless its ``result`` has told it already.
                Nothing is saved then.
        """
        groups = self._groups()
        if self._is_busy(groups):
            if self._when_busy == "skip":
                _log.warning("no checkpoint is saved, because the last save is still running")
                return None
            self.wait()
        self._raise_failure(groups)
        options: dict[str, Any] = {
            "state_dict": self._staging.stage(state_dict),
            "storage_writer": storage_writer,
            "checkpoint_id": checkpoint_id,
            "planner": planner,
        }
        if self._in_process:
            self._start_process(groups)
        elif groups is not None:
            options["process_group"] = groups[0]
        self._saving = saving = _Saving()
        client = getattr(getattr(storage_writer, "fs", None), "client", None)
        saving.stop = client.close if client is not None and self._aborts else None
        _under_way[saving] = self._aborts
        thread = threading.Thread(target=self._run, args=(options, saving), daemon=True, name="s3torch-save")
        thread.start()
        return saving

    def wait(self) -> None:
        """Waits for the save that is under way, but leaves its failure to ``result`` or the next save."""
        if self._saving is not None:
            self._saving.ended.wait()

    def close(self) -> None:
        """Waits for the save that is under way, and gives memory and process back.

        Raises:
            BaseException: What the save has failed with, unless its ``result`` has told it already.
        """
        try:
            self.wait()
            saving, self._saving = self._saving, None
            if saving is not None:
                saving.raise_unseen()
        finally:
            self._end(kill=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._aborts:
            if self._saving is not None:
                self._saving.abort()
            self._end(kill=True)
        else:
            self.wait()
            if self._saving is not None and self._saving.has_unseen():
                _log.error("the last save has failed: %s", self._saving.exception())
            self._end(kill=False)

    def _end(self, *, kill: bool) -> None:
        if self._process is not None:
            self._process.close(kill=kill)
            self._process = None
        if self._saving is None or self._saving.done():
            self._staging.close()

    def _run(self, options: dict[str, Any], saving: _Saving) -> None:
        try:
            result = self._process.save(options, self._staging.block) if self._process else _save(options)
        except BaseException as exc:  # noqa: BLE001 - The caller gets it.
            options.clear()
            saving.set_exception(exc)
        else:
            options.clear()
            saving.set_result(result)
        finally:
            _under_way.pop(saving, None)
            saving.ended.set()

    def _start_process(self, groups: tuple[ProcessGroup, ProcessGroup] | None) -> None:
        is_there = self._process is not None and self._process.is_alive()
        # They have connections to each other: where one is missing, all start again.
        if _any_of([not is_there], groups)[0]:
            if self._process is not None:
                self._process.close(kill=True)
            self._process = SaveProcess(None if groups is None else groups[1])

    def _groups(self) -> tuple[ProcessGroup, ProcessGroup] | None:
        """Returns a group for saves in a thread, and one for what ranks agree on meanwhile."""
        if not dist.is_available() or not dist.is_initialized():
            return None
        if self._own_groups is None:
            ranks = dist.get_process_group_ranks(self._group or dist.group.WORLD)
            first, second = (
                dist.new_group(ranks, backend="gloo", use_local_synchronization=True) for _ in range(2)
            )
            self._own_groups = first, second
        return self._own_groups

    def _is_busy(self, groups: tuple[ProcessGroup, ProcessGroup] | None) -> bool:
        busy = self._saving is not None and not self._saving.ended.is_set()
        return busy if self._when_busy == "wait" else _any_of([busy], groups)[0]

    def _raise_failure(self, groups: tuple[ProcessGroup, ProcessGroup] | None) -> None:
        saving, self._saving = self._saving, None
        failed = saving is not None and saving.has_unseen()
        if not _any_of([failed], groups)[0]:
            return
        if saving is not None:
            saving.raise_unseen()
        raise CheckpointError("the last save has failed on another rank")


class _Saving(Future[Any]):
    """The future of a save, which remembers whether somebody knows that it has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()
        self.ended = threading.Event()
        self.stop: Callable[[], object] | None = None
        self._is_seen = False
        self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> Any:
        try:
            return super().result(timeout)
        finally:
            self._is_seen = self.done()

    def abort(self) -> None:
        """Cancels what the save has in flight in this process, with which it fails."""
        if self.stop is not None and not self.ended.is_set():
            self.stop()

    def has_unseen(self) -> bool:
        """Whether it has failed, and nobody knows."""
        return not self._is_seen and self.done() and self.exception() is not None

    def raise_unseen(self) -> None:
        """Raises what nobody knows yet."""
        if self.has_unseen():
            self.result()


# The saves of this process, and whether they are aborted when it ends.
_under_way: dict[_Saving, bool] = {}


def _end_all() -> None:
    for saving, aborts in list(_under_way.items()):
        if saving.pid != os.getpid():
            continue  # A child that was forked meanwhile has no thread for it.
        if aborts:
            saving.abort()
        else:
            saving.ended.wait()


# Functions of ``atexit`` are called when no thread can be started any more, which a save needs; these are
# called before, the last one first, and so before that of concurrent.futures.
threading._register_atexit(_end_all)  # type: ignore[attr-defined]


def _save(options: dict[str, Any]) -> Any:
    return dcp.save(**options, no_dist=not dist.is_initialized())


def _any_of(flags: list[bool], groups: tuple[ProcessGroup, ProcessGroup] | None) -> list[bool]:
    """Returns for each flag whether a rank has set it."""
    if groups is None:
        return flags
    found = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=groups[1])
    return [bool(one) for one in found]
