"""TLS for the ``http`` transport, over a plain socket and through memory.

Python's own TLS sockets make several system calls for each record of 16 KiB. Here the kernel hands over many
records at a time, and they are decrypted straight into the caller's memory.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from s3torch.core.errors import TransportError
from s3torch.core.ranges import KIB

if TYPE_CHECKING:
    from s3torch.core.transports._http_socket import PlainSocket

_RECEIVE = 128 * KIB
_SEND = 64 * KIB
_RECORD = 16 * KIB


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
        """Tells whether there is content to receive, or the end; a session ticket is neither."""
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
    # As botocore does for the control plane.
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
