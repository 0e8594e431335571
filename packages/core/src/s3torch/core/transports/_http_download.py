"""One GET of the ``http`` transport over all of its attempts: what has come stays, the rest is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from s3torch.core._memory import new_bytes
from s3torch.core.errors import (
    PreconditionFailedError,
    RangeNotSatisfiableError,
    S3Error,
    TruncatedError,
)
from s3torch.core.models import GetResult, HeadObjectResult
from s3torch.core.ranges import MIB, ByteRange
from s3torch.core.transports._http import announced_length, head_from_headers
from s3torch.core.transports._requests import get_headers, version_query

if TYPE_CHECKING:
    from s3torch.core.transports._http_connection import Connection
    from s3torch.core.transports._http_head import ResponseHead

# Larger bodies are received into memory that is made for them; smaller ones are joined from their pieces.
_LARGE = 1 * MIB
_NOTHING = HeadObjectResult(etag="", size=0, last_modified=0)


class Download:
    """What is asked for, and what of it is here.

    Args:
        bucket: The bucket.
        key: The key.
        byte_range: The bytes that are wanted; ``None`` for all.
        room: How long the caller's buffer is; ``None`` where there is none.
        if_match: The ETag that the caller wants.
        version_id: The version that is wanted; ``None`` for the latest.
    """

    operation = "GetObject"
    method = "GET"

    def __init__(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None,
        room: int | None,
        if_match: str | None,
        version_id: str | None,
    ) -> None:
        self.bucket = bucket
        self.key = key
        self.query = version_query(version_id)
        self._wanted = byte_range
        self._room = room
        self._if_match = if_match
        self._received = 0
        self._length = 0
        self._etag: str | None = None
        self._head = _NOTHING
        self._pieces: list[bytes] = []
        self._memory: tuple[bytes, memoryview] | None = None

    def headers(self) -> list[tuple[str, str]]:
        """Gives the headers of the next attempt."""
        if self._etag is None:
            # What has come cannot be told from another version.
            self._forget()
        etag = self._if_match if not self._received else self._etag
        return [("Accept-Encoding", "identity"), *get_headers(self._missing, etag)]

    def receive(self, answer: ResponseHead, connection: Connection, buffer: memoryview | None) -> GetResult:
        """Receives a body, or what is missing of it.

        Raises:
            TruncatedError: It is not what was asked for, or not whole.
            OSError: The connection broke.
        """
        length = self._begin(answer)
        if length is not None and self._room is not None and length > self._room:
            raise TruncatedError(f"the body has {length} bytes, more than the {self._room} asked for")
        if answer.length is not None and length is not None and answer.length != length - self._received:
            raise TruncatedError(f"the answer announces {answer.length} of {length - self._received} bytes")
        if answer.length is None or length is None:
            self._receive_pieces(answer, connection, buffer, length)
        elif buffer is not None:
            self._fill(connection, buffer, length)
        elif length < _LARGE:
            self._collect(connection, length)
        else:
            if self._memory is None:
                self._memory = new_bytes(length)
            self._fill(connection, self._memory[1], length)
        connection.end_body()
        return self._result()

    def restarts(self, error: S3Error) -> bool:
        """Tells whether an attempt failed only because the object was replaced since the one before."""
        if isinstance(error, PreconditionFailedError) and self._received and self._if_match is None:
            self._forget()
            return True
        return False

    def recover(self, error: S3Error) -> GetResult:
        """An empty object has no byte 0, so a range that begins there cannot be satisfied."""
        starts = self._wanted is None or self._wanted.start == 0
        if isinstance(error, RangeNotSatisfiableError) and starts and not self._received:
            return GetResult(_NOTHING, 0, b"" if self._room is None else None)
        raise error

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
        self._head = _NOTHING
        self._pieces = []

    def _begin(self, answer: ResponseHead) -> int | None:
        """Checks what an answer brings against what was asked for; returns the length of all attempts."""
        try:
            length = announced_length(answer.headers, self._missing)
        except TruncatedError:
            if not self._received:
                raise
            # A server that does not know ranges, or not this one, begins anew, and so does this side.
            self._forget()
            length = announced_length(answer.headers, self._wanted)
        etag = answer.headers.get("etag")
        if self._received:
            if etag != self._etag:
                self._forget()
                raise TruncatedError(f"the object was replaced while it was read (ETag {etag})")
            return self._length
        self._head = head_from_headers(answer.headers)
        self._length = length or 0
        # A weak ETag never matches, so what has come would be of no use.
        self._etag = etag if length is not None and etag and not etag.startswith("W/") else None
        return length

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

    def _result(self) -> GetResult:
        data: bytes | None = None
        if self._memory is not None:
            data, view = self._memory
            view.release()
        elif self._room is None:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        return GetResult(self._head, self._received, data)

    def _truncated(self, length: int) -> TruncatedError:
        return TruncatedError(f"got {self._received} of {length} bytes")
