"""One listing for all workers of a loader, however they were started, and for all ranks of a node.

The processes of a dataset agree on the name of a folder before any of them needs it: ``SharedFolder``.
Whoever lists first writes the result there, under a lock, and the others map it: ``SharedListing``. Of a
listing that is read page by page, each page is appended to a file by whoever needs it first:
``shared_pages``. The folder is private and goes away with the dataset in the process that made it, or in the
last rank that has it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import pickle
import shutil
import stat
import struct
import tempfile
import uuid
import weakref
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from multiprocessing.context import get_spawning_popen
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from s3torch.datasets._cache import exclusive, unlock
from s3torch.datasets.sources._table import ObjectTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.datasets.sources._sources import PagedSource

_log = logging.getLogger(__name__)
_CANNOT_SHARE = "the workers cannot share a listing: %s"
# Begins the names of files that say which ranks have a folder.
_USER = "user-"
_LENGTH = struct.Struct("<Q")
_made: Counter[str] = Counter()


def launch_on_node(proc: Path = Path("/proc")) -> str | None:
    """Names the launch of ``torchrun`` that this rank shares with others of its machine.

    No other launch has the name, before or after, nor has one that starts again after a failure. It is
    ``None`` where there is no such launch or the system, whose process information is in ``proc``, does not
    say.
    """
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    if not ranks.isdecimal() or int(ranks) < 2:
        return None
    # All ranks of a node are children of one agent, whose process id and start time nobody else has.
    agent = proc / str(os.getppid())
    try:
        if b"\0LOCAL_RANK=" in b"\0" + (agent / "environ").read_bytes():
            return None  # It is a rank itself, and this process something that it has started.
        begin = (agent / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, IndexError):
        return None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return f"{boot}/{os.getppid()}/{begin}/{attempt}"


def common_name(subject: str) -> str | None:
    """Returns a name that all ranks of the node give to the same thing, without a message between them.

    They run the same program, so the second thing with a subject in one is the second in the others. It is
    ``None`` where there are no other ranks.
    """
    launch = launch_on_node()
    if launch is None:
        return None
    _made[subject] += 1
    return f"{launch}/{subject}/{_made[subject]}"


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
        self.spans_ranks = common is not None
        self._cleanup = weakref.finalize(self, _leave, self._path, self._owner)

    @property
    def is_alone(self) -> bool:
        """Whether nobody else can use the folder so far: no worker, and no other rank."""
        return self._owner == os.getpid() and not self.spans_ranks

    @property
    def path(self) -> Path:
        """The folder, which need not exist; raises ``PermissionError`` if somebody else has made it."""
        if self.spans_ranks:
            # Its name can be found out, so another user may have been there first.
            with suppress(FileNotFoundError):
                found = self._path.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                    raise PermissionError(errno.EACCES, "it belongs to somebody else", str(self._path))
        return self._path

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Holds a lock against all other processes; raises ``OSError`` if the folder cannot be made."""
        self._path.mkdir(mode=0o700, exist_ok=True)
        # The last one to leave removes it.
        (self.path / f"{_USER}{self._owner}").touch(mode=0o600)
        with exclusive(self._path / name, mode=0o600):
            yield

    @contextmanager
    def locked_if_possible(self, name: str) -> Iterator[bool]:
        """Holds a lock, or warns that the processes go on alone; yields which of both."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self.locked(name))
                is_shared = True
            except OSError as exc:
                _log.warning(_CANNOT_SHARE, exc)
                is_shared = False
            yield is_shared

    def __getstate__(self) -> dict[str, Any]:
        # Only a worker that is started now is a process of this dataset; other pickles are of another one.
        if get_spawning_popen() is None:
            return {}
        return {"_path": self._path, "_owner": self._owner, "spans_ranks": self.spans_ranks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc] # A pickle of its own is a new folder.
        if state:
            self._cleanup.detach()
            self.__dict__.update(state)


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


class SharedListing:
    """The objects of a dataset, listed once by whichever process needs them first."""

    def __init__(self, folder: SharedFolder) -> None:
        self._folder = folder
        self._table: ObjectTable | None = None

    def get(self, list_objects: Callable[[], Iterable[S3BucketKeyData]]) -> ObjectTable:
        """Returns the table; lists if no process of the dataset has done so before."""
        if self._table is None:
            self._table = self._mapped()
        if self._table is None and self._folder.is_alone:
            # Forked workers inherit it, and spawned ones find it, see __getstate__.
            self._table = ObjectTable.of(list_objects())
        if self._table is None:
            with self._folder.locked_if_possible("listing.lock") as is_shared:
                table = self._mapped() if is_shared else None
                if table is None:
                    table = ObjectTable.of(list_objects())
                    table = self._published(table) if is_shared else table
                self._table = table
        return self._table

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
            _log.warning(_CANNOT_SHARE, exc)
            return table

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if get_spawning_popen() is not None and self._table is not None:
            # So that it is not sent to each worker that is spawned.
            with self._folder.locked_if_possible("listing.lock") as is_shared:
                if is_shared and not self._file.exists():
                    self._published(self._table)
                if is_shared and self._file.exists():
                    state["_table"] = None
        return state


class _Page(NamedTuple):
    objects: list[S3BucketKeyData]
    # Where the next page begins; None after the last one.
    cursor: str | None
    # Where in the file the next page begins.
    stop: int


def shared_pages(
    folder: SharedFolder, epoch: str, source: PagedSource, client: S3Client
) -> Iterator[S3BucketKeyData]:
    """Yields the objects of a source, and lists no further than they are consumed.

    Workers and ranks that name the same epoch list each page once together.
    """
    cursor, offset = None, 0
    pages = _Pages(folder, epoch)
    try:
        while True:
            page = pages.read(offset) or pages.listed(offset, cursor, source, client)
            yield from page.objects
            cursor, offset = page.cursor, page.stop
            if cursor is None:
                return
    finally:
        pages.close()


class _Pages:
    """The file of an epoch, as one worker sees it; it is removed when nobody holds a shared lock on it."""

    def __init__(self, folder: SharedFolder, epoch: str) -> None:
        self._folder = folder
        self._path = folder.path / f"pages-{epoch}"
        self._descriptor: int | None = None
        self._is_alone = False

    def read(self, offset: int) -> _Page | None:
        if self._descriptor is None and not self._is_alone:
            self._descriptor = _open_shared(self._path)
        if self._descriptor is None:
            return None
        head = os.pread(self._descriptor, _LENGTH.size, offset)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
        data = os.pread(self._descriptor, length, offset + _LENGTH.size)
        if not data or len(data) < length:
            return None  # Somebody is writing it now, or died while writing.
        objects, cursor = pickle.loads(data)  # noqa: S301 - from a private folder of this job
        return _Page(objects, cursor, offset + _LENGTH.size + length)

    def listed(self, offset: int, cursor: str | None, source: PagedSource, client: S3Client) -> _Page:
        """Lists the page for all, unless another worker has done so meanwhile."""
        with ExitStack() as stack:
            if not (self._is_alone or stack.enter_context(self._folder.locked_if_possible("pages.lock"))):
                self._give_up()
            page = self.read(offset)
            if page is None:
                found = source.page(client, cursor)
                page = _Page(*found, self._appended(offset, pickle.dumps(found)))
            return page

    def _appended(self, offset: int, data: bytes) -> int:
        """Stores a page for the others and returns where the next one begins."""
        if self._is_alone:
            return offset
        try:
            if offset == 0:
                _remove_unread(self._folder.path)
            with self._path.open("ab") as file:
                file.truncate(offset)
                file.write(_LENGTH.pack(len(data)) + data)
            if self._descriptor is None:
                self._descriptor = _open_shared(self._path)
        except OSError as exc:
            _log.warning(_CANNOT_SHARE, exc)
            self._give_up()
            return offset
        return offset + _LENGTH.size + len(data)

    def _give_up(self) -> None:
        # What others go on to store has other offsets than what is listed here from now on.
        self.close()
        self._is_alone = True

    def close(self) -> None:
        if self._descriptor is not None:
            unlock(self._descriptor)
            self._descriptor = None


def _open_shared(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return descriptor


def _remove_unread(folder: Path) -> None:
    for path in folder.glob("pages-*"):
        with suppress(FileNotFoundError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            path.unlink()
