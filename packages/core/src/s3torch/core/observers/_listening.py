"""What observers are told, what an observer is, and who listens in this process.

A *transfer* is one piece of work that the client has started: a request for a part of an object, for a
listing, for the facts of an object. Reading a large object is one ``GetObject`` per part; writing it is
``CreateMultipartUpload``, one ``UploadPart`` per part and ``CompleteMultipartUpload``, which share their
``upload_id``. A transfer is tried again when S3 asks to slow down or a connection breaks, so it may be
several requests on the wire: its ``attempts``.

For every transfer an observer is told ``started``, then ``retried`` for each attempt that failed and is made
again, then ``progressed`` if bytes of an object were moved, then ``ended``, exactly once, well or not.

Rules for observers:

* **Threads.** The methods are called on any thread, several at a time. ``started`` comes on the thread that
  begins the transfer, the others usually on one of the transport.
* **Never block.** What they do delays transfers: no network, no long locks.
* **Errors stay here.** What an observer raises is logged, once for each observer, and harms no transfer.
* **Before the caller.** Whoever waits for a transfer gets its result after observers were told of the end. So
  what is counted after a ``read()`` counts all of it.
* **To the end.** Who was told of the start is told of the end, also if it has stopped listening meanwhile.
* **Processes.** Listening ends with a fork: the child begins with the observers of plugins, made anew.

While nobody listens, clients use their transports as they are: observing costs nothing then, not even a
check. When the first observer comes, every client of the process puts an observed transport in front.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from s3torch.core._process import PerProcess
from s3torch.core.plugins._manager import transfer_observers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core.ranges import ByteRange

    ObserverT = TypeVar("ObserverT", bound="TransferObserver")

COUNTERS_VARIABLE = "S3TORCH_COUNTERS"

_log = logging.getLogger(__name__)

_DIRECTIONS: dict[str, Literal["read", "write"]] = {
    "GetObject": "read",
    "PutObject": "write",
    "UploadPart": "write",
}


@dataclass(frozen=True, slots=True)
class TransferInfo:
    """What is known of a transfer when it starts.

    Attributes:
        number: Counts the transfers of this process; no two have the same.
        operation: The S3 operation, as in ``"GetObject"``.
        bucket: The bucket.
        key: The key; ``None`` for operations on a bucket.
        time: When it started, by ``time.monotonic()``.
        byte_range: The bytes of the object that are asked for; ``None`` for all.
        size: The bytes that are sent; ``None`` for operations that send no object.
        upload_id: The multipart upload that it belongs to. Creating one learns it at the end.
        part_number: The number of the part, from 1.
    """

    number: int
    operation: str
    bucket: str
    key: str | None
    time: float
    byte_range: ByteRange | None = None
    size: int | None = None
    upload_id: str | None = None
    part_number: int | None = None

    @property
    def direction(self) -> Literal["read", "write"] | None:
        """Which way it moves bytes of an object; ``None`` if it does not."""
        return _DIRECTIONS.get(self.operation)


@dataclass(frozen=True, slots=True)
class TransferRetry:
    """An attempt that failed and is made again.

    Attributes:
        attempt: Which one failed, from 1.
        error: Why; an error of ``s3torch.core.errors``.
        seconds: The pause before the next one.
    """

    attempt: int
    error: Exception
    seconds: float


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """Bytes of an object that have arrived whole, here or there.

    Attributes:
        nbytes: How many, since the last time that the observer was told of this transfer.
        object_size: The size of the whole object, where it is known.
    """

    nbytes: int
    object_size: int | None = None


@dataclass(frozen=True, slots=True)
class TransferEnd:
    """How a transfer ended.

    Attributes:
        seconds: How long it took, with waiting for a connection and with all attempts.
        nbytes: The bytes of an object that it has moved; 0 if it failed.
        attempts: How many attempts were made.
        throttles: How many of them were answered with a request to slow down.
        error: Why it failed; ``None`` if it did not.
        upload_id: The multipart upload that it belongs to.
    """

    seconds: float
    nbytes: int = 0
    attempts: int = 1
    throttles: int = 0
    error: BaseException | None = None
    upload_id: str | None = None


class TransferObserver:
    """What is told of transfers. Override what is of interest; the rules are at the top of this module.

    Example:
        >>> from s3torch.core.observers import TransferObserver
        >>> class SlowRequests(TransferObserver):
        ...     def ended(self, transfer, end):
        ...         if end.seconds > 1:
        ...             print(f"{transfer.operation} {transfer.key} took {end.seconds:.1f} s")
    """

    def started(self, transfer: TransferInfo) -> None:
        """A transfer begins."""

    def retried(self, transfer: TransferInfo, retry: TransferRetry) -> None:
        """An attempt has failed, and another follows."""

    def progressed(self, transfer: TransferInfo, progress: TransferProgress) -> None:
        """Bytes of an object have arrived."""

    def ended(self, transfer: TransferInfo, end: TransferEnd) -> None:
        """The transfer is over."""


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
        observers = [*transfer_observers(), *_counters_of_environment()]
        self.listeners: tuple[Listener, ...] = tuple(map(Listener, observers))

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


def _counters_of_environment() -> list[TransferObserver]:
    """Returns counters that write into the folder of ``S3TORCH_COUNTERS``, if there is one."""
    folder = os.environ.get(COUNTERS_VARIABLE)
    if not folder:
        return []
    # They import this module.
    from s3torch.core.observers._shared_counters import SharedCounters

    try:
        return [SharedCounters(folder)]
    except OSError as exc:
        _log.warning("%s is skipped: %s", COUNTERS_VARIABLE, exc)
        return []


listening = PerProcess(Listening)
