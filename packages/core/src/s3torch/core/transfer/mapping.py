"""A whole object as a file in memory, for libraries that map files: what they map are the bytes that came."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch.core.memory import advise_huge_pages
from s3torch.core.ranges import split_range
from s3torch.core.transfer.window import Wanted, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.transfer.source import RangeSource

__all__ = ["downloaded"]


@contextlib.contextmanager
def downloaded(source: RangeSource) -> Iterator[str]:
    """Downloads an object, all parts in parallel, and gives the path of a file with its bytes.

    The file is in memory where the system has such files, else it is a temporary one. It has no name any more
    after the block; who has mapped it keeps the bytes.

    Args:
        source: An object that was not read yet.
    """
    first = memoryview(b"")
    if source.known_size is None:
        # Its answer tells the size; the others then start at once.
        first = source.start(0, source.part_size).wait()
    size = source.known_size or 0
    with _new_file(size) as (descriptor, path):
        if size:
            with _mapped(descriptor, size) as view:
                view[: len(first)] = first
                receive(source, _wanted(descriptor, view, len(first), source.part_size))
        yield path


def _wanted(descriptor: int, view: memoryview, start: int, part_size: int) -> Iterator[Wanted]:
    for part in split_range(start, len(view), part_size):
        if hasattr(os, "posix_fallocate"):
            # Cheaper than to touch page by page, done while other parts are on their way, and a full disk is
            # an error here and no signal later.
            os.posix_fallocate(descriptor, part.start, len(part))
        yield Wanted(part.start, part.stop, view[part.start : part.stop])


@contextlib.contextmanager
def _new_file(size: int) -> Iterator[tuple[int, str]]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("s3torch")
        path = f"/proc/self/fd/{descriptor}"
        named = False
    else:
        descriptor, path = tempfile.mkstemp(prefix="s3torch-")
        named = True
    try:
        os.truncate(descriptor, size)
        yield descriptor, path
    finally:
        os.close(descriptor)
        if named:
            Path(path).unlink()


@contextlib.contextmanager
def _mapped(descriptor: int, size: int) -> Iterator[memoryview]:
    mapping = mmap.mmap(descriptor, size)
    advise_huge_pages(mapping)
    view = memoryview(mapping)
    try:
        yield view
    finally:
        view.release()
        # A transfer that was cancelled may hold its slice for a moment longer; the mapping ends with it.
        with contextlib.suppress(BufferError):
            mapping.close()
