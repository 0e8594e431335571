"""A lock between processes, which the kernel releases if its holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def exclusive(path: Path, *, mode: int = 0o666) -> Iterator[None]:
    """Waits for the lock on a file, which is created if there is none, and holds it.

    ``mode`` is the mode of a new file, less the umask.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        unlock(descriptor)


def unlock(descriptor: int) -> None:
    """Releases a lock and closes the file.

    Closing it is not enough: a child that another thread forked meanwhile also has the file open, and would
    keep the lock until it ends.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
