"""Files of ``torch.save``, as far as core has to know them; torch is imported when it is needed."""

from __future__ import annotations

import mmap
import os
import tempfile
import zipfile
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from s3torch.core.errors import CheckpointFormatError, MissingPackageError, S3Error
from s3torch.core.ranges import split_range
from s3torch.core.transfer import Wanted, advise_huge_pages, receive

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core._writers import S3Writer
    from s3torch.core.readers import S3Reader
    from s3torch.core.transfer import RangeSource

_ZIP = b"PK\x03\x04"
# An archive has at least the record at its end.
_ZIP_END = 22
_PICKLE = b"\x80"
# Where a tar archive, in which very old versions of torch saved, has its mark.
_TAR, _TAR_AT = b"ustar", 257


def maps_by_default() -> bool:
    """Returns whether torch is set to map files that it loads."""
    _torch()
    try:
        settings = import_module("torch.utils.serialization.config")
    except ImportError:  # torch before 2.6
        return False
    return bool(settings.load.mmap)


def load(reader: S3Reader, **options: Any) -> Any:
    """Loads from a reader; the tensors have memory of their own, into which their bytes come."""
    torch = _torch()
    _check_format(reader, reader.bucket, reader.key)
    with _explained(reader.bucket, reader.key):
        return torch.load(reader, mmap=False, **options)


def load_mapped(source: RangeSource, **options: Any) -> Any:
    """Downloads an object into a file in memory and maps that; the tensors alias it."""
    torch = _torch()
    with downloaded(source) as path:
        with Path(path).open("rb") as file:
            _check_format(file, source.bucket, source.key)
        with _explained(source.bucket, source.key):
            return torch.load(path, mmap=True, **options)


def save(obj: object, writer: S3Writer) -> None:
    """Saves to a writer, which copies each byte once."""
    _torch().save(obj, writer)


def _torch() -> Any:
    try:
        # By name, because core does not depend on it.
        return import_module("torch")
    except ImportError as exc:
        raise MissingPackageError(
            f"loading and saving checkpoints needs torch, which cannot be imported here ({exc}); "
            "pip install torch, or use reader() and writer()"
        ) from exc


@contextmanager
def _explained(bucket: str, key: str) -> Iterator[None]:
    """Says in errors of torch which object they are about."""
    try:
        yield
    except S3Error:
        raise
    except EOFError as exc:
        raise _damaged(bucket, key, f"it ends too early ({exc})") from exc
    except Exception as exc:
        exc.add_note(f"This happened while s3://{bucket}/{key} was loaded.")
        raise


def _check_format(file: BinaryIO | S3Reader, bucket: str, key: str) -> None:
    """Refuses what torch cannot have written, or not to its end."""
    head = file.read(_TAR_AT + len(_TAR))
    if head.startswith(_ZIP):
        if len(head) < _ZIP_END or not zipfile.is_zipfile(file):
            raise _damaged(bucket, key, "the archive has no end, so it was cut")
    elif not head.startswith(_PICKLE) and head[_TAR_AT:] != _TAR:
        raise _damaged(bucket, key, f"it begins with {head[:8]!r}")
    file.seek(0)


def _damaged(bucket: str, key: str, why: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"the object is not a whole file of torch.save: {why}", operation="GetObject", bucket=bucket, key=key
    )


@contextmanager
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
            # Cheaper than to touch page by page, done while other parts are in flight, and a full disk is
            # an error here and no signal later.
            os.posix_fallocate(descriptor, part.start, len(part))
        yield Wanted(part.start, part.stop, view[part.start : part.stop])


@contextmanager
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


@contextmanager
def _mapped(descriptor: int, size: int) -> Iterator[memoryview]:
    mapping = mmap.mmap(descriptor, size)
    advise_huge_pages(mapping)
    view = memoryview(mapping)
    try:
        yield view
    finally:
        view.release()
        # A transfer that was cancelled may hold its slice for a moment longer; the mapping ends with it.
        with suppress(BufferError):
            mapping.close()
