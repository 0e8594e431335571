"""What a reader constructor is, for annotations and for users' own readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core.readers.base import S3Reader

__all__ = ["GetStreamCallable", "S3ReaderConstructorProtocol"]


@runtime_checkable
class GetStreamCallable(Protocol):
    """Gives the bytes of an object."""

    def __call__(self, start: int | None = None, end: int | None = None) -> Iterator[bytes]:
        """Returns an iterator over the bytes from ``start`` to ``end`` (exclusive)."""
        ...


@runtime_checkable
class S3ReaderConstructorProtocol(Protocol):
    """Makes a reader; the client calls it with these keywords."""

    def __call__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStreamCallable,
    ) -> S3Reader:
        """Returns an unread reader of one object.

        Args:
            bucket: The bucket.
            key: The key.
            get_object_info: Returns something with ``size`` and ``etag``; it may send a HEAD request.
            get_stream: Gives the bytes.
        """
        ...
