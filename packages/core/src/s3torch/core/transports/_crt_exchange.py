"""What goes out and what comes back with a request of the ``crt`` transport."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from s3torch.core.errors import RangeNotSatisfiableError, S3Error, TruncatedError
from s3torch.core.models import GetResult, HeadObjectResult
from s3torch.core.transports._http import announced_length, head_from_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from s3torch.core.ranges import ByteRange

T = TypeVar("T")


class Exchange(Generic[T]):
    """What comes back for a request, and how it becomes a result."""

    # The length of the range that is asked for, where there is one.
    part_size: int | None = None

    def __init__(
        self,
        finish: Callable[[Mapping[str, str], bytes], T],
        *,
        ignored: type[S3Error] | None = None,
    ) -> None:
        self._finish = finish
        self._ignored = ignored
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []

    def on_headers(self, headers: list[tuple[str, str]], **_: Any) -> None:
        """Takes the head of the response; called on a thread of the CRT."""
        self._headers = {name.lower(): value for name, value in headers}

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:  # noqa: ARG002
        """Takes a piece of the body; called on a thread of the CRT."""
        self._chunks.append(chunk)

    def result(self) -> T:
        """Makes the result of a request that succeeded."""
        return self._finish(self._headers, self._body())

    def recover(self, error: S3Error) -> T:
        """Makes a result of an error that means success, or raises it."""
        if self._ignored is not None and isinstance(error, self._ignored):
            return self._finish({}, b"")
        raise error

    def take_whole(self) -> bool:
        """Lets the CRT take an answer without a range from now on; ``False`` where none can be right."""
        return False

    def begin(self) -> None:
        """Forgets what came back for the attempt before."""
        self._headers = {}
        self._chunks = []

    def release(self) -> None:
        """Lets go of buffers."""
        self._chunks = []

    def _body(self) -> bytes:
        return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)


class GetExchange(Exchange[GetResult]):
    """A GET, whose body goes to the caller's buffer if there is one."""

    def __init__(self, byte_range: ByteRange | None, into: memoryview | None) -> None:
        super().__init__(self.finish)
        self.part_size = len(byte_range) if byte_range is not None else None
        self._range = byte_range
        self._start = byte_range.start if byte_range is not None else 0
        self._into = into
        self._has_buffer = into is not None
        # How many bytes may come; ``None`` for any number.
        self._room = self.part_size if into is None else len(into)
        self._received = 0
        # Once a transfer was cancelled its buffer is not touched any more.
        self._lock = threading.Lock()

    def take_whole(self) -> bool:
        """Takes the whole object from now on, which is right for a range that begins at its start."""
        is_new = self.part_size is not None and self._start == 0
        if is_new:
            self.part_size = None
        return is_new

    def begin(self) -> None:
        """Forgets what came back for the attempt before."""
        super().begin()
        self._received = 0

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        """Puts a piece of the body where it belongs."""
        self._received += len(chunk)
        begin = offset - self._start
        if begin < 0 or (self._room is not None and begin + len(chunk) > self._room):
            raise TruncatedError(f"the body has more than the {self._room} bytes asked for")
        if not self._has_buffer:
            self._chunks.append(chunk)
            return
        with self._lock:
            if self._into is not None:
                self._into[begin : begin + len(chunk)] = chunk

    def recover(self, error: S3Error) -> GetResult:
        """An empty object has no byte 0, so a range that begins there cannot be satisfied."""
        if isinstance(error, RangeNotSatisfiableError) and self._start == 0:
            head = HeadObjectResult(etag="", size=0, last_modified=0)
            return GetResult(head, 0, None if self._has_buffer else b"")
        raise error

    def release(self) -> None:
        """Lets go of the caller's buffer, too."""
        super().release()
        with self._lock:
            self._into = None

    def finish(self, headers: Mapping[str, str], body: bytes) -> GetResult:
        """Makes the result of a body that is whole."""
        announced = announced_length(headers, self._range)
        if announced is not None and announced != self._received:
            raise TruncatedError(f"got {self._received} of {announced} bytes")
        data = None if self._has_buffer else body
        return GetResult(head_from_headers(headers), self._received, data)


class BodyStream(io.RawIOBase):
    """Lets the CRT read a buffer without a copy on this side."""

    def __init__(self, body: memoryview) -> None:
        super().__init__()
        self._body = body
        self._position = 0

    def __len__(self) -> int:
        return len(self._body)

    def release(self) -> None:
        """Lets go of the buffer; the CRT keeps the stream for longer than its request."""
        self._body = memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True: the CRT begins again at each attempt."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Copies the next bytes into the CRT's own buffer."""
        count = min(len(buffer), len(self._body) - self._position)
        buffer[:count] = self._body[self._position : self._position + count]
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves the position."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._body)}
        self._position = max(0, origin[whence] + offset)
        return self._position

    def tell(self) -> int:
        """Returns the position."""
        return self._position
