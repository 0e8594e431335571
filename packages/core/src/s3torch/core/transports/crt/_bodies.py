"""What a transfer of the CRT sends and receives."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core.errors import TruncatedError
from s3torch.core.requests import Answer
from s3torch.core.requests._objects import OBJECT_STATUS, check_end

if TYPE_CHECKING:
    from s3torch.core.requests import Request

T = TypeVar("T")

_OK = 200


class BodyStream(io.RawIOBase):
    """Lets the CRT read a buffer without a copy on this side."""

    def __init__(self, body: memoryview) -> None:
        super().__init__()
        self.body = body
        self._position = 0
        # Whoever lets go of the buffer may change it, so it must not be read at that moment.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self.body)

    def release(self) -> None:
        """Lets go of the buffer; the CRT keeps the stream for longer than its request."""
        with self._lock:
            self.body = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """True: the CRT begins again at each attempt."""
        return True

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            count = max(0, min(len(buffer), len(self.body) - self._position))
            buffer[:count] = self.body[self._position : self._position + count]
            self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.body)}
        self._position = max(0, origin[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position


class Receiver:
    """Takes in what comes back for the attempts of one request; called on threads of the CRT.

    Args:
        request: What is asked.
        into: The caller's buffer, if there is one.
    """

    def __init__(self, request: Request[Any], into: memoryview | None) -> None:
        byte_range = request.byte_range
        self.start = 0 if byte_range is None else byte_range.start
        # The length of the range that is asked for, where there is one.
        self.part_size = None if byte_range is None else len(byte_range)
        self.into = into
        self.has_buffer = into is not None
        # How many bytes may come; ``None`` for any number.
        self._room = self.part_size if into is None else len(into)
        # Once a transfer was cancelled its buffer is not touched any more.
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self.begin()

    def begin(self) -> None:
        """Forgets what came back for the attempt before."""
        self._status = _OK
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._received = 0

    def on_headers(self, status_code: int, headers: list[tuple[str, str]], **_: Any) -> None:
        """Takes the head of the response."""
        self._status = status_code
        self._headers = {name.lower(): value for name, value in headers}

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        """Puts a piece of the body where it belongs; the offset is that in the object."""
        self._received += len(chunk)
        begin = offset - self.start
        if begin < 0 or (self._room is not None and begin + len(chunk) > self._room):
            raise TruncatedError(f"the body has more than the {self._room} bytes asked for")
        if not self.has_buffer:
            self._chunks.append(chunk)
            return
        with self._lock:
            if self.into is not None:
                self.into[begin : begin + len(chunk)] = chunk

    def judge(self, request: Request[T]) -> T:
        """Returns the result of what came back for an attempt that the CRT calls a success."""
        brings_object = request.streams and self._status in OBJECT_STATUS
        if brings_object:
            # Up to the end of the connection the CRT reads nothing, whatever was asked for.
            check_end(self._headers)
        if not self.has_buffer:
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            return request.result(
                Answer(self._status, self._headers, body, self._received, view=memoryview(body))
            )
        # Cancelling waits for this, because the buffer is looked at.
        with self._lock:
            view = None if self.into is None else self.into[: self._received]
            return request.result(Answer(self._status, self._headers, None, self._received, view=view))

    def take_plain(self) -> bool:
        """Lets the CRT pass on whatever is answered from now on; ``False`` where it does already."""
        is_new = self.part_size is not None
        self.part_size = None
        return is_new

    def release(self) -> None:
        """Lets go of buffers."""
        self._chunks = []
        with self._lock:
            self.into = None
