"""What the errors of awscrt mean, and why there is no TLS with a server."""

from __future__ import annotations

import base64
import ssl
from contextlib import closing
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from s3torch.core._resources import exhausted_files
from s3torch.core.errors import (
    CertificateError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    TransferCancelledError,
    TruncatedError,
    error_from_response,
)
from s3torch.core.requests import Answer

if TYPE_CHECKING:
    from s3torch.core.requests import Request

# Errors that come without a response after the last attempt, by the name that the CRT gives them.
_STATUS_BY_NAME = {
    "AWS_ERROR_S3_SLOW_DOWN": (503, "SlowDown"),
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "InternalError"),
    "AWS_ERROR_S3_REQUEST_TIMEOUT": (400, "RequestTimeout"),
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
}
_CANCELLED = {"AWS_ERROR_S3_CANCELED", "AWS_ERROR_S3_PAUSED"}
# Answers that have other bytes than were asked for; the CRT keeps what they were to itself.
NO_RANGE = "AWS_ERROR_S3_MISSING_CONTENT_RANGE_HEADER"
NO_ETAG = "AWS_ERROR_S3_MISSING_ETAG"
_TRUNCATED = {
    NO_RANGE: "the store answered a request for a range without a range",
    "AWS_ERROR_S3_INVALID_CONTENT_RANGE_HEADER": "the store answered with another range than was asked for",
    "AWS_ERROR_DEST_COPY_TOO_SMALL": "the body is longer than what was asked for",
}
_TIMEOUTS = {
    "AWS_IO_SOCKET_TIMEOUT",
    "AWS_ERROR_HTTP_CHANNEL_THROUGHPUT_FAILURE",
    "AWS_ERROR_HTTP_RESPONSE_FIRST_BYTE_TIMEOUT",
}
# Where the CRT finds the certificates of a machine; OpenSSL may have others.
_SYSTEM_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# X509_V_ERR_* of OpenSSL: not yet valid, expired, self-signed, of an unknown authority, for another name or
# address. Of what else OpenSSL may refuse the CRT may think otherwise.
_UNTRUSTED = {9, 10, 18, 19, 20, 21, 62, 64}
# How OpenSSL calls what is no record of TLS.
_NO_TLS = {"HTTP_REQUEST", "UNKNOWN_PROTOCOL", "WRONG_VERSION_NUMBER"}


def failed_handshake(host: str, bundle: str | None, *, timeout: float) -> ssl.SSLError | None:
    """Returns why there can be no TLS with a server; ``None`` if there can, or where that is not sure.

    The CRT keeps a failed handshake to itself for 10 to 30 seconds, so this makes one of its own.

    Args:
        host: The server, as in the ``Host`` header.
        bundle: The certificates to trust; ``None`` for those of the machine.
        timeout: Seconds to wait for each step.
    """
    try:
        context = ssl.create_default_context(cafile=bundle)
        for file in _SYSTEM_BUNDLES if bundle is None else ():
            if Path(file).is_file():
                context.load_verify_locations(file)
        with closing(_connection(host, timeout=timeout, context=context)) as connection:
            connection.connect()
    except ssl.SSLCertVerificationError as exc:
        return exc if exc.verify_code in _UNTRUSTED else None
    except ssl.SSLError as exc:
        return exc if exc.reason in _NO_TLS else None
    except (OSError, HTTPException, ValueError):
        return None
    return None


def error_of_handshake(host: str, error: ssl.SSLError) -> S3Error:
    """Makes the error of a transfer from what ``failed_handshake`` has found."""
    made: S3Error
    if isinstance(error, ssl.SSLCertVerificationError):
        made = CertificateError.of(f"https://{host}", error.verify_message)
    else:
        made = S3ConnectionError(
            f"https://{host} does not speak TLS ({error.reason}); it may be http://{host}"
        )
    made.__cause__ = error
    return made


def _connection(host: str, **how: Any) -> HTTPSConnection:
    """Prepares a connection to a server, through the proxy of the environment."""
    from urllib.request import getproxies, proxy_bypass

    target = urlsplit(f"//{host}")
    url = getproxies().get("https")
    if not url or proxy_bypass(host):
        return HTTPSConnection(target.hostname or "", target.port or 443, **how)
    proxy = urlsplit(url if "//" in url else f"//{url}")
    connection = HTTPSConnection(proxy.hostname or "", proxy.port or 80, **how)
    headers = {}
    if proxy.username is not None:
        keys = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        headers["Proxy-Authorization"] = f"Basic {base64.b64encode(keys).decode()}"
    connection.set_tunnel(target.hostname or "", target.port or 443, headers)
    return connection


def error_of(
    request: Request[Any],
    error: Exception,
    headers: list[tuple[str, str]] | None,
    body: bytes | None,
    status: int | None,
    *,
    host: str,
    region: str,
    late: bool,
) -> S3Error:
    """Makes the error of an attempt that the CRT calls a failure; the arguments are those of its ``on_done``.

    Args:
        request: What was asked.
        error: The native error.
        headers: The headers of the answer, if there was one.
        body: Its body.
        status: Its status.
        host: Who was asked.
        region: What the request was signed for.
        late: Whether the attempt was given up because nothing came in time.
    """
    if isinstance(error, S3Error):
        return error
    name = getattr(error, "name", type(error).__name__)
    if status is not None:
        # It may quote the headers of the request.
        vars(error).update(headers=None, body=None)
        told = {key.lower(): value for key, value in headers or ()}
        return request.error(Answer(status, told, body, region=region))
    if name in _STATUS_BY_NAME:
        known_status, code = _STATUS_BY_NAME[name]
        return error_from_response(
            operation=request.operation,
            bucket=request.bucket,
            key=request.key or None,
            status=known_status,
            code=code,
        )
    if late:
        return S3TimeoutError(f"no answer from {host} in time")
    if name in _CANCELLED:
        return TransferCancelledError("the transfer was cancelled")
    if name in _TRUNCATED:
        return TruncatedError(_TRUNCATED[name])
    text = f"{host}: {exhausted_files() or getattr(error, 'message', None) or str(error)} ({name})"
    kind = S3TimeoutError if name in _TIMEOUTS else S3ConnectionError
    return kind(text)
