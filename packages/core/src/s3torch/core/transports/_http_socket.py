"""Sockets as the ``http`` transport uses them: plain or TLS, with few calls for many bytes.

A plain socket stays in blocking mode and the kernel keeps its time, so one call without the interpreter's
lock moves megabytes. The calls of both kinds raise ``TimeoutError`` when no byte has moved for long enough,
and ``OSError`` when the connection is broken. Only ``interrupt`` may be called by another thread.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

A = TypeVar("A")
T = TypeVar("T")

# How often a send that makes no way looks whether there is an answer already.
_TICK_SECONDS = 1.0
_ONCE = 16 * 1024


class ByteSocket(Protocol):
    """A connected socket."""

    def send(self, data: bytes | memoryview) -> int:
        """Sends some bytes and returns how many; 0 if none could be sent for a short time."""
        ...

    def receive(self, limit: int, *, whole: bool = False) -> bytes:
        """Receives bytes, none only at the end; ``whole`` waits for all of them where that is cheaper."""
        ...

    def receive_into(self, view: memoryview) -> int:
        """Receives bytes into memory and returns how many, 0 only at the end."""
        ...

    def has_answer(self) -> bool:
        """Tells whether there are bytes to receive, or the end."""
        ...

    def is_alive(self) -> bool:
        """Tells whether the connection may serve another request, as far as this side knows."""
        ...

    def interrupt(self) -> None:
        """Ends the connection, and the call in which another thread waits for it."""
        ...

    def close(self) -> None:
        """Closes the socket."""
        ...


class PlainSocket:
    """A TCP connection.

    Args:
        connected: The socket.
        timeout: Seconds without a byte after which a call gives up; within a call that has received some, the
            same again.
    """

    def __init__(self, connected: socket.socket, timeout: float) -> None:
        self._socket = connected
        self._timeout = timeout
        connected.settimeout(None)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(min(timeout, _TICK_SECONDS)))
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    def send(self, data: bytes | memoryview) -> int:
        """Waits until the kernel has taken all of it, or for a tick."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self, limit: int, *, whole: bool = False) -> bytes:
        """Receives bytes."""
        try:
            return self._socket.recv(limit, socket.MSG_WAITALL if whole else 0)
        except BlockingIOError:
            raise _stalled(self._timeout) from None

    def receive_into(self, view: memoryview) -> int:
        """Fills memory, unless the end or a stall comes first."""
        try:
            return self._socket.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise _stalled(self._timeout) from None

    def has_answer(self) -> bool:
        """Tells whether there are bytes to receive, or the end."""
        return bool(self._poll.poll(0))

    def is_alive(self) -> bool:
        """An idle connection has nothing to say; if it does, that is its end or no answer to anything."""
        return not self.has_answer()

    def interrupt(self) -> None:
        """Ends the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        # A forked child may have inherited the descriptor; the server shall know nevertheless.
        self.interrupt()
        self._socket.close()


class TlsSocket:
    """A TLS connection over TCP.

    Args:
        wrapped: The socket, after its handshake.
        timeout: Seconds without a byte after which a call gives up.
    """

    def __init__(self, wrapped: ssl.SSLSocket, timeout: float) -> None:
        self._socket = wrapped
        self._timeout = timeout
        # What came while it was only asked whether something has come.
        self._ahead = b""
        self._tick = min(timeout, _TICK_SECONDS)
        wrapped.settimeout(self._tick)
        self._poll = select.poll()
        self._poll.register(wrapped, select.POLLIN)

    def send(self, data: bytes | memoryview) -> int:
        """Waits until the kernel has taken all of it, or for a tick; then the same has to be sent again."""
        try:
            return self._socket.send(data)
        except TimeoutError:
            return 0

    def receive(self, limit: int, *, whole: bool = False) -> bytes:  # noqa: ARG002 - A record is all there is.
        """Receives the content of a record."""
        if self._ahead:
            piece, self._ahead = self._ahead[:limit], self._ahead[limit:]
            return piece
        return self._patiently(self._socket.recv, limit)

    def receive_into(self, view: memoryview) -> int:
        """Receives the content of a record."""
        if self._ahead:
            piece = self.receive(len(view))
            view[: len(piece)] = piece
            return len(piece)
        return self._patiently(self._socket.recv_into, view)

    def has_answer(self) -> bool:
        """Tells whether there is content to receive, or the end; a session ticket is neither."""
        if not (self._ahead or self._socket.pending() or self._poll.poll(0)):
            return False
        self._socket.settimeout(0)
        try:
            self._ahead = self._ahead or self._socket.recv(_ONCE)
        except ssl.SSLWantReadError:
            return False
        finally:
            self._socket.settimeout(self._tick)
        return True

    def is_alive(self) -> bool:
        """An idle connection has nothing to say."""
        try:
            return not self.has_answer()
        except OSError:
            return False

    def interrupt(self) -> None:
        """Ends the connection below TLS."""
        with suppress(OSError):
            # The method of SSLSocket would let a waiting call go on as if there were no TLS.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        self.interrupt()
        self._socket.close()

    def _patiently(self, receive: Callable[[A], T], argument: A) -> T:
        ticks = 0
        while True:
            try:
                return receive(argument)
            except TimeoutError:
                ticks += 1
                if ticks * self._tick >= self._timeout:
                    raise _stalled(self._timeout) from None


class Patience:
    """Measures for how long no byte has moved.

    Args:
        timeout: Seconds after which that is too long.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._since = time.monotonic()

    def moved(self, count: int) -> None:
        """Takes note that so many bytes have moved.

        Raises:
            TimeoutError: None has for too long.
        """
        now = time.monotonic()
        if count:
            self._since = now
        elif now - self._since >= self._timeout:
            raise _stalled(self._timeout)


def _stalled(timeout: float) -> TimeoutError:
    return TimeoutError(f"no byte has moved for {timeout:g} seconds")


def _timeval(seconds: float) -> bytes:
    micros = max(1, int(seconds * 1_000_000))
    return struct.pack("@ll", micros // 1_000_000, micros % 1_000_000)
