"""Checkpoints as single objects, for ``torch.save`` and ``torch.load``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from s3torch.core.client import S3Client
from s3torch.core.errors import ConfigurationError
from s3torch.core.uri import S3Uri, parse_s3_uri

if TYPE_CHECKING:
    import os
    from types import TracebackType

    from s3torch.core.config import S3ClientConfig
    from s3torch.core.models import PutOptions
    from s3torch.core.readers.base import S3Reader
    from s3torch.core.readers.protocols import S3ReaderConstructorProtocol
    from s3torch.core.writers import S3Writer

__all__ = ["S3Checkpoint"]


class S3Checkpoint:
    """Opens objects in S3 as files to save checkpoints to and to load them from.

    ::

        checkpoint = S3Checkpoint(region="us-east-1")
        with checkpoint.writer("s3://bucket/epoch0.pt") as writer:
            torch.save(model.state_dict(), writer)
        with checkpoint.reader("s3://bucket/epoch0.pt") as reader:
            model.load_state_dict(torch.load(reader, weights_only=True))

    A checkpoint appears only when its ``with`` block ended without an exception; until then, and if it did
    not, an older one with the same name stays. It can be pickled and used after a fork.

    Args:
        region: The region of the buckets; ``None`` takes it from the environment or profile.
        endpoint: The URL of a store that speaks S3.
        s3client_config: All other settings.
        reader_constructor: The kind of reader; ``None`` for sequential.
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
        """Tells whether there is an object."""
        return self._client.exists(*_object_uri(s3_uri))

    def delete(self, s3_uri: str | os.PathLike[str]) -> None:
        """Deletes an object; a missing one is no error."""
        self._client.delete_object(*_object_uri(s3_uri))

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
