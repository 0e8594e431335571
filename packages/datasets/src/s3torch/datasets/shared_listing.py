"""One listing for all workers of a loader, however they were started, and for all ranks of a node.

The processes of a dataset agree on the name of a folder before any of them needs it. Whoever lists first
puts the result there, under a lock, and the others map it. The folder is private and goes away with the
dataset in the process that made it, or in the last rank that has it.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import tempfile
import uuid
import weakref
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3torch.datasets.file_lock import exclusive
from s3torch.datasets.node import common_name
from s3torch.datasets.table import ObjectTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core import S3BucketKeyData

__all__ = ["SharedFolder", "SharedListing"]

_log = logging.getLogger(__name__)
# Begins the names of files that tell which ranks have a folder.
_USER = "user-"


class SharedFolder:
    """A private folder that the processes of a dataset share; made when the first of them needs it.

    Args:
        subject: What is listed, where all ranks of a node list the same and can share it; ``None`` shares it
            with the workers of this process alone.
    """

    def __init__(self, subject: str | None = None) -> None:
        common = None if subject is None else common_name(subject)
        name = uuid.uuid4().hex if common is None else blake2b(common.encode(), digest_size=16).hexdigest()
        self._path = Path(tempfile.gettempdir()) / f"s3torch-{name}"
        self._owner = os.getpid()
        self._spans_ranks = common is not None
        self._cleanup = weakref.finalize(self, _leave, self._path, self._owner)

    @property
    def spans_ranks(self) -> bool:
        """Tells whether other ranks have the folder, too."""
        return self._spans_ranks

    @property
    def is_alone(self) -> bool:
        """Tells whether nobody can use what is in the folder, so far: no worker, and no other rank."""
        return self._owner == os.getpid() and not self._spans_ranks

    @property
    def path(self) -> Path:
        """The folder, which need not exist.

        Raises:
            PermissionError: Somebody else has made it.
        """
        if self._spans_ranks:
            # Its name can be found out, so another user may have been there first.
            with suppress(FileNotFoundError):
                found = self._path.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                    raise PermissionError(errno.EACCES, "it belongs to somebody else", str(self._path))
        return self._path

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Holds a lock against all other processes; the kernel frees it if this one dies.

        Raises:
            OSError: The folder cannot be made.
        """
        self._path.mkdir(mode=0o700, exist_ok=True)
        # Whoever goes last takes it along.
        (self.path / f"{_USER}{self._owner}").touch(mode=0o600)
        with exclusive(self._path / name, mode=0o600):
            yield

    def __getstate__(self) -> dict[str, Any]:
        # Only a worker that is started now is a process of this dataset; other pickles are of another one.
        if get_spawning_popen() is None:
            return {}
        return {"_path": self._path, "_owner": self._owner, "_spans_ranks": self._spans_ranks}

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
        if self._folder.is_alone:
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
        try:
            part = self._file.with_suffix(f".{os.getpid()}")
            with part.open("wb") as file:
                table.write(file)
            part.replace(self._file)
            return ObjectTable.mapped(self._file)
        except OSError as exc:
            _log.warning("the workers cannot share a listing: %s", exc)
            return table

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
            return False
        return self._file.exists()


def _leave(path: Path, owner: int) -> None:
    """Removes the folder, unless another rank has it."""
    if os.getpid() != owner:
        return
    with suppress(OSError):
        (path / f"{_USER}{owner}").unlink()
    users = (int(user.name.removeprefix(_USER)) for user in path.glob(f"{_USER}*"))
    if not any(map(_is_alive, users)):
        shutil.rmtree(path, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
