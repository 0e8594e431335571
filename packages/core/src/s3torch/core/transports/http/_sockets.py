"""Sockets as the ``http`` transport uses them, with few calls for many bytes, and what ends slow calls.

A socket stays in blocking mode and the kernel keeps its time, so one call without the interpreter's
lock moves megabytes. The calls raise ``TimeoutError`` where their ``StallTimer`` says so, and ``OSError``
when the connection is broken. Only ``interrupt`` may be called by another thread.
"""

from __future__ import annotations

import ctypes
import math
import select
import socket
import struct
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Protocol

from s3torch.core.ranges import KIB

if TYPE_CHECKING:
    import ssl

# How often a call that makes no way comes back: a send looks then whether there is an answer already.
_TICK_SECONDS = 1.0
# The kernel keeps time less exactly than this side counts.
_NEARLY = 0.999
_SMALL = 16 * KIB


class StallTimer:
    """Ends what takes too long: nothing moves, a head does not come to its end, bytes come too slowly.

    Args:
        timeout: Seconds in which no byte moves, or a head is not whole.
        low_speed_limit: Bytes a second that have to move, on average; 0 for any number.
        low_speed_time: Seconds over which that is measured.

    Attributes:
        tick: Seconds after which a call that waits in vain has to tell.
    """

    def __init__(self, timeout: float, low_speed_limit: int = 0, low_speed_time: float = math.inf) -> None:
        self._timeout = timeout
        self._limit, self._seconds = low_speed_limit, low_speed_time if low_speed_limit else math.inf
        self.tick = min(timeout / math.ceil(timeout / _TICK_SECONDS), self._seconds)
        self._silent = self._least = 0.0
        self._moved = 0
        # Until when so many bytes have to move; ``None`` spares looking at the clock each time.
        self._until: float | None = None
        self.expect_bytes()

    @property
    def is_exact(self) -> bool:
        """Whether it has to be told of all bytes as they move, and not only of silence."""
        return self._until is not None

    def expect_head(self) -> None:
        """Begins to wait for a head, all of which has to come in time."""
        self._silent = self._moved = 0
        self._until, self._least = time.monotonic() + self._timeout, math.inf

    def expect_bytes(self) -> None:
        """Begins to wait for bytes, or to send them."""
        self._silent = self._moved = 0
        self._until = time.monotonic() + self._seconds if self._limit else None
        self._least = self._limit * self._seconds if self._limit else 0.0

    def moved(self, count: int) -> None:
        """Takes note that a call has moved so many bytes: 0 if it has waited for a tick in vain.

        Raises:
            TimeoutError: It takes too long.
        """
        if count:
            self._silent = 0
        else:
            self._silent += self.tick
            if self._silent > self._timeout * _NEARLY:
                raise TimeoutError(f"no byte has moved for {self._timeout:g} seconds")
        if self._until is None:
            return
        self._moved += count
        if time.monotonic() < self._until:
            return
        if self._least == math.inf:
            raise TimeoutError(f"the answer has not begun within {self._timeout:g} seconds")
        if self._moved < self._least:
            raise TimeoutError(
                f"fewer than {self._limit} bytes a second have moved for {self._seconds:g} seconds"
            )
        self.expect_bytes()


class ByteSocket(Protocol):
    """A connected socket."""

    stall: StallTimer

    @property
    def session(self) -> ssl.SSLSession | None:
        """What another connection can be resumed from, if anything."""
        ...

    def use(self, stall: StallTimer) -> None:
        """Sets what ends calls that take too long."""
        ...

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
        """Whether there are bytes to receive, or the end."""
        ...

    def is_alive(self) -> bool:
        """Whether the connection may serve another request, as far as this side knows."""
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
        stall: What ends calls that take too long.
    """

    session = None

    def __init__(self, connected: socket.socket, stall: StallTimer) -> None:
        self._socket = connected
        connected.settimeout(None)
        self.use(stall)
        self.descriptor = connected.fileno()
        self._asked = _Asked(self.descriptor, select.POLLIN)

    def use(self, stall: StallTimer) -> None:
        """Sets what ends calls that take too long."""
        self.stall = stall
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _timeval(stall.tick))

    def send(self, data: bytes | memoryview) -> int:
        """Waits until the kernel has taken all of it, or for a tick."""
        if len(data) <= _SMALL:
            # It takes no time, but to get the interpreter's lock back may take milliseconds.
            count: int = _library().send(self.descriptor, bytes(data), len(data), socket.MSG_DONTWAIT)
            if count > 0:
                self.stall.moved(count)
                return count
        try:
            count = self._socket.send(data)
        except BlockingIOError:
            count = 0
        self.stall.moved(count)
        return count

    def receive(self, limit: int, *, whole: bool = False) -> bytes:
        """Receives bytes."""
        while True:
            try:
                data = self._socket.recv(limit, socket.MSG_WAITALL if whole else 0)
            except BlockingIOError:
                self.stall.moved(0)
            else:
                if data:
                    self.stall.moved(len(data))
                return data

    def receive_into(self, view: memoryview, *, whole: bool = True) -> int:
        """Fills memory, unless the end or a stall comes first; or takes what is there, at least a byte."""
        while True:
            try:
                count = self._socket.recv_into(view, 0, socket.MSG_WAITALL if whole else 0)
            except BlockingIOError:
                self.stall.moved(0)
            else:
                if count:
                    self.stall.moved(count)
                return count

    def has_answer(self) -> bool:
        """Whether there are bytes to receive, or the end."""
        return bool(_library().poll(ctypes.byref(self._asked), 1, 0))

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


class _Asked(ctypes.Structure):
    """``struct pollfd``."""

    _fields_ = (("descriptor", ctypes.c_int), ("events", ctypes.c_short), ("found", ctypes.c_short))


@cache
def _library() -> ctypes.PyDLL:
    # With the interpreter's lock, which ``select`` and ``send`` give up even where they do not wait.
    library = ctypes.PyDLL(None)
    library.send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    library.send.restype = ctypes.c_ssize_t
    return library


def _timeval(seconds: float) -> bytes:
    micros = max(1, int(seconds * 1_000_000))
    return struct.pack("@ll", micros // 1_000_000, micros % 1_000_000)
