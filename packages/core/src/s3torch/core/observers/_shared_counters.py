"""Counts the transfers of several processes, each in a file of its own."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import time
from contextlib import suppress
from errno import ENOENT
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from s3torch.core._process import PerProcess
from s3torch.core.observers._counters import CounterSnapshot, TransferCounters
from s3torch.core.observers._listening import add_observer

if TYPE_CHECKING:
    from s3torch.core.observers._listening import TransferEnd, TransferInfo

_SUFFIX = ".counts"


class SharedCounters(TransferCounters):
    """Counts the transfers of several processes of one machine, each in a file of its own.

    A process writes its file at most once every ``seconds``, after a transfer, and when it ends. Processes
    that were killed are in the sum as they last wrote. Pass ``observe_worker`` to a ``DataLoader``; the
    object can be pickled, so this holds however workers are started.

    Args:
        folder: Where the files are, a folder of this object alone; if it is missing, one is made that only
            this user can enter. ``None`` makes a temporary one, which goes away with this process. Files of
            other users are left out: they are pickles.
        seconds: How old the counts of a busy process may be.

    Example:
        >>> from s3torch.core.observers import SharedCounters, observe
        >>> with observe(SharedCounters()) as counters:
        ...     # loader = DataLoader(dataset, num_workers=4, worker_init_fn=counters.observe_worker)
        ...     # for batch in loader: ...
        ...     counters.total().bytes_read
        0
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, seconds: float = 1.0) -> None:
        super().__init__()
        if folder is not None:
            self.folder = Path(folder)
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            self.folder = Path(tempfile.mkdtemp(prefix="s3torch-"))
            Finalize(None, _remove, (self.folder,), exitpriority=0)
        self._seconds = seconds
        self._sheet = PerProcess(self._make_sheet)

    def observe_worker(self, worker_id: int) -> None:
        """Begins to count in a worker; the ``worker_init_fn`` of a ``DataLoader``."""
        del worker_id
        add_observer(self)

    def ended(self, transfer: TransferInfo, end: TransferEnd) -> None:
        """Counts a transfer, and writes the counts down if it is time."""
        super().ended(transfer, end)
        self._sheet.get().write_if_due()

    def total(self) -> CounterSnapshot:
        """Adds up what all processes have counted and written, and all that this one has counted."""
        written = counts_in(self.folder)
        written.pop(self._path(), None)
        return sum(written.values(), self.snapshot())

    def write(self) -> None:
        """Writes the counts of this process down now."""
        self._sheet.get().write()

    def _path(self) -> Path:
        # Numbers of processes are used again: the time makes the name one of this process alone.
        return self._sheet.get().path

    def _make_sheet(self) -> _Sheet:
        return _Sheet(self.folder / f"{os.getpid()}-{time.time_ns()}{_SUFFIX}", self, self._seconds)


def counts_in(folder: Path) -> dict[Path, CounterSnapshot]:
    """Reads what processes have written into a folder, by the paths of their files."""
    found = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        with suppress(FileNotFoundError), _open_own(path) as file:
            found[path] = pickle.load(file)  # noqa: S301 - A process of this user wrote it.
    return found


def _open_own(path: Path) -> BinaryIO:
    """Opens a file of this user; one of somebody else is not there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise FileNotFoundError(ENOENT, "it belongs to another user", str(path))
    return os.fdopen(descriptor, "rb")


def writer_of(path: Path) -> int:
    """Returns the number of the process that has written a file of counts."""
    return int(path.name.partition("-")[0])


class _Sheet:
    """The file of one process."""

    def __init__(self, path: Path, counters: TransferCounters, seconds: float) -> None:
        self.path = path
        self._counters = counters
        self._seconds = seconds
        self._due = 0.0
        # Workers of torch end without the functions of ``atexit``, but with these.
        Finalize(self, self.write, exitpriority=10)

    def write_if_due(self) -> None:
        """Writes the counts down unless that was done a short while ago."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._seconds
            self.write()

    def write(self) -> None:
        """Writes the counts down now."""
        draft = self.path.with_name(f"{self.path.name}.{time.monotonic_ns()}")
        try:
            draft.write_bytes(pickle.dumps(self._counters.snapshot()))
            draft.replace(self.path)
        except FileNotFoundError:  # The files were removed meanwhile.
            return


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
