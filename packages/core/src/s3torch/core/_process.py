"""Fork safety: values per process, and who owns what; the one module that knows.

Native clients, their threads and their locks do not survive a fork: a client of the parent that is used in
the child hangs, and one that is destroyed there may hang as well. So whatever is bound to a process is held
by a ``PerProcess``, which makes a new one in the child and never touches the inherited one again.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from s3torch.core.errors import ForkedProcessError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

# Then a fork goes on; a thread may wait for a network that is not there.
_LONGEST_MAKING = 5.0


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
