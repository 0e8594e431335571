"""Sockets as the ``http`` transport uses them, with few calls for many bytes.

A socket stays in blocking mode and the kernel keeps its time, so one call without the interpreter's
lock moves megabytes. The calls raise ``TimeoutError`` when no byte has moved for long enough,
and ``OSError`` when the connection is broken. Only ``interrupt`` may be called by another thread.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import suppress
from typing import Protocol

# How often a send that makes no way looks whether there is an answer already.
_TICK_SECONDS = 1.0
# For so long after everything was received it is not worth a call to look whether the other side has left:
# if it has, the next request tells.
_FRESH_SECONDS = 1.0


class ByteSocket(Protocol):
    """A connected socket."""

    def send(self, data: bytes | memoryview) -> int:
        """Sends some bytes and returns how many; 0 if it could not for a short time, and has to again."""
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
        # When a call received less than it could have, so that nothing was left; 0 after any other call.
        self._drained_at = 0.0
        connected.settimeout(None)
        self.set_timeout(timeout)
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)

    def set_timeout(self, timeout: float) -> None:
        """Has other patience from now on."""
        self._timeout = timeout
        tick = min(timeout, _TICK_SECONDS)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(timeout))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(tick))

    def send(self, data: bytes | memoryview) -> int:
        """Waits until the kernel has taken all of it, or for a tick."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self, limit: int, *, whole: bool = False) -> bytes:
        """Receives bytes."""
        try:
            data = self._socket.recv(limit, socket.MSG_WAITALL if whole else 0)
        except BlockingIOError:
            raise _stalled(self._timeout) from None
        self._drained_at = time.monotonic() if 0 < len(data) < limit and not whole else 0.0
        return data

    def receive_into(self, view: memoryview) -> int:
        """Fills memory, unless the end or a stall comes first."""
        self._drained_at = 0.0
        try:
            return self._socket.recv_into(view, 0, socket.MSG_WAITALL)
        except BlockingIOError:
            raise _stalled(self._timeout) from None

    def receive_some(self, view: memoryview) -> int:
        """Receives what is there into memory, at least a byte unless the end comes first."""
        self._drained_at = 0.0
        try:
            return self._socket.recv_into(view)
        except BlockingIOError:
            raise _stalled(self._timeout) from None

    def has_answer(self) -> bool:
        """Tells whether there are bytes to receive, or the end."""
        return bool(self._poll.poll(0))

    def is_alive(self) -> bool:
        """An idle connection has nothing to say; if it does, that is its end or no answer to anything."""
        return time.monotonic() - self._drained_at < _FRESH_SECONDS or not self.has_answer()

    def interrupt(self) -> None:
        """Ends the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes the socket."""
        # A forked child may have inherited the descriptor; the server shall know nevertheless.
        self.interrupt()
        self._socket.close()


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
