"""One listing for all workers of a loader, however they were started.

The processes of a dataset agree on the name of a folder before any of them needs it. Whoever lists first
puts the result there, under a lock, and the others map it. The folder is private, has a name that nobody can
guess, and goes away with the dataset in the process that made it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
import uuid
import weakref
from contextlib import ExitStack, contextmanager
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3torch.datasets.table import ObjectTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core import S3BucketKeyData

__all__ = ["SharedFolder", "SharedListing"]

_log = logging.getLogger(__name__)


class SharedFolder:
    """A private folder that the processes of a dataset share; made when the first of them needs it."""

    def __init__(self) -> None:
        self._path = Path(tempfile.gettempdir()) / f"s3torch-{uuid.uuid4().hex}"
        self._owner = os.getpid()
        self._cleanup = weakref.finalize(self, _remove, self._path, self._owner)

    @property
    def is_ours(self) -> bool:
        """Tells whether this process made the dataset, and is no worker."""
        return self._owner == os.getpid()

    @property
    def path(self) -> Path:
        """The folder, which need not exist."""
        return self._path

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Holds a lock against all other processes; the kernel frees it if this one dies.

        Raises:
            OSError: The folder cannot be made.
        """
        self._path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def __getstate__(self) -> dict[str, Any]:
        # Only a worker that is started now is a process of this dataset; other pickles are of another one.
        if get_spawning_popen() is None:
            return {}
        return {"_path": self._path, "_owner": self._owner}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc] # A pickle of its own is a new folder.
        if state:
            self._cleanup.detach()
            self.__dict__.update(state)


class SharedListing:
    """The objects of a dataset, listed once by whichever process needs them first."""

    def __init__(self, folder: SharedFolder) -> None:
        self._folder = folder
        self._table: ObjectTable | None = None

    def get(self, list_objects: Callable[[], Iterable[S3BucketKeyData]]) -> ObjectTable:
        """Returns the table; lists if no process of the dataset has done so before."""
        if self._table is None:
            self._table = self._mapped()
        if self._table is None:
            self._table = self._made(list_objects)
        return self._table

    def _made(self, list_objects: Callable[[], Iterable[S3BucketKeyData]]) -> ObjectTable:
        if self._folder.is_ours:
            # Forked workers inherit it, and spawned ones find it, see __getstate__.
            return ObjectTable.of(list_objects())
        with ExitStack() as stack:
            try:
                stack.enter_context(self._folder.locked("listing.lock"))
            except OSError as exc:
                _log.warning("the workers cannot share a listing: %s", exc)
                return ObjectTable.of(list_objects())
            table = self._mapped()
            return self._published(ObjectTable.of(list_objects())) if table is None else table

    @property
    def _file(self) -> Path:
        return self._folder.path / "listing"

    def _mapped(self) -> ObjectTable | None:
        try:
            return ObjectTable.mapped(self._file)
        except OSError:
            return None

    def _published(self, table: ObjectTable) -> ObjectTable:
        part = self._file.with_suffix(f".{os.getpid()}")
        try:
            with part.open("wb") as file:
                table.write(file)
            part.replace(self._file)
        except OSError as exc:
            _log.warning("the workers cannot share a listing: %s", exc)
            return table
        return ObjectTable.mapped(self._file)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if get_spawning_popen() is not None and self._table is not None and self._publish(self._table):
            state["_table"] = None
        return state

    def _publish(self, table: ObjectTable) -> bool:
        """Puts the table where spawned workers find it, so that it is not sent to each of them."""
        try:
            with self._folder.locked("listing.lock"):
                if not self._file.exists():
                    self._published(table)
        except OSError as exc:
            _log.warning("the workers cannot share a listing: %s", exc)
        return self._file.exists()


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(path, ignore_errors=True)
