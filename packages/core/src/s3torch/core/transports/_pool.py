"""Transfers that run on threads: what transports over blocking calls or over memory have in common."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core.errors import S3Error, TransferCancelledError
from s3torch.core.transports._crew import Crew

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# A thread that waits for an answer cannot always be interrupted; it ends by itself when its time is over.
_CLOSE_GRACE_SECONDS = 1.0


class Stop(BaseException):
    """Unwinds the thread of a cancelled transfer, through libraries that catch ``Exception``."""


class PooledTransfer(Future[T]):
    """Work on a thread of a ``TransferPool``.

    The caller's buffer is touched only under the lock of the transfer, or while it is borrowed. Cancelling
    takes the buffer away, so it is prompt and safe also while the thread waits for the network.
    """

    def __init__(
        self,
        work: Callable[[PooledTransfer[T]], T],
        *,
        operation: str,
        bucket: str,
        key: str,
        buffer: memoryview | None = None,
    ) -> None:
        super().__init__()
        self.operation = operation
        self.bucket = bucket
        self.key = key
        self._work: Callable[[PooledTransfer[T]], T] | None = work
        # A view of its own: once it is released, nothing that still refers to it holds the caller's buffer.
        self._buffer = None if buffer is None else memoryview(buffer)
        self.size = 0 if buffer is None else len(buffer)
        self._pool: TransferPool | None = None
        self._lock = threading.Lock()
        self._stopped = False
        # Made only by whoever waits for it: most transfers never pause.
        self._wakes: threading.Event | None = None
        self._decided = False
        self._watched = False
        self._interrupt: Callable[[], object] | None = None
        # Held while the buffer is borrowed, by the thread that is named.
        self._borrowed = threading.Lock()
        self._borrower: int | None = None

    def cancel(self) -> bool:
        """Takes the buffer away and fails the transfer with ``TransferCancelledError``."""
        with self._lock:
            if self._decided:
                return not self.done()
            self._decided = True
            self._work = None
            self._stopped = True
            if self._wakes is not None:
                self._wakes.set()
            pool, interrupt, self._interrupt = self._pool, self._interrupt, None
        if interrupt is not None:
            interrupt()
        # The collector may have come here within the very call that borrows the buffer.
        if self._borrower != threading.get_ident():
            with self._borrowed:
                self._release_buffer()
        if pool is not None:
            pool.finish_cancelled(self)
        return True

    @property
    def stopped(self) -> bool:
        """Tells whether the transfer was cancelled."""
        return self._stopped

    def check(self) -> None:
        """Ends the work if the transfer was cancelled."""
        if self._stopped:
            raise Stop

    def pause(self, seconds: float) -> None:
        """Waits, and ends the work if the transfer is cancelled meanwhile."""
        with self._lock:
            self.check()
            self._wakes = wakes = threading.Event()
        wakes.wait(seconds)
        self.check()

    def on_cancel(self, interrupt: Callable[[], object] | None) -> None:
        """Calls ``interrupt`` when the transfer is cancelled, to wake its thread up."""
        with self._lock:
            self.check()
            self._interrupt = interrupt

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

        Cancelling then waits for ``give_back``, and makes it come soon.

        Args:
            interrupt: Makes the call end in which the buffer is used.
        """
        self._borrowed.acquire()
        self._borrower = threading.get_ident()
        try:
            self.on_cancel(interrupt)
        except Stop:
            self.give_back()
            raise
        return self._buffer

    def give_back(self) -> None:
        """Ends what ``borrow`` began; no view of the buffer may be left."""
        self._interrupt = None
        self._borrower = None
        if self.stopped:
            self._release_buffer()
        self._borrowed.release()

    def result(self, timeout: float | None = None) -> T:
        """Waits for the end and returns what the work was for.

        Work that no thread has begun is done here and now, which spares two changes of threads.
        """
        if timeout is None and self._work is not None and not self._watched and self._pool is not None:
            self._pool.run_here(self)
        return super().result(timeout)

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Calls ``fn`` on a thread of the pool when the work has ended, at once if it has already."""
        self._watched = True
        super().add_done_callback(fn)

    def run(self) -> bool:
        """Does the work, unless somebody has begun it or it was cancelled; tells whether."""
        with self._lock:
            work, self._work = self._work, None
        if work is None:
            return False
        try:
            result = work(self)
        except Stop:
            pass
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self.fail(exc)
        else:
            if self._take_end():
                self._end(self.set_result, result)
        return True

    def fail(self, error: BaseException) -> None:
        """Ends the transfer with an error that names what it was about."""
        if isinstance(error, S3Error) and error.bucket is None:
            error.operation, error.bucket, error.key = self.operation, self.bucket, self.key
        if self._take_end():
            self._end(self.set_exception, error)

    def end_cancelled(self) -> None:
        """Ends a cancelled transfer; called by the pool on one of its threads."""
        self.set_exception(
            TransferCancelledError(
                "the transfer was cancelled",
                operation=self.operation,
                bucket=self.bucket,
                key=self.key,
            )
        )

    def join(self, pool: TransferPool) -> None:
        """Remembers the pool that ends this transfer when it is cancelled."""
        self._pool = pool

    def _take_end(self) -> bool:
        with self._lock:
            if self._decided:
                return False
            self._decided = True
            self._release_buffer()
            return True

    def _end(self, end: Callable[[Any], None], outcome: object) -> None:
        if self._watched and self._pool is not None:
            self._pool.call_inside(end, outcome)
        else:
            end(outcome)

    def _release_buffer(self) -> None:
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()


class TransferPool:
    """The threads of one transport, made as they are needed.

    Args:
        workers: How many transfers run at a time; the others wait for their turn.
        name: The prefix of the names of the threads.
        at_once: How many of them work on large transfers however quick those are; ``None`` for all. More
            contend for the interpreter's lock, which pays only where transfers mostly wait.
    """

    def __init__(self, workers: int, *, name: str, at_once: int | None = None) -> None:
        self._crew = Crew(workers, name, workers if at_once is None else at_once)
        # Callbacks of cancelled transfers run here, because all workers may be waiting for the network.
        self._ender = ThreadPoolExecutor(1, f"{name}-end", initializer=self._crew.enter)
        # Also where a transport is dropped without being closed.
        weakref.finalize(self, self._crew.dismiss).atexit = False

    def start(self, transfer: PooledTransfer[T]) -> PooledTransfer[T]:
        """Queues a transfer and returns it."""
        transfer.join(self)
        if not self._crew.take_on(transfer):
            # No thread works any more, and an open upload still has to be aborted.
            transfer.run()
        return transfer

    def do(self, transfer: PooledTransfer[T]) -> T:
        """Does the work of a transfer on the calling thread, which need not wake up another for it.

        Returns:
            Its result.
        """
        transfer.join(self)
        self._crew.enlist(transfer)
        try:
            transfer.run()
        finally:
            self._crew.leave(transfer)
        return transfer.result()

    def run_here(self, transfer: PooledTransfer[Any]) -> None:
        """Does the work of a transfer on the calling thread, if no thread of the pool has begun it."""
        if transfer.run():
            self._crew.leave(transfer)

    def call_inside(self, function: Callable[..., None], *arguments: object) -> None:
        """Calls a function on a thread of the pool: this one if it is one."""
        if self._crew.is_inside:
            function(*arguments)
        else:
            self._call_later(function, *arguments)

    def finish_cancelled(self, transfer: PooledTransfer[Any]) -> None:
        """Ends a cancelled transfer on a thread of the pool that is not waiting for the network."""
        self._call_later(transfer.end_cancelled)

    def close(self) -> bool:
        """Cancels all transfers and ends the threads.

        Returns:
            Whether all of them have ended; one that waits for the network may take longer.
        """
        self._crew.dismiss()
        self._crew.cancel_all()
        outside = not self._crew.is_inside
        self._ender.shutdown(wait=outside)
        return self._crew.wait(_CLOSE_GRACE_SECONDS if outside else 0)

    def _call_later(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._ender.submit(function, *arguments)
        except RuntimeError:  # The pool or the interpreter is ending at this moment.
            function(*arguments)
