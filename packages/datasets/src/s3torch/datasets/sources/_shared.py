"""One listing for all workers of a loader, however they were started, and for all ranks of a node.

The processes of a dataset agree on the name of a folder before any of them needs it: ``SharedFolder``.
Whoever lists first writes the result there, under a lock, and the others map it: ``SharedListing``. Of a
listing that is read page by page, each page is appended to a file by whoever needs it first:
``shared_pages``. The folder is private and goes away with the dataset in the process that made it, or in the
last rank that has it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pickle
import shutil
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

from s3torch.datasets._private_files import PrivateFolder, unlock
from s3torch.datasets.sources._table import ObjectTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core import S3BucketKeyData, S3Client
    from s3torch.datasets.sources._sources import PagedSource

_log = logging.getLogger(__name__)
_CANNOT_SHARE = "the workers cannot share a listing: %s"
# Begins the names of files that say which ranks have a folder.
_USER = "user-"
_LISTING = "listing"
_PAGES = "pages-"
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
        self.path = Path(tempfile.gettempdir()) / f"s3torch-{name}"
        self._owner = os.getpid()
        self.spans_ranks = common is not None
        self._cleanup = weakref.finalize(self, _leave, self.path, self._owner)

    @property
    def is_alone(self) -> bool:
        """Whether nobody else can use the folder so far: no worker, and no other rank."""
        return self._owner == os.getpid() and not self.spans_ranks

    def open(self, *, create: bool = False) -> PrivateFolder:
        """Opens the folder, whose name others may have found out and used before; see ``PrivateFolder``."""
        folder = PrivateFolder.open(self.path, create=create)
        folder.refuse_others()
        return folder

    @contextmanager
    def locked(self, name: str) -> Iterator[PrivateFolder]:
        """Holds a lock against all other processes; raises ``OSError`` if the folder cannot be made."""
        with self.open(create=True) as folder:
            # The last one to leave removes it.
            folder.write(f"{_USER}{self._owner}")
            with folder.locked(name):
                yield folder

    @contextmanager
    def locked_if_possible(self, name: str) -> Iterator[PrivateFolder | None]:
        """Holds a lock and yields the folder, or warns that the processes go on alone and yields ``None``."""
        with ExitStack() as stack:
            folder = None
            try:
                folder = stack.enter_context(self.locked(name))
            except OSError as exc:
                _log.warning(_CANNOT_SHARE, exc)
            yield folder

    def __getstate__(self) -> dict[str, Any]:
        # Only a worker that is started now is a process of this dataset; other pickles are of another one.
        if get_spawning_popen() is None:
            return {}
        return {"path": self.path, "_owner": self._owner, "spans_ranks": self.spans_ranks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc] # A pickle of its own is a new folder.
        if state:
            self._cleanup.detach()
            self.__dict__.update(state)


def _leave(path: Path, owner: int) -> None:
    """Removes the folder, unless another rank has it."""
    if os.getpid() != owner:
        return
    with suppress(OSError), PrivateFolder.open(path) as folder:
        with suppress(FileNotFoundError):
            folder.unlink(f"{_USER}{owner}")
        users = [name.removeprefix(_USER) for name in folder.names() if name.startswith(_USER)]
        if not any(user.isdecimal() and _is_alive(int(user)) for user in users):
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
            with self._folder.locked_if_possible("listing.lock") as folder:
                table = None if folder is None else _mapped(folder)
                if table is None:
                    table = ObjectTable.of(list_objects())
                    table = table if folder is None else _published(folder, table)
                self._table = table
        return self._table

    def _mapped(self) -> ObjectTable | None:
        try:
            with self._folder.open() as folder:
                return _mapped(folder)
        except OSError:
            return None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if get_spawning_popen() is not None and self._table is not None:
            # So that it is not sent to each worker that is spawned.
            with self._folder.locked_if_possible("listing.lock") as folder:
                if folder is not None and folder.stat(_LISTING) is None:
                    _published(folder, self._table)
                if folder is not None and folder.stat(_LISTING) is not None:
                    state["_table"] = None
        return state


def _mapped(folder: PrivateFolder) -> ObjectTable | None:
    try:
        with folder.read(_LISTING) as file:
            return ObjectTable.mapped(file)
    except OSError:
        return None


def _published(folder: PrivateFolder, table: ObjectTable) -> ObjectTable:
    try:
        folder.publish(_LISTING, table.buffer)
    except OSError as exc:
        _log.warning(_CANNOT_SHARE, exc)
        return table
    return _mapped(folder) or table


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
        self._name = f"{_PAGES}{epoch}"
        self._descriptor: int | None = None
        self._is_alone = False

    def read(self, offset: int) -> _Page | None:
        if self._descriptor is None and not self._is_alone:
            with suppress(OSError), self._folder.open() as folder:
                self._descriptor = _open_shared(folder, self._name)
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
            folder = None
            if not self._is_alone:
                folder = stack.enter_context(self._folder.locked_if_possible("pages.lock"))
            if folder is None:
                self._give_up()
            page = self.read(offset)
            if page is None:
                found = source.page(client, cursor)
                stop = offset if folder is None else self._appended(folder, offset, pickle.dumps(found))
                page = _Page(*found, stop)
            return page

    def _appended(self, folder: PrivateFolder, offset: int, data: bytes) -> int:
        """Stores a page for the others and returns where the next one begins."""
        try:
            if offset == 0:
                _remove_unread(folder)
            with os.fdopen(folder.open_file(self._name, os.O_WRONLY | os.O_CREAT), "wb") as file:
                file.truncate(offset)
                file.seek(offset)
                file.write(_LENGTH.pack(len(data)) + data)
            if self._descriptor is None:
                self._descriptor = _open_shared(folder, self._name)
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


def _open_shared(folder: PrivateFolder, name: str) -> int | None:
    try:
        descriptor = folder.open_file(name)
    except OSError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return descriptor


def _remove_unread(folder: PrivateFolder) -> None:
    for name in folder.names():
        if name.startswith(_PAGES):
            with suppress(FileNotFoundError, BlockingIOError), folder.read(name) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                folder.unlink(name)
