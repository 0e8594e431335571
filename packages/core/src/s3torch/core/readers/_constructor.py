"""The kinds of readers, and the constructors that a client takes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from s3torch.core.errors import ConfigurationError
from s3torch.core.plugins._manager import reader_kind
from s3torch.core.ranges import MIB
from s3torch.core.readers._callables import from_callables
from s3torch.core.readers._policies import PlannedPolicy, RangedPolicy, SequentialPolicy
from s3torch.core.readers._reader import ObjectReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from s3torch.core.ranges import ByteRange
    from s3torch.core.readers._reader import S3Reader


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


class SequentialS3Reader(ObjectReader):
    """Reads an object from front to back.

    The object is cut into parts of the configured size, each fetched by one request, at most once while it is
    kept. How many parts are in flight ahead of the position starts at one, doubles while the reading is
    sequential, and falls back on a seek; reading the tail, as torch does before it reads a file, does not
    disturb it.

    What lies behind the position is kept up to ``keep_behind`` bytes, so going back is free there, and
    objects of that size that were read with ``read`` are kept whole. Otherwise the parts that a ``read`` or
    ``readinto`` takes in whole go straight into the result and are the caller's alone: who goes back to
    them fetches them again.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``; or a ``RangeSource``.
        keep_behind: Bytes; ``None`` for 32 MiB, 0 for reading once through.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
        keep_behind: int | None = None,
    ) -> None:
        source = from_callables(bucket, key, get_object_info, get_stream)
        super().__init__(source, SequentialPolicy(keep_behind))


class RangedS3Reader(ObjectReader):
    """Reads just the ranges that are asked for.

    Reads of at least ``buffer_size`` bytes go straight into the caller's memory, in parallel parts. Smaller
    ones are served from a buffer that is filled from the position on.

    Args:
        bucket: The bucket.
        key: The key.
        get_object_info: Returns something with the ``size`` of the object.
        get_stream: Returns an iterator over the bytes from ``start`` to ``end``; or a ``RangeSource``.
        buffer_size: Bytes of the buffer; ``None`` for 8 MiB, 0 for none.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
        buffer_size: int | None = None,
    ) -> None:
        source = from_callables(bucket, key, get_object_info, get_stream)
        super().__init__(source, RangedPolicy(buffer_size))


def planned_reader(
    bucket: str,
    key: str,
    get_object_info: Callable[[], Any],
    get_stream: Callable[..., Iterator[bytes]],
    ranges: Iterable[tuple[int, int] | ByteRange] = (),
    max_gap: float | None = None,
) -> ObjectReader:
    """Returns a reader of the ranges of a plan, with those that come next in flight.

    Neighbouring ranges share a request where the gap between them is small, and large ones are cut into
    parts. The plan is advice, not a fence: it may be read in any order and more than once, and what is not
    in it is fetched when it is read. Up to 32 MiB of parts are kept behind the position; those that a read
    takes in whole go straight into the result and are not kept.
    """
    source = from_callables(bucket, key, get_object_info, get_stream)
    return ObjectReader(source, PlannedPolicy(ranges, max_gap, part_size=source.part_size))


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
        """For ranges of an object that are known beforehand: those that come next are in flight.

        Args:
            ranges: What will be read, as pairs of start and stop.
            max_gap: Bytes between two ranges up to which one request fetches both. ``None`` fetches at most
                about a tenth more than what is wanted.
        """
        return partial(planned_reader, ranges=tuple(ranges), max_gap=max_gap)

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
        """Returns the kind of a constructor.

        Returns:
            ``"sequential"``, also for ``None``; ``"range_based"``; ``"planned"``; the ``kind`` that a plugin
            names; else ``"unknown"``.
        """
        made = constructor.func if isinstance(constructor, partial) else constructor
        if made is None or made is SequentialS3Reader:
            return "sequential"
        if made is RangedS3Reader:
            return "range_based"
        if made is planned_reader:
            return "planned"
        kind = getattr(constructor, "kind", None)
        return kind if isinstance(kind, str) else "unknown"
