"""How the ``http`` transport reaches a host: its addresses in turn, proxies, TCP, TLS."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from s3torch.core.errors import S3ConnectionError
from s3torch.core.transports._http_connection import Connection
from s3torch.core.transports._http_proxy import Proxy
from s3torch.core.transports._http_socket import PlainSocket
from s3torch.core.transports._http_tls import TlsSocket, trusting_context

if TYPE_CHECKING:
    import ssl

    from s3torch.core.config import S3ClientConfig

_PORTS = {"http": 80, "https": 443}
# S3 gives out a few of its many addresses at a time, each for some seconds.
_ADDRESSES_SECONDS = 10.0

# As ``socket`` takes them: the family, and what to connect to.
_Address = tuple[int, Any]


class Connector:
    """Makes connections; may be used by many threads at a time."""

    def __init__(self, config: S3ClientConfig) -> None:
        self._connect_timeout = config.connect_timeout
        self._read_timeout = config.read_timeout
        self._lock = threading.RLock()  # The collector may abort a dropped upload in here.
        self._addresses: dict[str, Addresses] = {}
        self._tls: ssl.SSLContext | None = None

    def connect(self, scheme: str, host: str) -> Connection:
        """Connects to a host.

        Args:
            scheme: ``"http"`` or ``"https"``.
            host: As in the ``Host`` header.

        Raises:
            OSError: There is no connection to be had in time.
        """
        deadline = time.monotonic() + self._connect_timeout
        proxy = Proxy.of_environment(scheme, host)
        if proxy is None:
            connected = self._connect_tcp(scheme, host, deadline)
        else:
            connected = self._connect_tcp("http", proxy.host, deadline)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain = PlainSocket(connected, max(0.001, deadline - time.monotonic()))
            secure = self._secure(plain, host, proxy) if scheme == "https" else None
            plain.set_timeout(self._read_timeout)
        except BaseException:
            connected.close()
            raise
        connection = Connection((scheme, host), secure or plain, self._read_timeout)
        if proxy is not None and secure is None:
            connection.target_prefix, connection.headers = f"{scheme}://{host}", proxy.headers
        return connection

    def _secure(self, plain: PlainSocket, host: str, proxy: Proxy | None) -> TlsSocket:
        name = urlsplit(f"//{host}").hostname or host
        if proxy is not None:
            has_port = urlsplit(f"//{host}").port is not None
            proxy.open_tunnel(plain, host if has_port else f"{host}:{_PORTS['https']}")
        return TlsSocket(plain, self._tls_context(), name)

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
        raise failure or S3ConnectionError(f"{host} has no address")

    def _addresses_of(self, scheme: str, host: str) -> Addresses:
        with self._lock:
            known = self._addresses.get(host)
        if known is None or known.is_old:
            parts = urlsplit(f"//{host}")
            known = Addresses.of(parts.hostname or host, parts.port or _PORTS[scheme])
            with self._lock:
                self._addresses[host] = known
        return known

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = trusting_context()
            return self._tls


class Addresses:
    """The addresses of a host; each new connection begins with the next, so that all of them are used."""

    def __init__(self, found: list[_Address]) -> None:
        self._found = found
        self._failed: set[_Address] = set()
        self._turn = 0
        self._old_at = time.monotonic() + _ADDRESSES_SECONDS

    @classmethod
    def of(cls, name: str, port: int) -> Addresses:
        """Asks the resolver of this machine."""
        answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        return cls([(family, address) for family, _, _, _, address in answers])

    @property
    def is_old(self) -> bool:
        """Tells whether the resolver should be asked again."""
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
