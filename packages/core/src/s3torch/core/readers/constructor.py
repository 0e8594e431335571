"""Names the kinds of readers that a client can make."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.core.plugins.manager import reader_kind
from s3torch.core.ranges import MIB
from s3torch.core.readers.planned import PlannedS3Reader
from s3torch.core.readers.ranged import RangedS3Reader
from s3torch.core.readers.sequential import SequentialS3Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from s3torch.core.ranges import ByteRange
    from s3torch.core.readers.protocols import S3ReaderConstructorProtocol

__all__ = ["S3ReaderConstructor"]


class S3ReaderConstructor:
    """Makes reader constructors; what they return is a value that can be shared and pickled."""

    @staticmethod
    def sequential(keep_behind: int | None = None) -> S3ReaderConstructorProtocol:
        """For whole objects, read from front to back.

        Args:
            keep_behind: Bytes behind the position that are kept, so that going back is free; ``None`` for
                32 MiB.
        """
        if keep_behind is None:
            return partial(SequentialS3Reader)
        return partial(SequentialS3Reader, keep_behind=keep_behind)

    @staticmethod
    def default() -> S3ReaderConstructorProtocol:
        """The same as ``sequential()``."""
        return S3ReaderConstructor.sequential()

    @staticmethod
    def range_based(buffer_size: int | None = None) -> S3ReaderConstructorProtocol:
        """For sparse reads of large objects.

        Args:
            buffer_size: Bytes that are fetched at once for smaller reads; ``None`` for 8 MiB, 0 for none.
        """
        return partial(RangedS3Reader, buffer_size=buffer_size)

    @staticmethod
    def planned(
        ranges: Iterable[tuple[int, int] | ByteRange], max_gap: float | None = None
    ) -> S3ReaderConstructorProtocol:
        """For ranges of an object that are known beforehand: those that come next are on their way.

        Args:
            ranges: What will be read, as pairs of start and stop.
            max_gap: Bytes between two ranges up to which one request fetches both. ``None`` fetches at most
                about a tenth more than what is wanted.
        """
        return partial(PlannedS3Reader, ranges=tuple(ranges), max_gap=max_gap)

    @staticmethod
    def dcp_optimized(max_gap_size: float = 32 * MIB) -> Any:
        """For distributed checkpoints, where the ranges are known; needs ``s3torch-dcp``.

        Args:
            max_gap_size: Ranges that are no further apart than this many bytes share a request.

        Raises:
            ConfigurationError: ``max_gap_size`` is negative, or ``s3torch-dcp`` is not installed.
        """
        try:
            make = reader_kind("dcp_optimized")
        except ConfigurationError as exc:
            raise ConfigurationError(
                "readers for distributed checkpoints come with another package; pip install s3torch-dcp"
            ) from exc
        return make(max_gap_size=max_gap_size)

    @staticmethod
    def named(kind: str, **options: Any) -> Any:
        """For a kind of reader that a plugin has registered.

        Args:
            kind: The name of the kind.
            options: What the kind takes.

        Raises:
            ConfigurationError: No installed plugin has this kind.
        """
        return reader_kind(kind)(**options)

    @staticmethod
    def get_reader_type_string(constructor: Any) -> str:
        """Names the kind of a constructor.

        Returns:
            ``"sequential"``, also for ``None``; ``"range_based"``; ``"planned"``; the ``kind`` that a plugin
            names; else ``"unknown"``.
        """
        made = constructor.func if isinstance(constructor, partial) else constructor
        if made is None or made is SequentialS3Reader:
            return "sequential"
        if made is RangedS3Reader:
            return "range_based"
        if made is PlannedS3Reader:
            return "planned"
        kind = getattr(constructor, "kind", None)
        return kind if isinstance(kind, str) else "unknown"
