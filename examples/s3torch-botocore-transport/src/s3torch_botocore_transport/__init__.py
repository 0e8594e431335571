"""A transport for s3torch that signs and sends with botocore, as an example of how to write one.

The rules are in ``s3torch.core.seam``. What is left to do here is little: s3torch knows what a request says
(``request_target``, ``request_headers``), what an answer means (``request.result``), what follows a failure
(``decide_retry``), and ``WorkerPool`` has the threads. This module puts one request on the wire.

It does not go everywhere: multi-region access points need a signature of version 4A, which it does not make.
And botocore cannot be woken up: the thread of a cancelled transfer waits until the server says something or
``read_timeout`` is over. The transfer itself ends at once, and its buffer is free.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, ReadTimeoutError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError, ProtocolError
from urllib3.exceptions import ReadTimeoutError as BodyTimeoutError

from s3torch.core.errors import ConfigurationError, S3ConnectionError, S3Error, S3TimeoutError, TruncatedError
from s3torch.core.plugins import hookimpl
from s3torch.core.requests import Answer, announced_length
from s3torch.core.transports import (
    WorkerPool,
    WorkerTransfer,
    body_of,
    decide_retry,
    request_headers,
    request_target,
    tell_retry,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.models import BucketEndpoint, Credentials
    from s3torch.core.requests import Request
    from s3torch.core.seam import TransportContext

__all__ = ["BotocoreTransport", "s3torch_create_transport"]

T = TypeVar("T")

# Between two pieces a transfer sees whether it was cancelled.
_PIECE = 1024 * 1024
_FIRST_ERROR_STATUS = 300
# Payloads are not signed: that would read each body twice, and checksums of s3torch protect them already.
_UNSIGNED_PAYLOAD = Config(s3={"payload_signing_enabled": False})


@hookimpl
def s3torch_create_transport(context: TransportContext) -> BotocoreTransport:
    """Creates the transport; s3torch calls it in each process that needs one."""
    return BotocoreTransport(context)


class BotocoreTransport:
    """Moves bytes with botocore. The rules are those of ``s3torch.core.seam``."""

    def __init__(self, context: TransportContext) -> None:
        # Nothing connects here: the first request does.
        self._context = context
        self._pool = WorkerPool(context.config.connections, name="s3torch-botocore")
        self._sessions: dict[str, URLLib3Session] = {}
        self._lock = threading.Lock()

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> WorkerTransfer[T]:
        """Starts a request."""
        # A transfer has one buffer: what is received fills it, or what is sent comes out of it. It belongs to
        # the transfer, which gives it back at its end and takes it away when it is cancelled.
        buffer = into if request.streams else body_of(request, body)
        room = None if into is None else len(into)
        work = lambda transfer: self._run(transfer, request, room)  # noqa: E731 - It runs on a worker thread.
        return self._pool.start(WorkerTransfer(work, request=request, buffer=buffer))

    def close(self) -> None:
        """Cancels what is in flight and ends threads and connections."""
        self._pool.close()
        with self._lock:
            for session in self._sessions.values():
                session.close()
            self._sessions.clear()

    def _run(self, transfer: WorkerTransfer[T], request: Request[T], room: int | None) -> T:
        """Sends a request until it succeeds or fails for good; runs on a worker thread."""
        session = self._context.session
        attempt, renewed = 0, False
        while True:
            transfer.check()  # Unwinds this thread if the transfer was cancelled.
            attempt += 1
            # Asked again for each attempt: keys may have been renewed since the last.
            endpoint = session.endpoint(request.bucket)
            credentials = session.credentials(request.bucket)
            try:
                return request.result(self._attempt(transfer, request, room, endpoint, credentials))
            except S3Error as exc:
                error = exc
            request.locate(error)
            error.attempts = attempt
            decision = decide_retry(error, attempt, attempts=self._context.config.attempts, renewed=renewed)
            if decision.action == "renew":
                renewed = session.renew_credentials(credentials, request.bucket)
            if decision.action == "fail" or (decision.action == "renew" and not renewed):
                # Some errors mean success, such as a range of an empty object.
                return request.failed(error, into=room)
            tell_retry(
                self._context.on_retry,
                request,
                transfer,
                attempt=attempt,
                error=error,
                seconds=decision.seconds,
            )
            transfer.pause(decision.seconds)

    def _attempt(
        self,
        transfer: WorkerTransfer[T],
        request: Request[T],
        room: int | None,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> Answer:
        """Makes one attempt; whatever its library raises becomes an error of s3torch."""
        try:
            response = self._send(transfer, request, endpoint, credentials)
            try:
                headers = {name.lower(): value for name, value in response.headers.items()}
                return _receive(transfer, request, room, response.status_code, headers, response.raw)
            finally:
                # Ends a connection whose answer was not read to its end; any other is in the pool again.
                response.raw.close()
        except (BotoCoreError, HTTPError, OSError) as exc:
            if isinstance(exc, S3Error):
                raise
            raise _translated(exc, endpoint.host) from exc

    def _send(
        self,
        transfer: WorkerTransfer[T],
        request: Request[T],
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> Any:
        """Puts a request on the wire and returns the head of the answer, with its body still to be read."""
        headers = dict(request_headers(request, self._context, endpoint, body=None))
        has_body = transfer.size > 0 and not request.streams
        if has_body:
            # The body is taken piece by piece: a thread whose transfer was cancelled must not hold it.
            headers["Content-Length"] = str(transfer.size)
        message = AWSRequest(
            method=request.method,
            url=f"{endpoint.scheme}://{endpoint.host}{request_target(request, endpoint)}",
            data=_pieces(transfer) if has_body else None,
            stream_output=True,
        )
        for name, value in headers.items():
            message.headers[name] = value
        if credentials is not None:
            _sign(message, endpoint, credentials)
        return self._session(endpoint).send(message.prepare())

    def _session(self, endpoint: BucketEndpoint) -> URLLib3Session:
        """Returns the connections to a host, with the proxy and the certificates of the environment."""
        origin = f"{endpoint.scheme}://{endpoint.host}"
        with self._lock:
            if origin not in self._sessions:
                config = self._context.config
                self._sessions[origin] = URLLib3Session(
                    verify=os.environ.get("AWS_CA_BUNDLE") or os.environ.get("REQUESTS_CA_BUNDLE") or True,
                    proxies=get_environ_proxies(origin),
                    timeout=(config.connect_timeout, config.read_timeout),
                    max_pool_connections=config.connections,
                )
            return self._sessions[origin]


def _sign(message: AWSRequest, endpoint: BucketEndpoint, credentials: Credentials) -> None:
    """Adds the headers of a signature of version 4."""
    if endpoint.signing_region == "*":
        raise ConfigurationError("multi-region access points need another transport, such as 'crt'")
    token = credentials.session_token
    if endpoint.session_auth and token is not None:
        # Directory buckets want the token of a session in a header of its own.
        message.headers[endpoint.token_header] = token
        token = None
    message.context["client_config"] = _UNSIGNED_PAYLOAD
    keys = ReadOnlyCredentials(credentials.access_key, credentials.secret_key, token)
    S3SigV4Auth(keys, endpoint.signing_name, endpoint.signing_region).add_auth(message)


def _pieces(transfer: WorkerTransfer[Any]) -> Iterator[bytes]:
    """Gives the body to be sent, as copies of its pieces: a cancelled transfer then holds nothing of it."""
    for start in range(0, transfer.size, _PIECE):
        yield transfer.copy(start, start + _PIECE)


def _receive(
    transfer: WorkerTransfer[Any],
    request: Request[Any],
    room: int | None,
    status: int,
    headers: dict[str, str],
    raw: Any,
) -> Answer:
    """Receives the body: that of an object into the caller's buffer, if there is one."""
    streams = request.streams and status < _FIRST_ERROR_STATUS
    length = headers.get("content-length")
    # Raises if the answer announces other bytes than those that were asked for.
    limit = announced_length(headers, request.byte_range) if streams else None
    if room is not None and streams:
        limit = room if limit is None else min(limit, room)
    pieces: list[bytes] = []
    received = 0
    while piece := raw.read(_PIECE):
        transfer.check()
        if limit is not None and received + len(piece) > limit:
            raise TruncatedError(f"the body has more than the {limit} bytes asked for")
        if streams and room is not None:
            transfer.fill(received, piece)
        else:
            pieces.append(piece)
        received += len(piece)
    # botocore leaves it to its caller to see that a body is whole. A HEAD has a length and no body.
    if request.method != "HEAD" and length is not None and received != int(length):
        raise TruncatedError(f"got {received} of {length} bytes")
    return Answer(status, headers, None if streams and room is not None else b"".join(pieces), received)


def _translated(error: Exception, host: str) -> S3Error:
    """Says in an error of s3torch what its library means."""
    text = f"{host}: {error}"
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError | BodyTimeoutError | TimeoutError):
        return S3TimeoutError(text)
    if isinstance(error, ProtocolError):  # The connection ended within the body.
        return TruncatedError(text)
    return S3ConnectionError(text)
