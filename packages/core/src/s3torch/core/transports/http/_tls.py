"""TLS over a plain socket of the ``http`` transport.

Python's own TLS sockets make several system calls for each record of 16 KiB. Here the kernel hands over many
records at a time, and they are decrypted straight into the caller's memory, in one call where OpenSSL can be
called for that (``_records``).
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch.core._memory import new_bytes
from s3torch.core.errors import TransportError
from s3torch.core.ranges import KIB, MIB
from s3torch.core.transports.http._records import Records, warn_of_single_records

if TYPE_CHECKING:
    from s3torch.core.transports.http._sockets import PlainSocket, StallTimer

# What is received and sent at a time, and the largest record.
_RECEIVE = 128 * KIB
_SEND = 64 * KIB
_RECORD = 16 * KIB
# From this size on it matters how many records a call takes.
_LARGE = 1 * MIB


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
