"""Reads from functions that users give to a reader, in place of a client's own source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.errors import TruncatedError
from s3torch.core.ranges import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from s3torch.core.memory import MemoryBudget


class StreamSource:
    """Makes a source of ranges of ``get_object_info()`` and ``get_stream(start, end)``."""

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
        """The size, once it was asked for."""
        return None if self._info is None else int(self._info.size)

    def head(self) -> Any:
        """Asks ``get_object_info`` once."""
        if self._info is None:
            self._info = self._get_object_info()
        return self._info

    def budget(self) -> MemoryBudget | None:
        """A function cannot read ahead."""
        return None

    def start(self, start: int, stop: int, into: memoryview | None = None) -> _StreamRange:
        """Prepares one call of ``get_stream``; it is made by whoever waits."""
        return _StreamRange(self, start, min(stop, int(self.head().size)), into)

    def fetch(self, start: int, stop: int) -> bytes:
        """Reads a range to its end."""
        if stop <= start:
            return b""
        pieces: list[bytes] = []
        missing = stop - start
        for piece in self._get_stream(start, stop):
            pieces.append(piece[:missing])
            missing -= len(pieces[-1])
            if not missing:
                break
        if missing:
            raise TruncatedError(
                f"the stream ended {missing} bytes before {stop}", bucket=self.bucket, key=self.key
            )
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _StreamRange:
    def __init__(self, source: StreamSource, start: int, stop: int, into: memoryview | None) -> None:
        self._source = source
        self._start = start
        self._stop = stop
        self._into = into

    def wait(self) -> memoryview:
        data = memoryview(self._source.fetch(self._start, self._stop))
        if self._into is None:
            return data
        self._into[: len(data)] = data
        return self._into[: len(data)]

    def cancel(self) -> None:
        """Does nothing; nothing has begun."""
