"""What a reader constructor is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from s3torch.core import GetStreamCallable, S3ReaderConstructorProtocol

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

__all__ = ["DCPS3ReaderConstructorProtocol", "GetStreamCallable", "S3ReaderConstructorProtocol"]


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
