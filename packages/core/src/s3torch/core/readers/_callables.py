"""The border to functions of users: what ``s3torchconnector`` gives to readers, as a source of ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from s3torch.core.errors import ConfigurationError, TruncatedError
from s3torch.core.ranges import MIB
from s3torch.core.transfer import RangeSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core._memory import MemoryBudget
    from s3torch.core.transfer import PendingRange


def from_callables(
    bucket: str,
    key: str,
    get_object_info: Callable[[], Any],
    get_stream: Callable[..., Iterator[bytes]],
) -> RangeSource:
    """Returns a source of ranges of two functions, the arguments of reader constructors.

    A client and a dataset have a source already, which they pass as ``get_stream``: it is returned as it is.

    Raises:
        ConfigurationError: The bucket has no name.
    """
    if not bucket:
        raise ConfigurationError("Bucket should be specified")
    if hasattr(get_stream, "prepare"):
        return cast("RangeSource", get_stream)
    if hasattr(get_stream, "start"):
        return _PlainSource(get_stream)
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


class _PlainSource(RangeSource):
    """A source that does not subclass ``RangeSource``, with the defaults of what it lacks."""

    def __init__(self, source: Any) -> None:
        self.bucket = source.bucket
        self.key = source.key
        self.part_size = source.part_size
        self._source = source

    @property
    def known_size(self) -> int | None:
        size: int | None = self._source.known_size
        return size

    def head(self) -> Any:
        return self._source.head()

    def start(self, start: int, stop: int, into: memoryview | None = None) -> PendingRange:
        pending: PendingRange = self._source.start(start, stop, into)
        return pending

    def budget(self) -> MemoryBudget | None:
        budget: MemoryBudget | None = self._source.budget()
        return budget
