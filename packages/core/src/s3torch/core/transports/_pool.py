"""Transfers that run on threads: what transports over a blocking library or over memory have in common."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core.errors import S3Error, TransferCancelledError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# A thread that waits for an answer cannot be interrupted; it ends by itself when its time is over.
_CLOSE_GRACE_SECONDS = 1.0


class Stop(BaseException):
    """Unwinds the thread of a cancelled transfer, through libraries that catch ``Exception``."""


class PooledTransfer(Future[T]):
    """Work on a thread of a ``TransferPool``.

    The caller's buffer is touched only under the lock of the transfer. Cancelling takes the buffer away, so
    it is prompt and safe also while the thread waits for the network.
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
        self._buffer = buffer
        self._pool: TransferPool | None = None
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._decided = False
        self._interrupt: Callable[[], object] | None = None

    def cancel(self) -> bool:
        """Takes the buffer away and fails the transfer with ``TransferCancelledError``."""
        with self._lock:
            if self._decided:
                return not self.done()
            self._decide()
            self._stopped.set()
            pool, interrupt, self._interrupt = self._pool, self._interrupt, None
        if interrupt is not None:
            interrupt()
        if pool is not None:
            pool.finish_cancelled(self)
        return True

    @property
    def stopped(self) -> bool:
        """Tells whether the transfer was cancelled."""
        return self._stopped.is_set()

    def check(self) -> None:
        """Ends the work if the transfer was cancelled."""
        if self.stopped:
            raise Stop

    def pause(self, seconds: float) -> None:
        """Waits, and ends the work if the transfer is cancelled meanwhile."""
        self._stopped.wait(seconds)
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

    def run(self) -> None:
        """Does the work; called by the pool on one of its threads."""
        work = self._work
        if work is None:
            return
        try:
            result = work(self)
        except Stop:
            return
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self.fail(exc)
        else:
            if self._take_end():
                self.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Ends the transfer with an error that names what it was about."""
        if isinstance(error, S3Error) and error.bucket is None:
            error.operation, error.bucket, error.key = self.operation, self.bucket, self.key
        if self._take_end():
            self.set_exception(error)

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
            self._decide()
            return True

    def _decide(self) -> None:
        self._decided = True
        self._buffer = None
        self._work = None


class TransferPool:
    """The threads of one transport, made as they are needed.

    Args:
        workers: How many transfers run at a time; the others wait for their turn.
        name: The prefix of the names of the threads.
    """

    def __init__(self, workers: int, *, name: str) -> None:
        self._workers = ThreadPoolExecutor(workers, name, initializer=self._enter)
        # Callbacks of cancelled transfers run here, because all workers may be waiting for the network.
        self._ender = ThreadPoolExecutor(1, f"{name}-end", initializer=self._enter)
        self._lock = threading.RLock()  # The collector may abort a dropped upload in here.
        self._threads: set[int] = set()
        self._live: dict[PooledTransfer[Any], Future[None]] = {}
        self._closed = False

    def start(self, transfer: PooledTransfer[T]) -> PooledTransfer[T]:
        """Queues a transfer and returns it."""
        transfer.join(self)
        with self._lock:
            if self._closed:
                raise ValueError("the transport is closed")
            submitted = self._submit(transfer)
        if not submitted:
            # No thread works any more, and an open upload still has to be aborted.
            transfer.run()
        return transfer

    def finish_cancelled(self, transfer: PooledTransfer[Any]) -> None:
        """Ends a cancelled transfer on a thread of the pool."""
        try:
            self._ender.submit(transfer.end_cancelled)
        except RuntimeError:  # The pool or the interpreter is ending at this moment.
            transfer.end_cancelled()

    def close(self) -> bool:
        """Cancels all transfers and ends the threads.

        Returns:
            Whether all of them have ended; one that waits for the network may take longer.
        """
        with self._lock:
            if self._closed:
                return not self._live
            self._closed = True
            live = dict(self._live)
        for transfer in live:
            transfer.cancel()
        outside = threading.get_ident() not in self._threads
        self._ender.shutdown(wait=outside)
        if outside:
            wait(live.values(), _CLOSE_GRACE_SECONDS)
        self._workers.shutdown(wait=False)
        return all(future.done() for future in live.values())

    def _enter(self) -> None:
        self._threads.add(threading.get_ident())

    def _submit(self, transfer: PooledTransfer[Any]) -> bool:
        try:
            self._live[transfer] = self._workers.submit(self._run, transfer)
        except RuntimeError:  # The interpreter is ending.
            return False
        return True

    def _run(self, transfer: PooledTransfer[Any]) -> None:
        try:
            transfer.run()
        finally:
            with self._lock:
                self._live.pop(transfer, None)
