"""One connection of the ``http`` transport: requests go out, heads and bodies come in."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from s3torch.core import _process
from s3torch.core.errors import S3ConnectionError, TruncatedError
from s3torch.core.ranges import KIB, MIB
from s3torch.core.requests._request import FIRST_ERROR_STATUS
from s3torch.core.transports.http._messages import MAX_HEAD, ChunkedDecoder, ResponseHead, response_head

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from s3torch.core.transports.http._sockets import ByteSocket

_RECEIVE = 16 * KIB
# What a head may take besides a body that is received with it, and bodies up to which that is done.
_HEAD = 4 * KIB
_SMALL = 256 * KIB
# Between two pieces it is seen whether the server has answered before it has the whole body.
_SEND = 8 * MIB
_HEAD_END = b"\r\n\r\n"
_FIRST_FINAL_STATUS = 200
_SWITCHING_PROTOCOLS = 101


class StaleConnectionError(Exception):
    """The server had closed a kept connection before it could see the request."""


class Connection:
    """A connection to one host.

    Attributes:
        origin: What it is connected to; equal origins can share connections.
        reused: Whether it has served a request already.
        idle_since: When it was given back, by the monotonic clock.
        target_prefix: What a proxy wants before the path.
        headers: What a proxy wants besides.
    """

    def __init__(self, origin: tuple[str, str], connected: ByteSocket) -> None:
        self.origin = origin
        self.reused = False
        self.idle_since = 0.0
        self.target_prefix = ""
        self.headers: tuple[tuple[str, str], ...] = ()
        self._pid = _process.here
        self._socket = connected
        # What was received beyond what was asked for.
        self._ahead = b""
        # How much is asked for with a head. Objects of a dataset are alike, so most answers come in one call.
        self._first = _RECEIVE
        # Whether the last request went out whole, and its answer came in whole.
        self._sent = self._received = True
        self._keeps_alive = True

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        return self._sent and self._received and self._keeps_alive and not self._ahead

    def is_alive(self) -> bool:
        """Whether the server has left an idle connection open, as far as this side knows."""
        return self._socket.is_alive()

    @property
    def session(self) -> ssl.SSLSession | None:
        """What another connection to the same host can be resumed from, if anything."""
        return self._socket.session

    def interrupt(self) -> None:
        """Ends the connection, and the call in which another thread waits for it."""
        self._socket.interrupt()

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def __del__(self) -> None:
        # In a forked child it is the parent that goes on to use it.
        if self._pid == _process.here:
            self.close()

    def rest(self) -> None:
        """Takes note that it is idle from now on."""
        self.reused = True
        self.idle_since = time.monotonic()

    def ask(
        self, head: bytes, body: memoryview | None = None, *, has_answer_body: bool = True
    ) -> ResponseHead:
        """Sends a request and receives the head of the answer.

        A server may answer before it has the whole body; then the rest is not sent. The answer to a HEAD has
        a length, but no body.

        Raises:
            StaleConnectionError: A kept connection was closed before anything of an answer came.
            OSError: The connection broke, or nothing moved for too long (``TimeoutError``).
            S3ConnectionError: The answer is malformed.
        """
        self._sent = self._received = False
        self._socket.stall.expect_bytes()
        try:
            answer = self._send(head, body) or self._receive_final_head()
        except TimeoutError:
            raise
        except OSError as exc:
            if self.reused and not self._ahead:
                raise StaleConnectionError from exc
            raise
        if not self._sent and answer.status < FIRST_ERROR_STATUS:
            raise S3ConnectionError("the server answered with success before it had the whole body")
        self._socket.stall.expect_bytes()
        self._keeps_alive = answer.keeps_alive
        if not has_answer_body:
            self._keeps_alive = answer.may_be_kept
            return replace(answer, is_chunked=False, length=0)
        length = answer.length or 0
        self._first = max(_RECEIVE, length + _HEAD) if length <= _SMALL else _RECEIVE
        return answer

    def receive_into(self, view: memoryview) -> int:
        """Receives bytes of the body into memory and returns how many, 0 only at the end."""
        if self._ahead:
            piece = self._take_ahead(len(view))
            view[: len(piece)] = piece
            return len(piece)
        return self._socket.receive_into(view)

    def receive(self, limit: int) -> bytes:
        """Receives bytes of the body, none only at the end."""
        return self._take_ahead(limit) if self._ahead else self._socket.receive(limit, whole=True)

    def end_body(self) -> None:
        """Takes note that the body was received whole."""
        self._received = True

    def pieces(self, head: ResponseHead) -> Iterator[bytes]:
        """Receives the body piece by piece, in whatever way its end is told.

        Raises:
            TruncatedError: The connection ended before the body did.
        """
        if head.is_chunked:
            yield from self._chunks()
        elif head.length is None:
            while piece := self._take_ahead(_RECEIVE) or self._socket.receive(_RECEIVE):
                yield piece
        else:
            missing = head.length
            while missing:
                piece = self.receive(min(missing, _SEND))
                if not piece:
                    raise TruncatedError(f"got {head.length - missing} of {head.length} bytes")
                missing -= len(piece)
                yield piece
        self.end_body()

    def body(self, head: ResponseHead, limit: int) -> bytes:
        """Receives a body that is kept in memory, as far as it is not longer than ``limit``."""
        pieces: list[bytes] = []
        received = 0
        for piece in self.pieces(head):
            pieces.append(piece[: limit - received])
            received += len(pieces[-1])
            if received == limit:
                break
        return b"".join(pieces)

    def _send(self, head: bytes, body: memoryview | None) -> ResponseHead | None:
        """Sends a request; returns the head of an answer that came before the end."""
        try:
            if body is None or len(body) <= _RECEIVE:
                answer = self._send_all(memoryview(head if body is None else b"".join((head, body))))
            else:
                answer = self._send_all(memoryview(head)) or self._send_all(body)
        except TimeoutError:
            raise
        except OSError as exc:
            # The server may have told why, and closed the connection then.
            try:
                return self._receive_final_head()
            except OSError:
                raise exc from None
        self._sent = answer is None
        return answer

    def _send_all(self, data: memoryview) -> ResponseHead | None:
        start, size = 0, len(data)
        while start < size:
            with data[start : start + _SEND] as piece:
                count = self._socket.send(piece)
            start += count
            if start < size and self._socket.has_answer():
                self._socket.stall.expect_head()
                answer = self._receive_head()
                if answer.status >= _FIRST_FINAL_STATUS:
                    return answer
                self._socket.stall.expect_bytes()
        return None

    def _receive_final_head(self) -> ResponseHead:
        self._socket.stall.expect_head()
        head = self._receive_head()
        while head.status < _FIRST_FINAL_STATUS:
            head = self._receive_head()
        return head

    def _receive_head(self) -> ResponseHead:
        end = self._ahead.find(_HEAD_END)
        while end < 0 and len(self._ahead) <= MAX_HEAD:
            piece = self._socket.receive(self._first)
            if not piece:
                raise ConnectionResetError("the server closed the connection before its answer was whole")
            self._ahead = self._ahead + piece if self._ahead else piece
            end = self._ahead.find(_HEAD_END)
        if not 0 <= end <= MAX_HEAD:
            raise S3ConnectionError(f"the head of the answer is longer than {MAX_HEAD} bytes")
        head = response_head(self._ahead[:end])
        if head.status == _SWITCHING_PROTOCOLS:
            raise S3ConnectionError("the server switched to another protocol without being asked")
        self._ahead = self._ahead[end + len(_HEAD_END) :]
        return head

    def _chunks(self) -> Iterator[bytes]:
        decoder = ChunkedDecoder()
        while not decoder.ended:
            data = self._take_ahead(_RECEIVE) or self._socket.receive(_RECEIVE)
            if not data:
                raise TruncatedError("the connection ended before the last chunk")
            yield from decoder.feed(data)
        self._ahead = decoder.rest + self._ahead

    def _take_ahead(self, limit: int) -> bytes:
        piece, self._ahead = self._ahead, b""
        if len(piece) > limit:
            piece, self._ahead = piece[:limit], piece[limit:]
        return piece
