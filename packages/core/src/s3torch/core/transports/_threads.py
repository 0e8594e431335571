"""The threads of a pool: as many as transfers keep busy."""

from __future__ import annotations

import os
import threading
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from s3torch.core._process import ExitPhase, at_exit

if TYPE_CHECKING:
    from s3torch.core.transports._request_target import RequestTarget
    from s3torch.core.transports._workers import WorkerTransfer

# After so many small transfers in a row there are no more threads than those keep busy, and some to spare.
_HABIT = 64
_SPARE = 2


class Threads:
    """The threads of a pool, which do not keep the pool alive."""

    def __init__(self, size: int, name: str, at_once: int, target: RequestTarget | None) -> None:
        self._size = size
        self._at_once = at_once
        self._target = target
        # How many small ones there were since the last large one.
        self._small = _HABIT
        self._name = name
        self._queue: SimpleQueue[WorkerTransfer[Any] | None] = SimpleQueue()
        self._changed = threading.Condition()
        self._live: set[WorkerTransfer[Any]] = set()
        # Those that a thread will take from the queue, if only to see that they have been done elsewhere.
        self._promised: set[WorkerTransfer[Any]] = set()
        self._inside: set[int] = set()
        self._count = 0
        # Threads that wait and are not promised to a transfer yet; below 0, transfers that wait for a thread.
        self._idle = 0
        self._closed = False
        self._owner_process = os.getpid()
        _all_threads.add(self)

    def submit(self, transfer: WorkerTransfer[Any]) -> bool:
        with self._changed:
            if self._closed:
                raise ValueError("the transport is closed")
            if transfer.is_large:
                self._small = 0
            self._idle -= 1
            self._start_threads()
            if not self._count:
                self._idle += 1
                return False
            self._live.add(transfer)
            self._promised.add(transfer)
            self._queue.put(transfer)
        return True

    def register(self, transfer: WorkerTransfer[Any]) -> None:
        with self._changed:
            if self._closed:
                raise ValueError("the transport is closed")
            self._live.add(transfer)

    def shutdown(self) -> None:
        with self._changed:
            self._closed = True
        self.end()

    def end(self) -> None:
        self._queue.put(None)  # Without a lock: a finalizer calls it.

    def cancel_all(self) -> None:
        if self._owner_process == os.getpid():
            for transfer in list(self._live):
                transfer.cancel()

    def wait(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, seconds)

    def enter(self) -> None:
        self._inside.add(threading.get_ident())

    @property
    def is_inside(self) -> bool:
        return threading.get_ident() in self._inside

    def leave(self, transfer: WorkerTransfer[Any]) -> None:
        with self._changed:
            self._live.discard(transfer)
            self._free(transfer)
            if self._closed:
                self._changed.notify_all()

    def _free(self, transfer: WorkerTransfer[Any]) -> None:
        # The thread that was promised to it is there for others, also before it knows.
        if transfer in self._promised:
            self._promised.remove(transfer)
            self._idle += 1

    @property
    def _useful(self) -> int:
        """How many threads there may be: no more than can be kept busy with answers."""
        if self._target is None or self._small < _HABIT:
            return min(self._size, self._at_once)
        return min(self._size, self._target.count)

    def _start_threads(self) -> None:
        """Starts threads for transfers that wait for one."""
        while self._idle < 0 and self._count < self._useful and self._start_thread():
            self._idle += 1

    def _start_thread(self) -> bool:
        name = f"{self._name}_{self._count}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:  # The interpreter is ending, or there are too many threads.
            return False
        self._count += 1
        return True

    def _work(self) -> None:
        self.enter()
        while (transfer := self._queue.get()) is not None:
            # Whoever waits for a transfer may have begun it before.
            has_run = transfer.run()
            if has_run and self._target is not None and not transfer.is_large:
                self._target.answered(transfer.sent_at, is_full=self._idle < 0)
            with self._changed:
                self._free(transfer)
                self._small += has_run
                if has_run or transfer.stopped:
                    self.leave(transfer)
                if not self._closed and self._count > self._useful + _SPARE:
                    self._count -= 1
                    self._idle -= 1
                    self._inside.discard(threading.get_ident())
                    return
                self._start_threads()
            del transfer
        # The next thread ends as well.
        self._queue.put(None)


_all_threads: weakref.WeakSet[Threads] = weakref.WeakSet()


def _cancel_all() -> None:
    """Leaves no thread in a call that fills a buffer, when the interpreter ends."""
    for threads in list(_all_threads):
        threads.cancel_all()


at_exit(ExitPhase.TRANSFERS, _cancel_all)
