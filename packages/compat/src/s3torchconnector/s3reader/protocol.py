"""What a reader constructor is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from s3torch.core import S3Reader

__all__ = ["DCPS3ReaderConstructorProtocol", "GetStreamCallable", "S3ReaderConstructorProtocol"]


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


@runtime_checkable
class DCPS3ReaderConstructorProtocol(S3ReaderConstructorProtocol, Protocol):
    """A reader constructor that is told the ranges of a load before the load begins."""

    def set_item_ranges_by_file(
        self,
        plan_items: Sequence[Any],
        storage_data: Mapping[Any, Any],
        base_path: str | os.PathLike[str],
    ) -> None:
        """Takes the read items of a plan, where they are stored, and the URI of the checkpoint."""
        ...
