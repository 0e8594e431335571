"""One GET of the ``http`` transport over all of its attempts: what has come stays, the rest is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from s3torch.core._memory import new_bytes
from s3torch.core.errors import PreconditionFailedError, S3Error, TruncatedError
from s3torch.core.ranges import KIB, ByteRange
from s3torch.core.requests import Answer, Request, announced_length, get_headers
from s3torch.core.requests._request import is_weak, same_etag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.core.transports.http._connection import Connection
    from s3torch.core.transports.http._messages import ResponseHead

T = TypeVar("T")

# Larger bodies are received into memory that is made for them; smaller ones are joined from their pieces.
_LARGE = 32 * KIB


class Download(Generic[T]):
    """What is asked for, and what of it is here.

    Args:
        request: What is asked for.
        room: How long the caller's buffer is; ``None`` where there is none.
    """

    def __init__(self, request: Request[T], room: int | None) -> None:
        self._request = request
        self._wanted = request.byte_range
        self._room = room
        self._received = 0
        self._length = 0
        self._etag: str | None = None
        # The first answer of which anything has been kept.
        self._headers: Mapping[str, str] = {}
        self._status = 0
        self._pieces: list[bytes] = []
        self._memory: tuple[bytes, memoryview] | None = None

    def next_request(self) -> Request[T]:
        """Returns the request of the next attempt."""
        if self._etag is None:
            # What has come cannot be told from another version.
            self._forget()
        if not self._received and self._wanted is self._request.byte_range:
            return self._request
        return self._request._replace(
            headers=get_headers(self._missing, self._etag or self._request.if_match)
        )

    def receive(self, answer: ResponseHead, connection: Connection, buffer: memoryview | None) -> T:
        """Receives a body, or what is missing of it.

        Raises:
            TruncatedError: It is not what was asked for, or not whole.
            OSError: The connection broke.
        """
        announced = self._begin(answer)
        length = self._limited(announced)
        is_all = length == announced
        if length is not None and self._room is not None and length > self._room:
            raise TruncatedError(f"the body has {length} bytes, more than the {self._room} asked for")
        missing = None if length is None else length - self._received
        if is_all and None not in {answer.length, missing} and answer.length != missing:
            raise TruncatedError(f"the answer announces {answer.length} of {missing} bytes")
        if answer.length is None or length is None:
            self._receive_pieces(answer, connection, buffer, length)
        elif buffer is not None:
            self._fill(connection, buffer, length)
        elif length < _LARGE:
            self._collect(connection, length)
        else:
            if self._memory is None:
                self._memory = _memory_for(length)
            self._fill(connection, self._memory[1], length)
        if is_all:
            connection.end_body()
        return self._result(buffer)

    def restarts(self, error: S3Error) -> bool:
        """Whether an attempt failed only because the object was replaced since the one before."""
        if isinstance(error, PreconditionFailedError) and self._received and self._request.if_match is None:
            self._forget()
            return True
        return False

    def failed(self, error: S3Error) -> T:
        """Returns a result where the error means success, or raises it."""
        if self._received:
            raise error
        return self._request.failed(error, into=self._room)

    @property
    def _missing(self) -> ByteRange | None:
        """What the next attempt asks for; ``None`` for a whole object."""
        if not self._received:
            return self._wanted
        start = self._wanted.start if self._wanted is not None else 0
        return ByteRange(start + self._received, start + self._length)

    def _forget(self) -> None:
        """Begins anew."""
        self._received = self._length = 0
        self._etag = self._memory = None
        self._headers = {}
        self._pieces = []

    def _begin(self, answer: ResponseHead) -> int | None:
        """Checks what an answer brings against what was asked for; returns the length of all attempts."""
        try:
            length = announced_length(answer.headers, self._missing, status=answer.status)
        except TruncatedError:
            if not self._received:
                raise
            # A server that does not know ranges, or not this one, begins anew, and so does this side.
            self._forget()
            length = announced_length(answer.headers, self._wanted, status=answer.status)
        etag = answer.headers.get("etag")
        if self._received:
            if not same_etag(etag or "", self._etag or ""):
                self._forget()
                raise TruncatedError(f"the object was replaced while it was read (ETag {etag})")
            return self._length
        self._headers, self._status = answer.headers, answer.status
        self._length = length or 0
        # A weak ETag never matches, so what has come would be of no use.
        self._etag = etag if length is not None and etag and not is_weak(etag) else None
        return length

    def _limited(self, length: int | None) -> int | None:
        """Returns how much of a body is received; the connection is not used again where that is not all."""
        at_most = self._request.at_most
        if at_most is None:
            return length
        if length is None and self._wanted is None:
            # It may be of any size. The next attempt asks for a range.
            self._wanted = ByteRange(0, at_most)
            raise TruncatedError("the answer does not tell its length")
        if length is None:
            return None
        self._length = min(length, at_most)
        return self._length

    def _fill(self, connection: Connection, memory: memoryview, length: int) -> None:
        while self._received < length:
            with memory[self._received : length] as missing:
                count = connection.receive_into(missing)
            if not count:
                raise self._truncated(length)
            self._received += count

    def _collect(self, connection: Connection, length: int) -> None:
        while self._received < length:
            piece = connection.receive(length - self._received)
            if not piece:
                raise self._truncated(length)
            self._pieces.append(piece)
            self._received += len(piece)

    def _receive_pieces(
        self, answer: ResponseHead, connection: Connection, buffer: memoryview | None, length: int | None
    ) -> None:
        """Receives a body whose end is not told by its length."""
        most = self._room if length is None else length
        if most is None and self._wanted is not None:
            most = len(self._wanted)
        target = buffer if self._memory is None else self._memory[1]
        for piece in connection.pieces(answer):
            stop = self._received + len(piece)
            if most is not None and stop > most:
                raise TruncatedError(f"the body has more than the {most} bytes asked for")
            if target is not None:
                target[self._received : stop] = piece
            else:
                self._pieces.append(piece)
            self._received = stop
        if length is not None and self._received != length:
            raise self._truncated(length)

    def _result(self, buffer: memoryview | None) -> T:
        data: bytes | None = None
        if self._memory is not None:
            data, view = self._memory
            view.release()
        elif self._room is None:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        body = memoryview(b"") if buffer is None else buffer[: self._received]
        with body if data is None else memoryview(data) as view:
            answer = Answer(self._status, self._headers, data, self._received, view=view)
            return self._request.result(answer)

    def _truncated(self, length: int) -> TruncatedError:
        return TruncatedError(f"got {self._received} of {length} bytes")


def _memory_for(length: int) -> tuple[bytes, memoryview]:
    """Makes memory for a body whose length is what the server says."""
    try:
        return new_bytes(length)
    except (MemoryError, OverflowError, SystemError) as exc:
        raise S3Error(f"there is no memory for the {length} bytes that the answer announces") from exc
