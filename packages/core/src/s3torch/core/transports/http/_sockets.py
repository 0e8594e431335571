"""Sockets as the ``http`` transport uses them, plain and with TLS, with few calls for many bytes.

A socket stays in blocking mode and the kernel keeps its time, so one call without the interpreter's
lock moves megabytes. The calls raise ``TimeoutError`` where their ``StallTimer`` says so, and ``OSError``
when the connection is broken. Only ``interrupt`` may be called by another thread.

Python's own TLS sockets make several system calls for each record of 16 KiB. Here the kernel hands over many
records at a time, and they are decrypted straight into the caller's memory, in one call where OpenSSL can be
called for that (``_records``).
"""

from __future__ import annotations

import ctypes
import select
import socket
import ssl
import struct
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from s3torch.core._memory import new_bytes
from s3torch.core.errors import TransportError
from s3torch.core.ranges import KIB, MIB
from s3torch.core.transports.http._records import Records, warn_of_single_records

if TYPE_CHECKING:
    from s3torch.core.transports.http._stalls import StallTimer

# TLS: what is received and sent at a time, and the largest record.
_RECEIVE = 128 * KIB
_SEND = 64 * KIB
_RECORD = 16 * KIB
# From this size on it matters how many records a call takes.
_LARGE = 1 * MIB


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
        if len(data) <= _RECORD:
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


class TlsSocket:
    """A TLS connection; see ``ByteSocket`` for its methods.

    Args:
        plain: The connection under it.
        context: Whom to trust.
        name: Who the server has to be.
        session: That of an earlier connection to it, which spares both sides most of the handshake.

    Raises:
        OSError: There is no TLS to be had, or the server is another.
    """

    def __init__(
        self, plain: PlainSocket, context: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
    ) -> None:
        self._plain = plain
        self.stall = plain.stall
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name, session=session)
        self._records = Records.of(self._tls, plain.descriptor)
        self._cipher = memoryview(bytearray(_RECEIVE))
        # What came while it was only asked whether something has come.
        self._ahead = b""
        # Records that the kernel has not taken yet, and how many bytes are in them.
        self._unsent = memoryview(b"")
        self._written = 0
        self.interrupt = plain.interrupt
        self.close = plain.close
        self._shake_hands()

    def use(self, stall: StallTimer) -> None:
        """Sets what ends calls that take too long."""
        self.stall = stall
        self._plain.use(stall)

    @property
    def session(self) -> ssl.SSLSession | None:
        """What another connection can be resumed from, once an answer has come."""
        return self._tls.session

    def send(self, data: bytes | memoryview) -> int:
        """Sends some records; 0 means that the same has to be sent again."""
        if self._records is not None and len(data) > _SEND and not self._unsent and not self.stall.is_exact:
            self._flush()
            return self._records.write(data, self.stall)
        if not self._unsent:
            self._written = self._tls.write(data[:_SEND])
            self._unsent = memoryview(self._outgoing.read())
        self._unsent = self._unsent[self._plain.send(self._unsent) :]
        return 0 if self._unsent else self._written

    def receive(self, limit: int, *, whole: bool = False) -> bytes:
        """Receives the content of a record, or a part of it; or all of it where that takes one call."""
        if self._ahead:
            piece, self._ahead = self._ahead[:limit], self._ahead[limit:]
            return piece
        if whole and self._takes_many(limit):
            data, view = new_bytes(limit)
            count = self.receive_into(view)
            view.release()
            return data if count == limit else data[:count]
        if self._is_empty:
            self._feed()
        while True:
            try:
                return self._read(min(limit, _RECORD))
            except ssl.SSLWantReadError:
                self._feed()

    def receive_into(self, view: memoryview) -> int:
        """Fills memory, unless the end or a failure comes first."""
        if self._ahead:
            piece = self.receive(len(view))
            view[: len(piece)] = piece
            return len(piece)
        size, done = len(view), 0
        if self._records is None and size >= _LARGE:
            warn_of_single_records()
        while done < size:
            try:
                with view[done:] as rest:
                    count = self._read_into(rest)
            except OSError:
                # What has come is worth telling; the next call fails again.
                if done:
                    return done
                raise
            if not count:
                break
            done += count
        return done

    def _read(self, limit: int) -> bytes:
        """Takes from what is here; ``ssl`` would give up the interpreter's lock for that."""
        return self._tls.read(limit) if self._records is None else self._records.take(limit)

    @property
    def _is_empty(self) -> bool:
        """Whether nothing is here that could be decrypted; to try that takes longer than to ask."""
        return self._records is not None and self._records.is_empty and not self._incoming.pending

    def _takes_many(self, size: int) -> bool:
        return self._records is not None and size > _RECORD and not self.stall.is_exact

    def _read_into(self, view: memoryview) -> int:
        """Receives at least a byte, unless that is the end."""
        many = self._records if self._takes_many(len(view)) else None
        while True:
            waits = many is not None and not self._incoming.pending
            try:
                if many is not None:
                    return many.read(view, self.stall if waits else None)
                # It returns how many; its declaration knows only the other way to call it.
                return int(self._tls.read(len(view), view))
            except ssl.SSLWantReadError:
                if many is None:
                    self._feed()

    def has_answer(self) -> bool:
        """Whether there is content to receive, or the end; a session ticket is neither."""
        if self._is_empty and not self._ahead and not self._plain.has_answer():
            return False
        while not self._ahead:
            try:
                self._ahead = self._read(_RECORD)
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
        count = self._plain.receive_into(self._cipher, whole=False)
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


def trusting_context(bundle: str | None) -> ssl.SSLContext:
    """Makes the context that trusts a bundle of certificates, or what this machine trusts.

    Raises:
        TransportError: The bundle cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=bundle or _own_bundle())
    except OSError as exc:
        raise TransportError(f"the certificates in {bundle} (ca_bundle) cannot be used: {exc}") from exc
    context.set_alpn_protocols(["http/1.1"])
    return context


def _own_bundle() -> str | None:
    """Finds the certificates that come with botocore, for machines that have none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return None
    import botocore

    return str(Path(botocore.__file__).with_name("cacert.pem"))
