"""How readers are made."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from s3torch.core import ConfigurationError, S3Reader, parse_s3_uri
from s3torch.core import S3ReaderConstructor as CoreReaderConstructor
from s3torchconnector.s3reader._source import FromSource, takes_stream
from s3torchconnector.s3reader.dcp_optimized import (
    DEFAULT_MAX_GAP_SIZE,
    DCPOptimizedS3Reader,
    ItemRange,
    check_gap,
)
from s3torchconnector.s3reader.ranged import RangedS3Reader
from s3torchconnector.s3reader.sequential import SequentialS3Reader

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from s3torch.core import S3ReaderConstructorProtocol as CoreConstructor
    from s3torchconnector.s3reader.protocol import GetStreamCallable, S3ReaderConstructorProtocol

__all__ = ["DCPOptimizedConstructor", "S3ReaderConstructor"]

_ADVICE = "for any other order use S3ReaderConstructor.sequential()"


class DCPOptimizedConstructor:
    """Makes a ``DCPOptimizedS3Reader`` for each file of a checkpoint.

    A storage reader takes only ``max_gap_size`` from it, and one constructor can serve many loads at a time;
    the readers are for code that opens the files itself. A subclass that makes readers of its own has all
    bytes read through these.

    Args:
        max_gap_size: Bytes between two items up to which one request fetches both.

    Raises:
        ConfigurationError: ``max_gap_size`` is negative. It is a ``ValueError``, too.
    """

    def __init__(self, max_gap_size: float = DEFAULT_MAX_GAP_SIZE) -> None:
        check_gap(max_gap_size)
        self.max_gap_size = max_gap_size
        self._item_ranges_by_file: dict[str, list[ItemRange]] = {}

    @property
    def kind(self) -> str:
        """The kind of the readers, by which ``S3StorageReader`` knows that it need not ask them."""
        own = type(self).__call__ is not DCPOptimizedConstructor.__call__
        return "unknown" if own else "dcp_optimized"

    def set_item_ranges_by_file(
        self,
        plan_items: Sequence[Any],
        storage_data: Mapping[Any, Any],
        base_path: str | os.PathLike[str],
    ) -> None:
        """Replaces the ranges by those of a plan, sorted, and merged where they overlap.

        Args:
            plan_items: The read items; none is no error, there is nothing to read then.
            storage_data: Where they are stored, from the checkpoint's metadata.
            base_path: The URI of the checkpoint.

        Raises:
            ConfigurationError: There are items, but ``storage_data`` is empty. It is a ``ValueError``, too.
            CheckpointError: It does not have an item.
        """
        from s3torch.dcp import CheckpointError

        if plan_items and not storage_data:
            raise ConfigurationError(
                "storage_data must not be empty; it tells where the items of the plan are stored"
            )
        files: dict[str, set[tuple[int, int]]] = {}
        for item in plan_items:
            info = storage_data.get(item.storage_index)
            if info is None:
                raise CheckpointError(
                    f"the metadata of the checkpoint does not tell where {item.storage_index} is stored"
                )
            files.setdefault(info.relative_path, set()).add((info.offset, info.offset + info.length))
        base = parse_s3_uri(base_path)
        folder = f"s3://{base.bucket}/{base.key}".rstrip("/")
        self._item_ranges_by_file = {
            f"{folder}/{path.lstrip('/')}": _merged(places) for path, places in files.items()
        }

    def __call__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: GetStreamCallable,
    ) -> S3Reader:
        """Makes the reader of one file; ``.metadata``, for which there are no ranges, gets a sequential one.

        Raises:
            ConfigurationError: No ranges are known for the file. It is a ``ValueError``, too.
        """
        if key.endswith(".metadata"):
            return SequentialS3Reader(bucket, key, get_object_info, get_stream)
        uri = f"s3://{bucket}/{key}"
        ranges = self._item_ranges_by_file.get(uri)
        if ranges is None:
            raise ConfigurationError(
                f"No ranges found for {uri}; S3StorageReader.prepare_local_plan has to set them; {_ADVICE}"
            )
        return DCPOptimizedS3Reader(bucket, key, ranges, get_object_info, get_stream, self.max_gap_size)


class S3ReaderConstructor(CoreReaderConstructor):
    """Makes reader constructors; what they return is a value that can be shared and pickled."""

    @staticmethod
    def sequential(keep_behind: int | None = None) -> S3ReaderConstructorProtocol:  # type: ignore[override]
        """For whole objects, read from front to back."""
        if keep_behind is None:
            return partial(SequentialS3Reader)
        return partial(SequentialS3Reader, keep_behind=keep_behind)

    @staticmethod
    def default() -> S3ReaderConstructorProtocol:  # type: ignore[override]
        """The same as ``sequential()``."""
        return S3ReaderConstructor.sequential()

    @staticmethod
    def range_based(buffer_size: int | None = None) -> S3ReaderConstructorProtocol:  # type: ignore[override]
        """For sparse reads of large objects.

        Args:
            buffer_size: Bytes that are fetched at once for smaller reads; ``None`` for 8 MiB, 0 for none.
        """
        return partial(RangedS3Reader, buffer_size=buffer_size)

    @staticmethod
    def dcp_optimized(max_gap_size: float = DEFAULT_MAX_GAP_SIZE) -> DCPOptimizedConstructor:
        """For distributed checkpoints, where the ranges are known.

        Args:
            max_gap_size: Ranges that are no further apart than this many bytes share a request.

        Raises:
            ConfigurationError: ``max_gap_size`` is negative. It is a ``ValueError``, too.
        """
        return DCPOptimizedConstructor(max_gap_size)

    @staticmethod
    def get_reader_type_string(constructor: Any) -> str:
        """Returns the kind of a constructor, ``"unknown"`` for one that is the user's own."""
        made = constructor.func if isinstance(constructor, partial) else constructor
        known = {SequentialS3Reader: "sequential", RangedS3Reader: "range_based"}
        if isinstance(made, type) and made in known:
            return known[made]
        return CoreReaderConstructor.get_reader_type_string(constructor)


def drop_in_constructor(constructor: Any) -> CoreConstructor:
    """Returns a reader constructor of s3torch, which one with the arguments of s3torchconnector is not."""
    if isinstance(constructor, FromSource) or not takes_stream(constructor):
        made: CoreConstructor = constructor
        return made
    return FromSource(constructor, S3ReaderConstructor.get_reader_type_string(constructor))


def _merged(places: set[tuple[int, int]]) -> list[ItemRange]:
    """Sorts ranges and merges those that overlap; ranges that only touch stay apart."""
    merged: list[ItemRange] = []
    for start, end in sorted(places):
        if merged and start < merged[-1].end:
            merged[-1] = ItemRange(merged[-1].start, max(end, merged[-1].end))
        else:
            merged.append(ItemRange(start, end))
    return merged
