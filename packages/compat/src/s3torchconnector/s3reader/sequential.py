"""The default reader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core import SequentialS3Reader as CoreReader
from s3torchconnector.s3reader._source import as_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torchconnector.s3reader.protocol import GetStreamCallable

__all__ = ["SequentialS3Reader"]


class SequentialS3Reader(CoreReader):
    """Reads an object from front to back.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``.
        keep_behind: As in the class of the same name in ``s3torch.core``.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStreamCallable,
        keep_behind: int | None = None,
    ) -> None:
        super().__init__(as_source(bucket, key, get_object_info, get_stream), keep_behind)
