"""The border to functions of users: streams of a source of ranges, and a source of ranges of such functions.

Readers and their constructors take ``get_object_info`` and ``get_stream`` here; those of s3torch take a
source of ranges.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

from s3torch.core import ConfigurationError, TruncatedError
from s3torch.core.ranges import MIB
from s3torch.core.transfer import InOrder, RangeSource, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core import S3Reader
    from s3torch.core.transfer import MemoryBudget, PendingRange
    from s3torchconnector.s3reader.protocol import GetStreamCallable

_STREAM_IN_FLIGHT = 32 * MIB


class FromSource:
    """A reader constructor of s3torch that calls one with the arguments of s3torchconnector.

    Its other public attributes are passed through.
    """

    def __init__(self, make: Callable[..., S3Reader], kind: str) -> None:
        self._make = make
        self.kind = kind

    def __call__(self, source: RangeSource, /) -> S3Reader:
        stream = SourceStream(source)
        return self._make(
            bucket=source.bucket, key=source.key, get_object_info=source.head, get_stream=stream
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._make, name)


def takes_stream(constructor: Callable[..., Any]) -> bool:
    """Whether a constructor takes the four arguments of s3torchconnector, by their names."""
    try:
        signature(constructor).bind(bucket="", key="", get_object_info=None, get_stream=None)
    except (TypeError, ValueError):
        return False
    return True


class SourceStream:
    """The ``get_stream`` of an object in S3."""

    def __init__(self, source: RangeSource) -> None:
        self.source = source

    def __call__(self, start: int | None = None, end: int | None = None) -> GetObjectStream:
        """Streams the bytes from ``start`` to ``end`` (exclusive), a chunk per part."""
        return GetObjectStream(self.source, start or 0, end)


class GetObjectStream:
    """The bytes of an object, one ``bytes`` per part, with the next parts in flight.

    After an error the next one is asked for from where the bytes ended.
    """

    def __init__(self, source: RangeSource, start: int, stop: int | None) -> None:
        self.bucket = source.bucket
        self.key = source.key
        self._source = source
        self._position = start
        self._stop = stop
        self._closed = False
        self._parts: InOrder | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._closed:
            raise StopIteration
        if self._parts is None:
            self._parts = InOrder(self._source, self._wanted(), limit=_STREAM_IN_FLIGHT)
        try:
            data = next(self._parts)
        except StopIteration:
            self.close()
            raise
        except BaseException:
            self._parts = None
            raise
        if not data:
            self.close()
            raise StopIteration
        self._position += len(data)
        return data.obj if isinstance(data.obj, bytes) else bytes(data)

    def tell(self) -> int:
        """Returns the offset in the object of the next byte."""
        return self._position

    def close(self) -> None:
        """Cancels what is in flight and ends the stream."""
        self._closed = True
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()

    def _wanted(self) -> Iterator[Wanted]:
        start, size = self._position, self._source.part_size
        while True:
            ends = [end for end in (self._stop, self._source.known_size) if end is not None]
            stop = min([start + size, *ends])
            if stop <= start:
                return
            yield Wanted(start, stop)
            start = stop


def as_source(
    bucket: str, key: str, get_object_info: Callable[[], Any], get_stream: GetStreamCallable
) -> RangeSource:
    """Returns a source of ranges of two functions; that of an object in S3 is behind its stream.

    Raises:
        ConfigurationError: The bucket has no name. It is also a ``ValueError``.
    """
    if not bucket:
        raise ConfigurationError("Bucket should be specified")
    if isinstance(get_stream, SourceStream):
        return get_stream.source
    return CallableSource(bucket, key, get_object_info, get_stream)


class CallableSource(RangeSource):
    """Ranges of ``get_stream(start, end)``, each read by whoever waits for it."""

    part_size = 8 * MIB

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: Callable[[], Any],
        get_stream: Callable[..., Iterator[bytes]],
    ) -> None:
        self.bucket = bucket
        self.key = key
        self._get_object_info = get_object_info
        self._get_stream = get_stream
        self._info: Any = None

    @property
    def known_size(self) -> int | None:
        return None if self._info is None else int(self._info.size)

    def head(self) -> Any:
        if self._info is None:
            self._info = self._get_object_info()
        return self._info

    def budget(self) -> MemoryBudget | None:
        """A function cannot read ahead."""
        return None

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        return _CallableRange(self, start, min(stop, int(self.head().size)), into)

    def read(self, start: int, stop: int) -> bytes:
        pieces: list[bytes] = []
        missing = stop - start
        # Without bytes to read nothing is called.
        for piece in self._get_stream(start, stop) if missing > 0 else ():
            pieces.append(piece[:missing])
            missing -= len(pieces[-1])
            if not missing:
                break
        if missing > 0:
            raise TruncatedError(
                f"the stream ended {missing} bytes before {stop}", bucket=self.bucket, key=self.key
            )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _CallableRange:
    def __init__(self, source: CallableSource, start: int, stop: int, into: memoryview | None) -> None:
        self._source = source
        self._range = (start, stop)
        self._into = into

    def wait(self) -> memoryview:
        data = memoryview(self._source.read(*self._range))
        if self._into is None:
            return data
        self._into[: len(data)] = data
        return self._into[: len(data)]

    def cancel(self) -> None:
        """Does nothing; nothing has begun."""
