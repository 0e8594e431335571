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
    """

    def __init__(self, factory: Callable[[], T]) -> None:
        self._factory = factory
        self._reset()
        _holders.add(self)

    def _reset(self) -> None:
        # Reentrant, because making imports modules and allocates much: a file that wraps a reader or writer
        # may be closed in there by the collector, and a signal handler may come.
        self._lock = threading.RLock()
        self._value: T | None = None

    def get(self) -> T:
        """Returns the value of this process and makes it first if there is none."""
        value = self._value
        if value is None:
            with self._lock:
                value = self._value
                if value is None:
                    with _making:
                        value = self._value = self._factory()
        return value

    def peek(self) -> T | None:
        return self._value

    def take(self) -> T | None:
        """Returns the value of this process if there is one, and forgets it."""
        with self._lock:
            value, self._value = self._value, None
        return value

    def after_fork_in_child(self) -> None:
        """Forgets the parent's value without touching it, and a lock that a thread of the parent may hold."""
        if self._value is not None:
            abandon(self._value)
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
        here = threading.get_ident()
        self._changed.wait_for(lambda: not self._threads.keys() - {here}, _LONGEST_MAKING)

    def after_fork_in_parent(self) -> None:
        self._changed.release()

    def __enter__(self) -> None:
        with self._changed:
            self._threads[threading.get_ident()] += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            here = threading.get_ident()
            self._threads[here] -= 1
            if not self._threads[here]:
                del self._threads[here]
            self._changed.notify_all()


class OwnerProcess:
    """The process in which a reader or writer was opened."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = _here

    @property
    def is_here(self) -> bool:
        """Whether this is still the process in which it was opened."""
        return self._pid == _here

    def check(self, what: str) -> None:
        """Refuses use in another process.

        Raises:
            ForkedProcessError: This is a forked child.
        """
        if not self.is_here:
            raise ForkedProcessError(
                f"{what} was opened in process {self._pid} and cannot be used in its forked child "
                f"{_here}; open another one here"
            )


_holders: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
_making = _Making()
# Readers ask several times for each object, and the system takes longer to tell.
_here = os.getpid()


def _after_fork_in_child() -> None:
    global _here  # noqa: PLW0603 - It is about the process.
    _here = os.getpid()
    _making.after_fork_in_child()
    holders = list(_holders)
    if any(holder.peek() is not None for holder in holders):
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
