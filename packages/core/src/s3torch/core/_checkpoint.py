"""Checkpoints as single objects, for ``torch.save`` and ``torch.load``; torch is imported when needed."""

from __future__ import annotations

import mmap
import os
import tempfile
import zipfile
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from s3torch.core._client import S3Client
from s3torch.core._uri import S3Uri, parse_s3_uri
from s3torch.core.errors import (
    CheckpointFormatError,
    ConfigurationError,
    MissingPackageError,
    S3Error,
)
from s3torch.core.ranges import split_range
from s3torch.core.transfer import Wanted, advise_huge_pages, read_again, receive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from s3torch.core._config import S3ClientConfig
    from s3torch.core._writers import S3Writer
    from s3torch.core.models import ObjectInfo, PutOptions
    from s3torch.core.readers import S3Reader, S3ReaderConstructorProtocol
    from s3torch.core.transfer import RangeSource

_ZIP = b"PK\x03\x04"
# An archive has at least the record at its end.
_ZIP_END = 22
_PICKLE = b"\x80"
# Where a tar archive, in which very old versions of torch saved, has its mark.
_TAR, _TAR_AT = b"ustar", 257


class S3Checkpoint:
    """Saves checkpoints as objects in S3 and loads them.

    ::

        checkpoint = S3Checkpoint(region="us-east-1")
        checkpoint.save(model.state_dict(), "s3://bucket/epoch0.pt")
        model.load_state_dict(checkpoint.load("s3://bucket/epoch0.pt"))

    ``writer`` and ``reader`` open the same objects as files, for ``torch.save`` and ``torch.load`` with other
    arguments and for other formats.

    A checkpoint appears only when its ``with`` block ended without an exception; until then, and if it did
    not, an older one with the same name stays. It can be pickled and used after a fork.

    Args:
        region: The region of the buckets; ``None`` takes it from the environment or profile.
        endpoint: The URL of a store that speaks S3.
        s3client_config: All other settings.
        reader_constructor: The kind of reader that ``reader`` gives; ``None`` for sequential.
    """

    def __init__(
        self,
        region: str | None = None,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        *,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
    ) -> None:
        self.region = region
        self.endpoint = endpoint
        self._reader_constructor = reader_constructor
        self._client = S3Client(region, endpoint=endpoint, s3client_config=s3client_config)

    def save(self, obj: object, s3_uri: str | os.PathLike[str], *, options: PutOptions | None = None) -> None:
        """Saves an object as ``torch.save`` does; it appears whole or, after an error, not at all.

        Parts are uploaded while the next ones are serialised, and no byte is copied more than once.

        Args:
            obj: What ``torch.save`` takes.
            s3_uri: Where the checkpoint goes.
            options: How it is stored.

        Raises:
            ConfigurationError: The URI does not name an object.
            MissingPackageError: torch is not installed.
        """
        with self.writer(s3_uri, options=options) as writer:
            _save(obj, writer)

    def load(
        self,
        s3_uri: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,  # noqa: FBT001 - As in torch.load.
        mmap: bool | None = None,  # noqa: FBT001 - As in torch.load.
    ) -> Any:
        """Loads what ``save`` or ``torch.save`` has written.

        Parts are downloaded ahead, in parallel, and the bytes of large tensors come straight into their
        memory.

        Args:
            s3_uri: The checkpoint.
            map_location: Where tensors go, as in ``torch.load``.
            weights_only: Whether only tensors and plain values may be loaded; ``None`` for torch's default.
                A checkpoint may run any code otherwise.
            mmap: ``True`` downloads the object into one file in memory, which tensors on the CPU alias. It
                takes no more memory than the object has, which is freed when the last tensor is gone. Not for
                formats of torch before 1.6. ``None`` for torch's default.

        Raises:
            CheckpointFormatError: The object is not what ``torch.save`` writes, or not all of it.
            ConfigurationError: The URI does not name an object.
            MissingPackageError: torch is not installed.
        """
        bucket, key = _object_uri(s3_uri)
        options = {"map_location": map_location, "weights_only": weights_only}
        if _maps_by_default() if mmap is None else mmap:
            source = self._client.open_ranges(bucket, key)
            return read_again(lambda: _load_mapped(source, **options))

        def load() -> Any:
            with self.reader(s3_uri) as reader:
                return _load(reader, **options)

        return read_again(load)

    def reader(self, s3_uri: str | os.PathLike[str]) -> S3Reader:
        """Opens an object for reading; nothing is sent before it is read.

        Raises:
            ConfigurationError: The URI does not name an object.
        """
        bucket, key = _object_uri(s3_uri)
        return self._client.get_object(bucket, key, reader_constructor=self._reader_constructor)

    def writer(self, s3_uri: str | os.PathLike[str], *, options: PutOptions | None = None) -> S3Writer:
        """Opens an object for writing; it appears when the writer is closed.

        Args:
            s3_uri: Where the checkpoint goes.
            options: How it is stored.

        Raises:
            ConfigurationError: The URI does not name an object.
        """
        bucket, key = _object_uri(s3_uri)
        return self._client.put_object(bucket, key, options=options)

    def exists(self, s3_uri: str | os.PathLike[str]) -> bool:
        """Whether there is an object."""
        return self._client.exists(*_object_uri(s3_uri))

    def delete(self, s3_uri: str | os.PathLike[str]) -> None:
        """Deletes an object; a missing one is no error."""
        self._client.delete_object(*_object_uri(s3_uri))

    def list(self, s3_uri: str | os.PathLike[str]) -> Iterator[ObjectInfo]:
        """Lists the objects whose URIs start with this one, in the order of S3, a page at a time."""
        bucket, prefix = parse_s3_uri(s3_uri)
        for page in self._client.list_objects(bucket, prefix):
            yield from page.object_info

    def close(self) -> None:
        """Frees connections; the next use makes new ones."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _object_uri(s3_uri: str | os.PathLike[str]) -> S3Uri:
    uri = parse_s3_uri(s3_uri)
    if not uri.key:
        raise ConfigurationError(f"expected the URI of an object, got {s3_uri!r}, which has no key")
    return uri


def _maps_by_default() -> bool:
    """Returns whether torch is set to map files that it loads."""
    _torch()
    try:
        settings = import_module("torch.utils.serialization.config")
    except ImportError:  # torch before 2.6
        return False
    return bool(settings.load.mmap)


def _load(reader: S3Reader, **options: Any) -> Any:
    """Loads from a reader; the tensors have memory of their own, into which their bytes come."""
    torch = _torch()
    _check_format(reader, reader.bucket, reader.key)
    with _explained(reader.bucket, reader.key):
        try:
            return torch.load(reader, mmap=False, **options)
        except AttributeError:
            # torch puts it in the place of what a file raises; a reader that failed for good raises again.
            reader.read(0)
            raise


def _load_mapped(source: RangeSource, **options: Any) -> Any:
    """Downloads an object into a file in memory and maps that; the tensors alias it."""
    torch = _torch()
    with _downloaded(source) as path:
        with Path(path).open("rb") as file:
            _check_format(file, source.bucket, source.key)
        with _explained(source.bucket, source.key):
            return torch.load(path, mmap=True, **options)


def _save(obj: object, writer: S3Writer) -> None:
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
        exc.add_note(f"This happened while s3://{bucket}/{key} was being loaded.")
        raise


def _check_format(file: BinaryIO | S3Reader, bucket: str, key: str) -> None:
    """Refuses what torch cannot have written, or not to its end."""
    head = file.read(_TAR_AT + len(_TAR))
    if head.startswith(_ZIP):
        if len(head) < _ZIP_END or not zipfile.is_zipfile(file):
            raise _damaged(bucket, key, "the archive has no end, so it was truncated")
    elif not head.startswith(_PICKLE) and head[_TAR_AT:] != _TAR:
        raise _damaged(bucket, key, f"it begins with {head[:8]!r}")
    file.seek(0)


def _damaged(bucket: str, key: str, why: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"the object is not a complete torch.save file: {why}", operation="GetObject", bucket=bucket, key=key
    )


@contextmanager
def _downloaded(source: RangeSource) -> Iterator[str]:
    """Downloads an object, all parts in parallel, and gives the path of a file with its bytes.

    The file is in memory where the system has such files, else it is a temporary one. It has no name any more
    after the block; who has mapped it keeps the bytes.

    Args:
        source: An object that was not read yet.
    """
    first = memoryview(b"")
    source.verify_whole()
    if source.known_size is None:
        # Its answer tells the size; the others then start at once.
        first = source.start(0, source.part_size).wait()
    size = source.known_size or 0
    with ExitStack() as stack:
        with _room(source, size):
            descriptor, path = stack.enter_context(_new_file(size))
        if size:
            with _room(source, size), _mapped(descriptor, size) as view:
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
def _room(source: RangeSource, size: int) -> Iterator[None]:
    """Says what to do where neither memory nor a disk takes the file."""
    try:
        yield
    except S3Error:
        raise
    except OSError as exc:
        raise S3Error(
            f"no room for a file of {size} bytes to map ({exc.strerror}); load it with mmap=False",
            operation="GetObject",
            bucket=source.bucket,
            key=source.key,
        ) from exc


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
