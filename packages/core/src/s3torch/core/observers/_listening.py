"""Who listens in this process, and how to begin and to end it.

While nobody listens, clients use their transports as they are: observing costs nothing then, not even a
check. When the first observer comes, every client of the process puts an observed transport in front.
"""

from __future__ import annotations

import logging
import threading
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from s3torch.core._process import PerProcess
from s3torch.core.plugins._manager import transfer_observers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from s3torch.core.observers._events import TransferObserver

    ObserverT = TypeVar("ObserverT", bound=TransferObserver)

_log = logging.getLogger(__name__)


def add_observer(observer: TransferObserver) -> None:
    """Tells an observer of all transfers of this process that start from now on, until it is removed."""
    listening.get().add(observer)


def remove_observer(observer: TransferObserver) -> None:
    """Tells an observer no more of transfers that start from now on; one that does not listen is no error."""
    listening.get().remove(observer)


@contextmanager
def observe(observer: ObserverT) -> Iterator[ObserverT]:
    """Tells an observer of all transfers of this process that start in the ``with`` block.

    Example:
        >>> from s3torch.core.observers import TransferCounters, observe
        >>> with observe(TransferCounters()) as counters:
        ...     pass  # Train for an epoch.
        >>> counters.snapshot().requests
        0
    """
    add_observer(observer)
    try:
        yield observer
    finally:
        remove_observer(observer)


class Observable(Protocol):
    """What behaves otherwise while somebody listens."""

    def set_observed(self, *, observed: bool) -> None:
        """Takes note that somebody listens, or nobody any more."""
        ...


class Listener:
    """An observer that harms nobody: what it raises is logged, once."""

    __slots__ = ("_failed", "observer")

    def __init__(self, observer: TransferObserver) -> None:
        self.observer = observer
        self._failed = False

    def tell(self, method: Callable[..., None], *facts: object) -> None:
        """Calls a method of the observer.

        Args:
            method: That method of ``TransferObserver``.
            facts: Its arguments.
        """
        try:
            getattr(self.observer, method.__name__)(*facts)
        except Exception:  # noqa: BLE001 - Transfers go on, whatever an observer does.
            if not self._failed:
                self._failed = True
                _log.exception("observer %r failed; its further errors are not logged", self.observer)


class Listening:
    """The observers of one process, those of plugins first."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self._observables: weakref.WeakSet[Observable] = weakref.WeakSet()
        self.listeners: tuple[Listener, ...] = tuple(Listener(observer) for observer in transfer_observers())

    def add(self, observer: TransferObserver) -> None:
        """Begins to tell an observer."""
        with self._lock:
            self._change((*self.listeners, Listener(observer)))

    def remove(self, observer: TransferObserver) -> None:
        """Ends to tell an observer; one that was added twice is told once from then on."""
        with self._lock:
            for listener in reversed(self.listeners):
                if listener.observer is observer:
                    self._change(tuple(other for other in self.listeners if other is not listener))
                    return

    def follow(self, observable: Observable) -> None:
        """Tells an object whether somebody listens, now and at every change, for as long as it lives."""
        with self._lock:
            self._observables.add(observable)
            observable.set_observed(observed=bool(self.listeners))

    def _change(self, listeners: tuple[Listener, ...]) -> None:
        changed = bool(listeners) != bool(self.listeners)
        self.listeners = listeners
        if changed:
            for observable in list(self._observables):
                observable.set_observed(observed=bool(listeners))


listening = PerProcess(Listening)
