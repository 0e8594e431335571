"""A lock between processes, which the kernel frees if its holder dies."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["exclusive", "unlock"]


@contextmanager
def exclusive(path: Path, *, mode: int = 0o666) -> Iterator[None]:
    """Waits for the lock on a file, which is made if there is none, and holds it.

    Args:
        path: The file.
        mode: Who may have the file, less the umask.

    Raises:
        OSError: The file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        unlock(descriptor)


def unlock(descriptor: int) -> None:
    """Gives a lock back and closes the file.

    Closing it is not enough: a child that another thread forked meanwhile has the file open, too, and would
    keep the lock until it ends.
    """
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
