"""Folders and files of this user alone: nobody else decides what is read there, or what is written where.

Every place where a key, or a name that others can guess, becomes a local path goes through here. All is done
from the descriptor of a folder that was checked, so one that is replaced meanwhile changes nothing. Symbolic
links are not followed, and what is no regular file, such as a FIFO, is refused at once.
"""

from __future__ import annotations

import fcntl
import os
import stat
import uuid
from contextlib import contextmanager, suppress
from errno import EACCES
from hashlib import sha256
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from typing import Self

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LONGEST_NAME = 255
# Where keys go that are no path; no bucket has such a name.
_DIGESTS = ".digests"


class PrivateFolder:
    """An open folder that belongs to this user, or to another one who is trusted.

    Names may lead through a folder below it. All methods raise ``OSError``, among them ``PermissionError``
    for what belongs to somebody else.
    """

    _descriptor = -1

    def __init__(self, path: Path, descriptor: int, owners: Collection[int]) -> None:
        self.path = path
        self._owners = owners
        self._check(descriptor, path)
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, *, create: bool = False, owners: Collection[int] | None = None) -> Self:
        """Opens a folder; ``owners`` are the users whose files are trusted, by default this one."""
        if create:
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
        return cls(path, descriptor, {os.geteuid()} if owners is None else owners)

    def folder(self, name: str, *, create: bool = False) -> PrivateFolder:
        """Opens a folder in this one."""
        if create:
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=self._descriptor)
        return PrivateFolder(self.path / name, self._open(name, os.O_DIRECTORY), self._owners)

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Opens a regular file and returns its descriptor."""
        file = self._open(name, flags)
        facts = self._check(file, self.path, name)
        if not stat.S_ISREG(facts.st_mode):
            os.close(file)
            raise PermissionError(EACCES, "it is not a regular file", str(self.path / name))
        return file

    def read(self, name: str) -> BinaryIO:
        return os.fdopen(self.open_file(name), "rb")

    def write(self, name: str, data: bytes = b"") -> None:
        """Writes a file in place; readers may see a part of it."""
        with os.fdopen(self.open_file(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            file.write(data)

    def publish(self, name: str, *pieces: memoryview | bytes, part_in: PrivateFolder | None = None) -> None:
        """Stores a file, whole or not at all, instead of what has its name; ``part_in`` has it before."""
        parts = self if part_in is None else part_in
        part = f".{uuid.uuid4().hex}.part"
        file = parts.open_file(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            # Whoever finds the file without this lock knows that its process has died.
            fcntl.flock(file, fcntl.LOCK_EX)
            for piece in pieces:
                left = memoryview(piece)
                while left:
                    left = left[os.write(file, left) :]
            os.rename(part, name, src_dir_fd=parts._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            with suppress(OSError):
                parts.unlink(part)
            raise
        finally:
            os.close(file)

    def unlink(self, name: str) -> None:
        os.unlink(name, dir_fd=self._descriptor)

    def stat(self, name: str) -> os.stat_result | None:
        """Returns the facts of a trusted regular file; ``None`` if there is none."""
        with suppress(FileNotFoundError):
            facts = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if stat.S_ISREG(facts.st_mode) and facts.st_uid in self._owners:
                return facts
        return None

    def names(self) -> list[str]:
        return os.listdir(self._descriptor)  # noqa: PTH208 - of a descriptor

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Waits for the lock on a file, which is created if there is none, and holds it."""
        descriptor = self.open_file(name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            unlock(descriptor)

    def refuse_others(self) -> None:
        """Raises ``PermissionError`` if others may look into the folder."""
        if os.fstat(self._descriptor).st_mode & 0o077:
            raise PermissionError(EACCES, "other users can access it", str(self.path))

    def keep_out_others(self) -> None:
        """Closes the folder to others; raises if that cannot be done and they may write there."""
        mode = os.fstat(self._descriptor).st_mode
        if mode & 0o077:
            try:
                os.fchmod(self._descriptor, 0o700)
            except OSError:
                # A file system that is only read.
                if mode & 0o022:
                    raise

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    __del__ = close

    def _open(self, name: str, flags: int) -> int:
        try:
            return os.open(name, flags | _FLAGS, 0o600, dir_fd=self._descriptor)
        except OSError as exc:
            exc.filename = str(self.path / name)
            raise

    def _check(self, descriptor: int, path: Path, name: str = "") -> os.stat_result:
        """Returns the facts of what was opened; closes it and raises if it belongs to another user."""
        facts = os.fstat(descriptor)
        if facts.st_uid not in self._owners:
            os.close(descriptor)
            raise PermissionError(EACCES, "it belongs to another user", str(path / name))
        return facts


def unlock(descriptor: int) -> None:
    """Releases a lock and closes the file.

    Closing it is not enough: a child that another thread forked meanwhile also has the file open, and would
    keep the lock until it ends.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def path_for_key(bucket: str, key: str, suffix: str) -> tuple[str, ...]:
    """Returns folders and name for a file about an object: those of its key, if each can be a local name.

    Others, as in ``../a`` or ``a//b``, and longer ones than file systems have, become a digest.
    """
    parts = (bucket, *f"{key}{suffix}".split("/"))
    if all(map(_is_plain, parts)):
        return parts
    return _DIGESTS, sha256(f"{bucket}/{key}".encode("utf-8", "surrogatepass")).hexdigest() + suffix


def _is_plain(name: str) -> bool:
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        return False
    is_special = name in {"", ".", "..", _DIGESTS} or "/" in name or "\0" in name
    return length <= _LONGEST_NAME and not is_special
