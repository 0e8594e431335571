"""Files of ``torch.save``, as far as core has to know them; torch is imported when it is needed."""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from s3torch.core.errors import CheckpointFormatError, MissingPackageError, S3Error
from s3torch.core.transfer.mapping import downloaded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.readers.base import S3Reader
    from s3torch.core.transfer.source import ObjectSource
    from s3torch.core.writers import S3Writer

_ZIP = b"PK\x03\x04"
# An archive has at least the record at its end.
_ZIP_END = 22
_PICKLE = b"\x80"
# Where a tar archive, in which very old versions of torch saved, has its mark.
_TAR, _TAR_AT = b"ustar", 257


def maps_by_default() -> bool:
    """Tells whether torch is set to map files that it loads."""
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


def load_mapped(source: ObjectSource, **options: Any) -> Any:
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
