"""Proxies that the environment names: ``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY``."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from s3torch.core.errors import ConfigurationError, S3ConnectionError
from s3torch.core.transports._http_head import MAX_HEAD, request_head, response_head

if TYPE_CHECKING:
    from s3torch.core.transports._http_socket import PlainSocket

_RECEIVE = 4096
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy over plain HTTP.

    Attributes:
        host: Its name and port.
        headers: What requests to it carry besides.
    """

    host: str
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_environment(cls, scheme: str, host: str) -> Proxy | None:
        """Finds the proxy for requests to a host; ``None`` where they go there directly.

        Raises:
            ConfigurationError: It is of a kind that is not known here.
        """
        from urllib.request import getproxies, proxy_bypass

        url = getproxies().get(scheme)
        if not url or proxy_bypass(host):
            return None
        parts = urlsplit(url if "//" in url else f"//{url}")
        if parts.scheme not in {"", "http"} or not parts.hostname:
            raise ConfigurationError(
                f"only proxies like http://host:port can be used, not {parts.hostname!r}"
            )
        name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        headers: tuple[tuple[str, str], ...] = ()
        if parts.username is not None:
            keys = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers = (("Proxy-Authorization", f"Basic {base64.b64encode(keys.encode()).decode()}"),)
        return cls(f"{name}:{parts.port or 80}", headers)

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
        data = b""
        while _HEAD_END not in data and len(data) < MAX_HEAD:
            piece = plain.receive(_RECEIVE)
            if not piece:
                raise S3ConnectionError(f"the proxy {self.host} closed the connection")
            data += piece
        answer = response_head(data.partition(_HEAD_END)[0])
        if answer.status // 100 != 2:
            raise S3ConnectionError(f"the proxy {self.host} refuses a tunnel to {host} ({answer.status})")
