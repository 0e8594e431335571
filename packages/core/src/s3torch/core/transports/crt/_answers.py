"""What goes out and what comes back with a request of the ``crt`` transport, and what native errors mean."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import (
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    TransferCancelledError,
    TruncatedError,
    error_from_response,
)
from s3torch.core.requests import Answer

if TYPE_CHECKING:
    from s3torch.core.requests import Request

_OK = 200
# Errors that come without a response after the last attempt, by the name that the CRT gives them.
_STATUS_BY_NAME = {
    "AWS_ERROR_S3_SLOW_DOWN": (503, "SlowDown"),
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "InternalError"),
    "AWS_ERROR_S3_REQUEST_TIMEOUT": (400, "RequestTimeout"),
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
}
_CANCELLED = {"AWS_ERROR_S3_CANCELED", "AWS_ERROR_S3_PAUSED"}
# Answers that have other bytes than were asked for; the CRT keeps what they were to itself.
NO_RANGE = "AWS_ERROR_S3_MISSING_CONTENT_RANGE_HEADER"
_TRUNCATED = {
    NO_RANGE: "the store answered a request for a range without a range",
    "AWS_ERROR_S3_INVALID_CONTENT_RANGE_HEADER": "the store answered with another range than was asked for",
    "AWS_ERROR_DEST_COPY_TOO_SMALL": "the body is longer than what was asked for",
}
_TIMEOUTS = {
    "AWS_IO_SOCKET_TIMEOUT",
    "AWS_ERROR_HTTP_CHANNEL_THROUGHPUT_FAILURE",
    "AWS_ERROR_HTTP_RESPONSE_FIRST_BYTE_TIMEOUT",
}


class Receiver:
    """Takes in what comes back for the attempts of one request; called on threads of the CRT.

    Args:
        request: What is asked.
        into: The caller's buffer, if there is one.
    """

    def __init__(self, request: Request[Any], into: memoryview | None) -> None:
        byte_range = request.byte_range
        self._start = 0 if byte_range is None else byte_range.start
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
        begin = offset - self._start
        if begin < 0 or (self._room is not None and begin + len(chunk) > self._room):
            raise TruncatedError(f"the body has more than the {self._room} bytes asked for")
        if not self.has_buffer:
            self._chunks.append(chunk)
            return
        with self._lock:
            if self.into is not None:
                self.into[begin : begin + len(chunk)] = chunk

    def answer(self) -> Answer:
        """Returns what came back for an attempt that the CRT calls a success."""
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        return Answer(self._status, self._headers, None if self.has_buffer else body, self._received)

    def take_whole(self) -> bool:
        """Lets the CRT take an answer without a range from now on; ``False`` where none can be right."""
        is_new = self.part_size is not None and self._start == 0
        if is_new:
            self.part_size = None
        return is_new

    def release(self) -> None:
        """Lets go of buffers."""
        self._chunks = []
        with self._lock:
            self.into = None


class BodyStream(io.RawIOBase):
    """Lets the CRT read a buffer without a copy on this side."""

    def __init__(self, body: memoryview) -> None:
        super().__init__()
        self.body = body
        self._position = 0

    def __len__(self) -> int:
        return len(self.body)

    def again(self) -> BodyStream:
        """Returns a stream of the same bytes for the next attempt: the CRT reads on where it has stopped."""
        stream = BodyStream(self.body)
        self.release()
        return stream

    def release(self) -> None:
        """Lets go of the buffer; the CRT keeps the stream for longer than its request."""
        self.body = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """True: the CRT begins again at each attempt."""
        return True

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), len(self.body) - self._position)
        buffer[:count] = self.body[self._position : self._position + count]
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.body)}
        self._position = max(0, origin[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position


def error_of(
    request: Request[Any],
    error: Exception,
    headers: list[tuple[str, str]] | None,
    body: bytes | None,
    status: int | None,
    *,
    host: str,
    late: bool,
) -> S3Error:
    """Makes the error of an attempt that the CRT calls a failure; the arguments are those of its ``on_done``.

    Args:
        request: What was asked.
        error: The native error.
        headers: The headers of the answer, if there was one.
        body: Its body.
        status: Its status.
        host: Who was asked.
        late: Whether the attempt was given up because nothing came in time.
    """
    if isinstance(error, S3Error):
        return error
    name = getattr(error, "name", type(error).__name__)
    if status is not None:
        return request.error(Answer(status, {key.lower(): value for key, value in headers or ()}, body))
    if name in _STATUS_BY_NAME:
        known_status, code = _STATUS_BY_NAME[name]
        return error_from_response(
            operation=request.operation,
            bucket=request.bucket,
            key=request.key or None,
            status=known_status,
            code=code,
        )
    if late:
        return S3TimeoutError(f"no answer from {host} in time")
    if name in _CANCELLED:
        return TransferCancelledError("the transfer was cancelled")
    if name in _TRUNCATED:
        return TruncatedError(_TRUNCATED[name])
    text = f"{host}: {getattr(error, 'message', None) or str(error)} ({name})"
    kind = S3TimeoutError if name in _TIMEOUTS else S3ConnectionError
    return kind(text)
