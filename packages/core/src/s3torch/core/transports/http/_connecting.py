"""How connections of ``http`` transports are made.

A host's addresses are used in turn. The proxies are those of ``HTTP_PROXY``, ``HTTPS_PROXY`` and
``NO_PROXY``.
"""

from __future__ import annotations

import base64
import encodings.idna  # noqa: F401 - The first look-up of a host imports it, and may find no file to be opened.
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from s3torch.core.errors import CertificateError, ConfigurationError, S3ConnectionError
from s3torch.core.models import SecretText, hidden
from s3torch.core.transports.http._connection import Connection
from s3torch.core.transports.http._messages import MAX_HEAD, request_head, response_head
from s3torch.core.transports.http._sockets import PlainSocket, StallTimer
from s3torch.core.transports.http._tls import TlsSocket, trusting_context

if TYPE_CHECKING:
    from s3torch.core.seam import TransportContext
    from s3torch.core.transports.http._messages import ResponseHead

_PORTS = {"http": 80, "https": 443}
# S3 gives out a few of its many addresses at a time, each for some seconds.
_ADDRESSES_SECONDS = 10.0
_RECEIVE = 4096
_HEAD_END = b"\r\n\r\n"

# As ``socket`` takes them: the family, and what to connect to.
_Address = tuple[int, Any]


class ConnectionMaker:
    """Makes connections; may be used by many threads at a time."""

    def __init__(self, context: TransportContext) -> None:
        self._session, self._config = context.session, context.config
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self._addresses: dict[str, _Addresses] = {}
        self._tls: ssl.SSLContext | None = None
        # Of TLS, by scheme and host: what the next connection is resumed from.
        self.sessions: dict[tuple[str, str], ssl.SSLSession | None] = {}

    def connect(self, scheme: str, host: str) -> Connection:
        """Connects to a host.

        Args:
            scheme: ``"http"`` or ``"https"``.
            host: As in the ``Host`` header.

        Raises:
            OSError: There is no connection to be had in time.
        """
        deadline = time.monotonic() + self._config.connect_timeout
        proxy = _Proxy.of_environment(scheme, host)
        if proxy is None:
            connected = self._connect_tcp(scheme, host, deadline)
        else:
            connected = self._connect_tcp("http", proxy.host, deadline)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain = PlainSocket(connected, StallTimer(max(0.001, deadline - time.monotonic())))
            plain.stall.expect_head()
            secure = self._secure(plain, host, proxy) if scheme == "https" else None
            config = self._config
            timer = StallTimer(config.read_timeout, config.low_speed_limit, config.low_speed_time)
            (secure or plain).use(timer)
        except BaseException:
            connected.close()
            raise
        connection = Connection((scheme, host), secure or plain)
        if proxy is not None and secure is None:
            connection.target_prefix, connection.headers = f"{scheme}://{host}", proxy.headers
        return connection

    def _secure(self, plain: PlainSocket, host: str, proxy: _Proxy | None) -> TlsSocket:
        name = urlsplit(f"//{host}").hostname or host
        if proxy is not None:
            has_port = urlsplit(f"//{host}").port is not None
            proxy.open_tunnel(plain, host if has_port else f"{host}:{_PORTS['https']}")
        try:
            return TlsSocket(plain, self._tls_context(), name, self.sessions.get(("https", host)))
        except ssl.SSLCertVerificationError as exc:
            raise CertificateError.of(f"https://{host}", exc.verify_message) from exc

    def _connect_tcp(self, scheme: str, host: str, deadline: float) -> socket.socket:
        """Tries the addresses of a host, the next one first, while there is time."""
        addresses = self._addresses_of(scheme, host)
        turn = addresses.in_turn()
        failure: OSError | None = None
        for left, (family, address) in zip(reversed(range(len(turn))), turn, strict=True):
            time_left = max(0.001, deadline - time.monotonic())
            connected = socket.socket(family, socket.SOCK_STREAM)
            try:
                # One that does not answer must not use up the time of the others.
                connected.settimeout(time_left / 2 if left else time_left)
                connected.connect(address)
            except OSError as exc:
                connected.close()
                addresses.failed((family, address))
                failure = exc
            else:
                return connected
        raise failure or S3ConnectionError(f"the name {host} was not found")

    def _addresses_of(self, scheme: str, host: str) -> _Addresses:
        with self._lock:
            known = self._addresses.get(host)
        if known is None or known.is_old:
            parts = urlsplit(f"//{host}")
            known = _Addresses.of(parts.hostname or host, parts.port or _PORTS[scheme])
            with self._lock:
                self._addresses[host] = known
        return known

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = trusting_context(self._session.ca_bundle)
            return self._tls


class _Addresses:
    """The addresses of a host; each new connection begins with the next, so that all of them are used."""

    def __init__(self, found: list[_Address]) -> None:
        self._found = found
        self._failed: set[_Address] = set()
        self._turn = 0
        self._old_at = time.monotonic() + _ADDRESSES_SECONDS

    @classmethod
    def of(cls, name: str, port: int) -> _Addresses:
        """Asks the resolver of this machine."""
        answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        return cls([(family, address) for family, _, _, _, address in answers])

    @property
    def is_old(self) -> bool:
        """Whether the resolver should be asked again."""
        return time.monotonic() >= self._old_at

    def in_turn(self) -> list[_Address]:
        """Returns all of them, beginning with another one each time; those that failed come last."""
        self._turn += 1
        good = [one for one in self._found if one not in self._failed]
        start = self._turn % max(1, len(good))
        return [*good[start:], *good[:start], *(one for one in self._found if one in self._failed)]

    def failed(self, address: _Address) -> None:
        """Takes note that an address could not be reached."""
        self._failed.add(address)


@dataclass(frozen=True, slots=True)
class _Proxy:
    """A proxy over plain HTTP.

    Attributes:
        host: Its name and port.
        headers: What requests to it carry besides.
    """

    host: str
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_environment(cls, scheme: str, host: str) -> _Proxy | None:
        """Finds the proxy for requests to a host; ``None`` where they go there directly.

        Raises:
            ConfigurationError: It is of a kind that is not known here.
        """
        from urllib.request import getproxies, proxy_bypass

        url = hidden(getproxies().get(scheme))
        if not url or proxy_bypass(host):
            return None
        proxy = cls._of_url(url)
        if proxy is None:
            raise ConfigurationError(
                f"the proxy for {scheme} cannot be used; its URL, which is not shown, has to be like "
                "http://host:port or http://user:password@host:port, with /, #, ? and @ of a password in "
                "percent encoding"
            )
        return proxy

    @classmethod
    def _of_url(cls, url: str) -> _Proxy | None:
        try:
            parts = urlsplit(url if "//" in url else f"//{url}")
            # A slash in a password makes another host of the user.
            is_torn = "@" in url and parts.username is None
            if is_torn or parts.scheme not in {"", "http"} or not parts.hostname:
                return None
            name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
            place = f"{name}:{parts.port or 80}"
            if parts.username is None:
                return cls(place)
            keys = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        except ValueError:
            return None
        return cls(place, (("Proxy-Authorization", SecretText(f"Basic {base64.b64encode(keys).decode()}")),))

    def open_tunnel(self, plain: PlainSocket, host: str) -> None:
        """Asks for a connection to a host, on a connection to the proxy.

        Args:
            plain: The connection to the proxy; from then on, that to the host.
            host: The name and the port.

        Raises:
            S3ConnectionError: The proxy refuses.
            OSError: The connection broke.
        """
        request = memoryview(request_head("CONNECT", host, [("Host", host), *self.headers]))
        while request:
            request = request[plain.send(request) :]
        answer = self._receive_answer(plain)
        if answer.status // 100 != 2:
            raise S3ConnectionError(f"the proxy {self.host} refuses a tunnel to {host} ({answer.status})")

    def _receive_answer(self, plain: PlainSocket) -> ResponseHead:
        data = b""
        while _HEAD_END not in data and len(data) < MAX_HEAD:
            piece = plain.receive(_RECEIVE)
            if not piece:
                raise S3ConnectionError(f"the proxy {self.host} closed the connection")
            data += piece
        return response_head(data.partition(_HEAD_END)[0])
