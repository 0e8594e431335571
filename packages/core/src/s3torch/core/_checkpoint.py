"""Checkpoints as single objects, for ``torch.save`` and ``torch.load``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from s3torch.core import _torch_files
from s3torch.core._client import S3Client
from s3torch.core._uri import S3Uri, parse_s3_uri
from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from types import TracebackType

    from s3torch.core._config import S3ClientConfig
    from s3torch.core._writers import S3Writer
    from s3torch.core.models import ObjectInfo, PutOptions
    from s3torch.core.readers import S3Reader, S3ReaderConstructorProtocol

__all__ = ["S3Checkpoint"]


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
            _torch_files.save(obj, writer)

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
        if _torch_files.maps_by_default() if mmap is None else mmap:
            return _torch_files.load_mapped(self._client.open_ranges(bucket, key), **options)
        with self.reader(s3_uri) as reader:
            return _torch_files.load(reader, **options)

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
        raise ConfigurationError(f"the URI of an object is needed, got {s3_uri!r}, which has no key")
    return uri
