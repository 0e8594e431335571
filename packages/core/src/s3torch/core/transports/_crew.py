"""The threads of a pool of transfers: how many there are, and what they work on."""

from __future__ import annotations

import os
import threading
import time
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from s3torch.core._atexit import ExitPhase, at_exit
from s3torch.core.ranges import MIB

if TYPE_CHECKING:
    from s3torch.core.transports._pool import PooledTransfer

# About what one interpreter takes in of small answers.
_ANSWERS_PER_SECOND = 4000
_FORGETTING = 1.002
# After so many small transfers in a row there are no more threads than those keep busy, and some to spare.
_HABIT = 64
_LARGE = 1 * MIB
_FEWEST = 4
_SPARE = 2


class Crew:
    """The threads of a pool, which do not keep the pool alive."""

    def __init__(self, size: int, name: str, at_once: int) -> None:
        self._size = size
        self._at_once = at_once
        # The seconds of the quickest transfer, which those after it make forgotten by and by.
        self._quickest = 0.0
        # How many small ones there were since the last large one.
        self._small = 0
        self._name = name
        self._queue: SimpleQueue[PooledTransfer[Any] | None] = SimpleQueue()
        # Reentrant, because the collector may abort a dropped upload in here.
        self._changed = threading.Condition(threading.RLock())
        self._live: set[PooledTransfer[Any]] = set()
        # Those that a thread will take from the queue, if only to see that they have been done elsewhere.
        self._promised: set[PooledTransfer[Any]] = set()
        self._inside: set[int] = set()
        self._count = 0
        # Threads that wait and are not promised to a transfer yet; below 0, transfers that wait for a thread.
        self._idle = 0
        self._closed = False
        self._process = os.getpid()
        _crews.add(self)

    def take_on(self, transfer: PooledTransfer[Any]) -> bool:
        """Gives a transfer to a thread; ``False`` if there is none and none can be started any more."""
        with self._changed:
            if self._closed:
                raise ValueError("the transport is closed")
            if transfer.size >= _LARGE:
                self._small = 0
            if self._idle <= 0 and self._count < self._useful and self._start_thread():
                self._idle += 1
            if not self._count:
                return False
            self._idle -= 1
            self._live.add(transfer)
            self._promised.add(transfer)
            self._queue.put(transfer)
        return True

    def enlist(self, transfer: PooledTransfer[Any]) -> None:
        """Takes note of a transfer that the calling thread works for."""
        with self._changed:
            if self._closed:
                raise ValueError("the transport is closed")
            self._live.add(transfer)

    def dismiss(self) -> None:
        """Lets the threads end when they have done what they have."""
        with self._changed:
            if not self._closed:
                self._closed = True
                for _ in range(self._count):
                    self._queue.put(None)

    def cancel_all(self) -> None:
        """Cancels all transfers of this process."""
        if self._process == os.getpid():
            with self._changed:
                live = list(self._live)
            for transfer in live:
                transfer.cancel()

    def wait(self, seconds: float) -> bool:
        """Waits until all transfers have ended; tells whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._live, seconds)

    def enter(self) -> None:
        """Takes note that the calling thread is one of the pool's."""
        self._inside.add(threading.get_ident())

    @property
    def is_inside(self) -> bool:
        """Tells whether the calling thread is one of the pool's."""
        return threading.get_ident() in self._inside

    def leave(self, transfer: PooledTransfer[Any]) -> None:
        """Takes note that nobody works for a transfer any more."""
        with self._changed:
            self._live.discard(transfer)
            self._free(transfer)
            if self._closed:
                self._changed.notify_all()

    def _free(self, transfer: PooledTransfer[Any]) -> None:
        """Has the thread that was promised to a transfer for others, also before it knows."""
        if transfer in self._promised:
            self._promised.remove(transfer)
            self._idle += 1

    @property
    def _useful(self) -> int:
        """How many threads there may be: no more than can be kept busy with answers."""
        fewest = self._at_once if self._small < _HABIT else min(self._at_once, _FEWEST)
        return min(self._size, max(fewest, int(self._quickest * _ANSWERS_PER_SECOND)))

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
            begun = time.monotonic()
            has_run = transfer.run()
            seconds = time.monotonic() - begun
            with self._changed:
                self._free(transfer)
                if has_run:
                    self._small += 1
                    self._quickest = min(seconds, self._quickest * _FORGETTING or seconds)
                if has_run or transfer.stopped:
                    self.leave(transfer)
                if not self._closed and self._count > self._useful + _SPARE:
                    self._count -= 1
                    self._idle -= 1
                    self._inside.discard(threading.get_ident())
                    return
            del transfer


_crews: weakref.WeakSet[Crew] = weakref.WeakSet()


def _cancel_all() -> None:
    """Leaves no thread in a call that fills a buffer, when the interpreter ends."""
    for crew in list(_crews):
        crew.cancel_all()


at_exit(ExitPhase.TRANSFERS, _cancel_all)
