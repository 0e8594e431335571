"""The life of a process: fork safety, what is done with what was dropped, and how the interpreter ends.

Native clients, their threads and their locks do not survive a fork: a client of the parent that is used in
the child hangs, and one that is destroyed there may hang as well. So whatever is bound to a process is held
by a ``PerProcess``, which makes a new one in the child and never touches the inherited one again.

A finalizer may run anywhere, also in the midst of a call that holds a lock. So it neither sends nor waits: it
hands what is left to do over to the reaper of the process, one thread. At exit there are phases.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import os
import threading
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager
from enum import IntEnum
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from s3torch.core.errors import ForkedProcessError, S3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

P = ParamSpec("P")
T = TypeVar("T")

# Then a fork goes on; a thread may wait for a network that is not there.
_LONGEST_MAKING = 5.0
_EXIT_SECONDS = 30.0

_log = logging.getLogger(__name__)


def abandon(value: object) -> None:
    """Keeps an inherited native object for ever, so that no destructor of it runs in this process."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


class PerProcess(Generic[T]):
    """A value that every process makes for itself at its first use.

    Threads of one process share the value. It is left out of pickles.

    Attributes:
        value: That of this process, ``None`` before it was made.
    """

    def __init__(self, factory: Callable[[], T]) -> None:
        self._factory = factory
        self._reset()
        _holders.add(self)

    def _reset(self) -> None:
        # Reentrant, because making imports modules and allocates much: a file that wraps a reader or writer
        # may be closed in there by the collector, and a signal handler may come.
        self._lock = threading.RLock()
        self.value: T | None = None

    def get(self) -> T:
        """Returns the value of this process and makes it first if there is none."""
        value = self.value
        if value is None:
            with self._lock:
                value = self.value
                if value is None:
                    with _making:
                        value = self.value = self._factory()
        return value

    def take(self) -> T | None:
        """Returns the value of this process if there is one, and forgets it."""
        with self._lock:
            value, self.value = self.value, None
        return value

    def after_fork_in_child(self) -> None:
        """Forgets the parent's value without touching it, and a lock that a thread of the parent may hold."""
        if self.value is not None:
            abandon(self.value)
        self._reset()

    def __reduce__(self) -> tuple[Any, ...]:
        return (PerProcess, (self._factory,))


class _Making:
    """The threads that make values, which a fork waits for.

    They import modules. A child would find a module locked that a thread of its parent was importing, and
    wait for ever.
    """

    def __init__(self) -> None:
        self.after_fork_in_child()

    def after_fork_in_child(self) -> None:
        """Forgets the threads of the parent."""
        self._changed = threading.Condition()
        self._threads: Counter[int] = Counter()

    def before_fork(self) -> None:
        self._changed.acquire()
        own = threading.get_ident()
        self._changed.wait_for(lambda: not self._threads.keys() - {own}, _LONGEST_MAKING)

    def after_fork_in_parent(self) -> None:
        self._changed.release()

    def __enter__(self) -> None:
        with self._changed:
            self._threads[threading.get_ident()] += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            own = threading.get_ident()
            self._threads[own] -= 1
            if not self._threads[own]:
                del self._threads[own]
            self._changed.notify_all()


def start_thread(target: Callable[..., object], *arguments: object, name: str) -> threading.Thread:
    """Starts a thread that does not keep the interpreter alive.

    Raises:
        S3Error: The interpreter is ending, or there are too many threads.
    """
    thread = threading.Thread(target=target, args=arguments, name=name, daemon=True)
    with _thread_errors():
        thread.start()
    return thread


def submit(
    pool: ThreadPoolExecutor, function: Callable[P, T], *arguments: P.args, **options: P.kwargs
) -> Future[T]:
    """Has a function called on a thread of a pool that is open.

    Raises:
        S3Error: The interpreter is ending, or there are too many threads.
    """
    with _thread_errors():
        return pool.submit(function, *arguments, **options)


@contextmanager
def _thread_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:
        raise S3Error(
            f"no thread can be started ({exc}): the interpreter is ending, or there are too many threads; "
            "use S3 before the program ends, not in atexit functions and finalizers"
        ) from exc


def forked(what: str, pid: int) -> ForkedProcessError:
    """Returns the error for what was opened in another process, before the fork that made this one."""
    return ForkedProcessError(
        f"{what} was opened in process {pid} and cannot be used in its forked child {here}; "
        "open another one here"
    )


_holders: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
_making = _Making()
# The id of this process, which readers and writers compare with that in which they were opened. They ask
# several times for each object, and the system takes longer to tell.
here = os.getpid()


def _after_fork_in_child() -> None:
    global here  # noqa: PLW0603 - It is about the process.
    here = os.getpid()
    _making.after_fork_in_child()
    holders = list(_holders)
    if any(holder.value is not None for holder in holders):
        # What the parent has dropped, but its collector has not found yet, may be native as well, and its
        # destructors may wait for locks that threads of the parent held at this moment.
        gc.freeze()
    for holder in holders:
        holder.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_making.before_fork,
        after_in_parent=_making.after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


class Reaper:
    """Ends what was dropped, one after the other, on a thread of its own.

    Make it where work begins (``reaper.get()``), not in a finalizer, which could not start a thread.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        start_thread(self._work, name="s3torch-reaper")

    def take(self, end: Callable[[], object]) -> None:
        """Calls a function soon; may be called from finalizers, for ``put`` of this queue is reentrant."""
        self._queue.put(end)

    def drain(self, seconds: float) -> bool:
        """Waits until all that was handed over before has been ended; returns whether it has."""
        done = threading.Event()
        self._queue.put(done.set)
        return done.wait(seconds)

    def _work(self) -> None:
        while True:
            end = self._queue.get()
            try:
                end()
            except BaseException:  # noqa: BLE001 - There is nobody to raise it to.
                _log.warning("cleaning up after a dropped reader or writer failed", exc_info=True)
            del end


reaper: PerProcess[Reaper] = PerProcess(Reaper)


def reap(end: Callable[[], object]) -> None:
    """Hands over what a finalizer must not do itself; the reaper of this process was made before."""
    found = reaper.value
    if found is not None:
        found.take(end)


class ExitPhase(IntEnum):
    """When a function is called; ``atexit`` alone would go by the order of imports.

    Open uploads are handed to the reaper and aborted while transports still work; only then all transfers are
    cancelled.
    """

    UPLOADS = 0
    REAPER = 1
    TRANSFERS = 2


_functions: dict[ExitPhase, list[Callable[[], object]]] = {phase: [] for phase in ExitPhase}


def at_exit(phase: ExitPhase, function: Callable[[], object]) -> None:
    """Calls a function when the interpreter ends."""
    _functions[phase].append(function)


def _drain_reaper() -> None:
    found = reaper.value
    if found is not None and not found.drain(_EXIT_SECONDS):
        _log.warning("the program ends before all dropped uploads are aborted; their parts may stay in S3")


at_exit(ExitPhase.REAPER, _drain_reaper)


@atexit.register
def _run_exit_phases() -> None:
    # A stack goes on after an interrupt. What was put on it last is called first.
    with ExitStack() as stack:
        for phase in reversed(ExitPhase):
            for function in _functions[phase]:
                stack.callback(function)
