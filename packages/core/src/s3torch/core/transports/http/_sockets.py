"""Sockets as the ``http`` transport uses them, plain and with TLS, with few calls for many bytes.

A socket stays in blocking mode and the kernel keeps its time, so one call without the interpreter's
lock moves megabytes. The calls raise ``TimeoutError`` when no byte has moved for long enough,
and ``OSError`` when the connection is broken. Only ``interrupt`` may be called by another thread.

Python's own TLS sockets make several system calls for each record of 16 KiB. Here the kernel hands over many
records at a time, and they are decrypted straight into the caller's memory.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from s3torch.core.errors import TransportError
from s3torch.core.ranges import KIB

# How often a send that makes no way looks whether there is an answer already.
_TICK_SECONDS = 1.0
# For so long after everything was received it is not worth a call to look whether the other side has left:
# if it has, the next request tells.
_FRESH_SECONDS = 1.0
# TLS: what is received and sent at a time, and the largest record.
_RECEIVE = 128 * KIB
_SEND = 64 * KIB
_RECORD = 16 * KIB


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
        """Sets the stall timeout."""
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
        """Whether there are bytes to receive, or the end."""
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


class StallTimer:
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


class TlsSocket:
    """A TLS connection; see ``ByteSocket`` for its methods.

    Args:
        plain: The connection under it.
        context: Whom to trust.
        name: Who the server has to be.

    Raises:
        OSError: There is no TLS to be had, or the server is another.
    """

    def __init__(self, plain: PlainSocket, context: ssl.SSLContext, name: str) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._cipher = memoryview(bytearray(_RECEIVE))
        # What came while it was only asked whether something has come.
        self._ahead = b""
        # Records that the kernel has not taken yet, and how many bytes are in them.
        self._unsent = memoryview(b"")
        self._written = 0
        self.interrupt = plain.interrupt
        self.close = plain.close
        self._shake_hands()

    def send(self, data: bytes | memoryview) -> int:
        """Sends some records; 0 means that the same has to be sent again."""
        if not self._unsent:
            self._written = self._tls.write(data[:_SEND])
            self._unsent = memoryview(self._outgoing.read())
        self._unsent = self._unsent[self._plain.send(self._unsent) :]
        return 0 if self._unsent else self._written

    def receive(self, limit: int, *, whole: bool = False) -> bytes:  # noqa: ARG002 - A record is what there is.
        """Receives the content of a record, or a part of it."""
        if self._ahead:
            piece, self._ahead = self._ahead[:limit], self._ahead[limit:]
            return piece
        while True:
            try:
                return self._tls.read(min(limit, _RECORD))
            except ssl.SSLWantReadError:
                self._feed()

    def receive_into(self, view: memoryview) -> int:
        """Fills memory, unless the end or a failure comes first."""
        if self._ahead:
            piece = self.receive(len(view))
            view[: len(piece)] = piece
            return len(piece)
        size, done = len(view), 0
        while done < size:
            try:
                with view[done:] as rest:
                    # It returns how many; its declaration knows only the other way to call it.
                    count = int(self._tls.read(size - done, rest))
            except ssl.SSLWantReadError:
                try:
                    self._feed()
                except OSError:
                    # What has come is worth telling; the next call fails again.
                    if done:
                        return done
                    raise
            else:
                if not count:
                    break
                done += count
        return done

    def has_answer(self) -> bool:
        """Whether there is content to receive, or the end; a session ticket is neither."""
        while not self._ahead:
            try:
                self._ahead = self._tls.read(_RECORD)
            except ssl.SSLWantReadError:
                if not self._plain.has_answer():
                    return False
                self._feed()
            else:
                break
        return True

    def is_alive(self) -> bool:
        """An idle connection has nothing to say."""
        try:
            return not self.has_answer()
        except OSError:
            return False

    def _feed(self) -> None:
        """Receives some records."""
        count = self._plain.receive_some(self._cipher)
        if not count:
            raise ConnectionResetError("the server closed the connection without saying so in TLS")
        self._incoming.write(self._cipher[:count])

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            except ssl.SSLError:
                # The server should hear why.
                self._flush()
                raise
            else:
                self._flush()
                return

    def _flush(self) -> None:
        data = memoryview(self._outgoing.read())
        while data:
            data = data[self._plain.send(data) :]


def trusting_context() -> ssl.SSLContext:
    """Makes the context that trusts the bundle of the environment, else what this machine trusts.

    Raises:
        TransportError: The bundle cannot be used.
    """
    # As botocore does.
    variable = "AWS_CA_BUNDLE" if os.environ.get("AWS_CA_BUNDLE") else "REQUESTS_CA_BUNDLE"
    bundle = os.environ.get(variable) or None
    try:
        context = ssl.create_default_context(cafile=bundle or _own_bundle())
    except OSError as exc:
        raise TransportError(f"{variable}={bundle} cannot be used: {exc}") from exc
    context.set_alpn_protocols(["http/1.1"])
    return context


def _own_bundle() -> str | None:
    """Finds the certificates that come with botocore, for machines that have none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return None
    import botocore

    return str(Path(botocore.__file__).with_name("cacert.pem"))
