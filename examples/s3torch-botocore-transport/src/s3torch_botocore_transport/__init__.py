"""A transport for s3torch that signs and sends with botocore, as an example of how to write one.

The rules are in ``s3torch.core.seam``. What is left to do here is little: s3torch knows what a request says
(``request_target``, ``request_headers``), what an answer means (``request.result``), what follows a failure
(``decide_retry``), and ``WorkerPool`` has the threads. This module puts one request on the wire.

It does not go everywhere: multi-region access points need a signature of version 4A, which it does not make.
Its HTTP library takes answers that are malformed, and waits for those that come byte by byte.
And botocore cannot be woken up: the thread of a cancelled transfer waits until the server says something or
``read_timeout`` is over. The transfer itself ends at once, and its buffer is free.
"""

from __future__ import annotations

import threading
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ConnectTimeoutError, ReadTimeoutError, SSLError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError, ProtocolError
from urllib3.exceptions import ReadTimeoutError as BodyTimeoutError

from s3torch.core import transports
from s3torch.core.errors import (
    CertificateError,
    ConfigurationError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    TruncatedError,
)
from s3torch.core.plugins import hookimpl
from s3torch.core.requests import Answer, announced_length
from s3torch.core.transports import WorkerPool, WorkerTransfer

if TYPE_CHECKING:
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
        buffer = into if request.streams else transports.body_of(request, body)
        work = partial(self._run, request, None if into is None else len(into))
        return self._pool.start(WorkerTransfer(work, request=request, buffer=buffer))

    def close(self) -> None:
        """Cancels what is in flight and ends threads and connections."""
        self._pool.close()
        with self._lock:
            while self._sessions:
                self._sessions.popitem()[1].close()

    def _run(self, request: Request[T], room: int | None, transfer: WorkerTransfer[T]) -> T:
        """Sends a request until it succeeds or fails for good; runs on a worker thread."""
        session, attempts = self._context.session, self._context.config.attempts
        attempt, renewed = 0, False
        while True:
            transfer.check()  # Unwinds this thread if the transfer was cancelled.
            attempt += 1
            # Asked again for each attempt: keys may have been renewed since the last.
            keys = session.credentials(request.bucket)
            try:
                return request.result(self._attempt(request, room, transfer, keys))
            except S3Error as exc:
                error = exc
            request.locate(error)
            error.attempts = attempt
            decision = transports.decide_retry(error, attempt, attempts=attempts, renewed=renewed)
            if decision.action == "renew":
                renewed = session.renew_credentials(keys, request.bucket)
            if decision.action == "fail" or (decision.action == "renew" and not renewed):
                # Some errors mean success, such as a range of an empty object.
                return request.failed(error, into=room)
            listener, pause = self._context.on_retry, decision.seconds
            transports.tell_retry(listener, request, transfer, attempt=attempt, error=error, seconds=pause)
            transfer.pause(pause)

    def _attempt(
        self, request: Request[T], room: int | None, transfer: WorkerTransfer[T], keys: Credentials | None
    ) -> Answer:
        """Makes one attempt; whatever its library raises becomes an error of s3torch."""
        endpoint = self._context.session.endpoint(request.bucket)
        message = self._make(request, transfer, endpoint)
        if keys is not None:
            _sign(message, endpoint, keys)
        try:
            response = self._session(endpoint).send(message.prepare())
            # That was the head. A connection whose body is not read to its end is closed, others are kept.
            with closing(response.raw):
                answer = _receive(request, room, transfer, response)
                return answer._replace(region=endpoint.signing_region)
        except S3Error:
            raise
        except (BotoCoreError, HTTPError, OSError) as exc:
            raise _translated(exc, endpoint.host) from exc

    def _make(self, request: Request[T], transfer: WorkerTransfer[T], endpoint: BucketEndpoint) -> AWSRequest:
        """Makes what botocore signs and sends."""
        url = f"{endpoint.scheme}://{endpoint.host}{transports.request_target(request, endpoint)}"
        headers = dict(transports.request_headers(request, self._context, endpoint, body=None))
        data = None
        if transfer.size > 0 and not request.streams:
            # The body is taken piece by piece: a thread whose transfer was cancelled must not hold it.
            headers["Content-Length"] = str(transfer.size)
            data = (transfer.copy(start, start + _PIECE) for start in range(0, transfer.size, _PIECE))
        return AWSRequest(request.method, url, headers, data, stream_output=True)

    def _session(self, endpoint: BucketEndpoint) -> URLLib3Session:
        """Returns the connections to a host, with the proxy of the environment."""
        origin = f"{endpoint.scheme}://{endpoint.host}"
        with self._lock:
            if origin not in self._sessions:
                config = self._context.config
                self._sessions[origin] = URLLib3Session(
                    verify=self._context.session.ca_bundle or True,
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


def _receive(request: Request[Any], room: int | None, transfer: WorkerTransfer[Any], response: Any) -> Answer:
    """Receives the body: that of an object into the caller's buffer, if there is one."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    streams = request.streams and response.status_code < _FIRST_ERROR_STATUS
    # Raises if the answer announces other bytes than those that were asked for.
    status = response.status_code
    limit = announced_length(headers, request.byte_range, status=status) if streams else None
    room = room if streams else None
    if room is not None:
        limit = room if limit is None else min(limit, room)
    pieces: list[bytes] = []
    received = 0
    while piece := response.raw.read(_PIECE):
        transfer.check()
        if limit is not None and received + len(piece) > limit:
            raise TruncatedError(f"the body has more than the {limit} bytes asked for")
        if room is not None:
            transfer.fill(received, piece)
        else:
            pieces.append(piece)
        received += len(piece)
    # botocore leaves it to its caller to see that a body is whole. A HEAD has a length and no body.
    length = headers.get("content-length")
    if request.method != "HEAD" and length is not None and received != int(length):
        raise TruncatedError(f"got {received} of {length} bytes")
    return Answer(status, headers, b"".join(pieces) if room is None else None, received)


def _translated(error: Exception, host: str) -> S3Error:
    """Says in an error of s3torch what its library means; a ``ProtocolError`` has ended the body."""
    text = f"{host}: {error}"
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError | BodyTimeoutError | TimeoutError):
        return S3TimeoutError(text)
    if isinstance(error, SSLError):
        return CertificateError.of(f"https://{host}", str(error))
    return TruncatedError(text) if isinstance(error, ProtocolError) else S3ConnectionError(text)
