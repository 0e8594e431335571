"""The reader for sparse reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core import RangedS3Reader as CoreReader
from s3torchconnector.s3reader._source import as_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torchconnector.s3reader.protocol import GetStreamCallable

__all__ = ["RangedS3Reader"]


class RangedS3Reader(CoreReader):
    """Reads just the ranges that are asked for.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``.
        buffer_size: Bytes of the buffer; ``None`` for 8 MiB, 0 for none.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStreamCallable,
        buffer_size: int | None = None,
    ) -> None:
        super().__init__(as_source(bucket, key, get_object_info, get_stream), buffer_size)
