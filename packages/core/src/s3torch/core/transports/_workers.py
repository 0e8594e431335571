"""Transfers that run on worker threads: what transports over blocking calls or over memory have in common."""

from __future__ import annotations

import os
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core._process import ExitPhase, at_exit
from s3torch.core.errors import S3Error, TransferCancelledError
from s3torch.core.ranges import MIB

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.requests import Request
    from s3torch.core.transports._request_target import RequestTarget

T = TypeVar("T")

# A thread that waits for an answer cannot always be interrupted; it ends by itself when its time is over.
_CLOSE_GRACE_SECONDS = 1.0
_LARGE = 1 * MIB
# After so many small transfers in a row there are no more threads than those keep busy, and some to spare.
_HABIT = 64
_SPARE = 2


class Stop(BaseException):
    """Unwinds the thread of a cancelled transfer, through libraries that catch ``Exception``."""


class WorkerTransfer(Future[T]):
    """Work on a thread of a ``WorkerPool``.

    The caller's buffer is touched only under the lock of the transfer, or while it is borrowed. Cancelling
    takes the buffer away, so it is prompt and safe also while the thread waits for the network.
    """

    def __init__(
        self,
        work: Callable[[WorkerTransfer[T]], T],
        *,
        request: Request[T],
        buffer: memoryview | None = None,
    ) -> None:
        super().__init__()
        self.request = request
        self._work: Callable[[WorkerTransfer[T]], T] | None = work
        # A view of its own: once it is released, nothing that still refers to it holds the caller's buffer.
        self._buffer = None if buffer is None else memoryview(buffer)
        self.size = 0 if buffer is None else len(buffer)
        self.is_large = (self.size or len(request.byte_range or ())) >= _LARGE
        # When it was begun, or when its last attempt had a connection.
        self.sent_at = 0.0
        self.pool: WorkerPool | None = None
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self.stopped = self._decided = self._watched = False
        # Made only by whoever waits for it: most transfers never pause.
        self._wakes: threading.Event | None = None
        self._interrupt: Callable[[], object] | None = None
        # Held while the buffer is borrowed.
        self._borrowed = threading.Lock()
        self._borrower: int | None = None

    def cancel(self) -> bool:
        """Takes the buffer away and fails the transfer with ``TransferCancelledError``."""
        with self._lock:
            if self._decided:
                return not self.done()
            self._decided = True
            self._work = None
            self.stopped = True
            if self._wakes is not None:
                self._wakes.set()
            pool, interrupt, self._interrupt = self.pool, self._interrupt, None
        if interrupt is not None:
            interrupt()
        if self._borrower != threading.get_ident():
            with self._borrowed:
                self._release_buffer()
        if pool is not None:
            pool.call_later(self._end_cancelled)
        return True

    def check(self) -> None:
        """Ends the work if the transfer was cancelled."""
        if self.stopped:
            raise Stop

    def pause(self, seconds: float) -> None:
        """Waits, and ends the work if the transfer is cancelled meanwhile."""
        wakes = threading.Event()
        with self._lock:
            self.check()
            self._wakes = wakes
        wakes.wait(seconds)
        self.check()

    def fill(self, position: int, chunk: bytes | memoryview) -> None:
        """Copies a chunk into the caller's buffer."""
        with self._lock:
            self.check()
            if self._buffer is not None:
                self._buffer[position : position + len(chunk)] = chunk

    def copy(self, start: int = 0, stop: int | None = None) -> bytes:
        """Copies bytes out of the caller's buffer."""
        with self._lock:
            self.check()
            return b"" if self._buffer is None else bytes(self._buffer[start:stop])

    def borrow(self, interrupt: Callable[[], object]) -> memoryview | None:
        """Lends the caller's buffer to calls that touch it without the lock, until ``give_back``.

        Cancelling then waits for ``give_back``, and calls ``interrupt`` to make it come soon.
        """
        self._borrower = threading.get_ident()
        self._borrowed.acquire()
        with self._lock:
            if not self.stopped:
                self._interrupt = interrupt
                return self._buffer
        self.give_back()
        raise Stop

    def give_back(self) -> None:
        """Ends what ``borrow`` began; no view of the buffer may be left."""
        self._interrupt = None
        if self.stopped:
            self._release_buffer()
        self._borrowed.release()
        self._borrower = None

    def result(self, timeout: float | None = None) -> T:
        """Waits for the end and returns what the work was for.

        Work that no thread has begun is done here and now, which spares two changes of threads.
        """
        if timeout is None and self._work is not None and not self._watched and self.pool is not None:
            self.pool.run_here(self)
        return super().result(timeout)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Calls ``fn`` on a thread of the pool when the work has ended, at once if it has already."""
        self._watched = True
        super().add_done_callback(fn)

    def run(self) -> bool:
        """Does the work, unless somebody has begun it or it was cancelled; returns whether it did."""
        with self._lock:
            work, self._work = self._work, None
        if work is None:
            return False
        self.sent_at = time.monotonic()
        try:
            result = work(self)
        except Stop:
            pass
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self.fail(exc)
        else:
            self._end(self.set_result, result)
        return True

    def fail(self, error: BaseException) -> None:
        """Ends the transfer with an error that names what it was about."""
        if isinstance(error, S3Error):
            self.request.locate(error)
        self._end(self.set_exception, error)

    def _end_cancelled(self) -> None:
        error = TransferCancelledError("the transfer was cancelled")
        self.request.locate(error)
        self.set_exception(error)

    def _end(self, end: Callable[[Any], None], outcome: object) -> None:
        with self._lock:
            if self._decided:
                return
            self._decided = True
            self._release_buffer()
        if self._watched and self.pool is not None:
            self.pool.call_inside(end, outcome)
        else:
            end(outcome)

    def _release_buffer(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()


class WorkerPool:
    """The threads of one transport, made as they are needed.

    Args:
        workers: How many transfers run at a time; the others wait for their turn.
        name: The prefix of the names of the threads.
        at_once: How many of them work while there are large transfers; ``None`` for all. More contend for the
            interpreter's lock, which pays only where transfers mostly wait.
        target: How many work while all transfers are small; ``None`` for as many as for large ones.
    """

    def __init__(
        self,
        workers: int,
        *,
        name: str,
        at_once: int | None = None,
        target: RequestTarget | None = None,
    ) -> None:
        self._threads = _Threads(workers, name, workers if at_once is None else at_once, target)
        # Callbacks of cancelled transfers run here, because all workers may be waiting for the network.
        self._ender = ThreadPoolExecutor(1, f"{name}-end", initializer=self._threads.enter)
        # Also where a transport is dropped without being closed.
        weakref.finalize(self, self._threads.end).atexit = False

    def start(self, transfer: WorkerTransfer[T]) -> WorkerTransfer[T]:
        """Queues a transfer and returns it."""
        transfer.pool = self
        if not self._threads.submit(transfer):
            # No thread works any more, and an open upload still has to be aborted.
            transfer.run()
        return transfer

    def do(self, transfer: WorkerTransfer[T]) -> T:
        """Does the work of a transfer on the calling thread and returns its result."""
        transfer.pool = self
        self._threads.register(transfer)
        try:
            transfer.run()
        finally:
            self._threads.leave(transfer)
        return transfer.result()

    def run_here(self, transfer: WorkerTransfer[Any]) -> None:
        """Does the work of a transfer on the calling thread, if no thread of the pool has begun it."""
        if transfer.run():
            self._threads.leave(transfer)

    def call_inside(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function on a thread of the pool: this one if it is one."""
        if self._threads.is_inside:
            function(*arguments)
        else:
            self.call_later(function, *arguments)

    def close(self) -> bool:
        """Cancels all transfers and ends the threads.

        Returns:
            Whether all of them have ended; one that waits for the network may take longer.
        """
        self._threads.shutdown()
        self._threads.cancel_all()
        outside = not self._threads.is_inside
        self._ender.shutdown(wait=outside)
        return self._threads.wait(_CLOSE_GRACE_SECONDS if outside else 0)

    def call_later(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function on a thread of the pool that does not wait for the network."""
        try:
            self._ender.submit(function, *arguments)
        except RuntimeError:  # The pool or the interpreter is ending at this moment.
            function(*arguments)


class _Threads:
    """The threads of a pool, which do not keep the pool alive."""

    def __init__(self, size: int, name: str, at_once: int, target: RequestTarget | None) -> None:
        self._size, self._name, self._at_once, self._target = size, name, at_once, target
        # How many small ones there were since the last large one.
        self._small = _HABIT
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
            self.register(transfer)
            if transfer.is_large:
                self._small = 0
            self._idle -= 1
            self._start_threads()
            if not self._count:
                self._idle += 1
                self._live.discard(transfer)
                return False
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
        target = None if self._small < _HABIT else self._target
        return min(self._size, self._at_once if target is None else target.count)

    def _start_threads(self) -> None:
        """Starts threads for transfers that wait for one."""
        while self._idle < 0 and self._count < self._useful:
            name = f"{self._name}_{self._count}"
            try:
                threading.Thread(target=self._work, name=name, daemon=True).start()
            except RuntimeError:  # The interpreter is ending, or there are too many threads.
                return
            self._count += 1
            self._idle += 1

    def _work(self) -> None:
        self.enter()
        while (transfer := self._queue.get()) is not None:
            # Whoever waits for a transfer may have begun it before.
            has_run = transfer.run()
            if has_run and self._idle < 0 and self._target is not None and not transfer.is_large:
                self._target.answered(transfer.sent_at)
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


_all_threads: weakref.WeakSet[_Threads] = weakref.WeakSet()


def _cancel_all() -> None:
    """Leaves no thread in a call that fills a buffer, when the interpreter ends."""
    for threads in list(_all_threads):
        threads.cancel_all()


at_exit(ExitPhase.TRANSFERS, _cancel_all)
