"""A transport that speaks HTTP/1.1 itself and moves bytes with as few copies as sockets allow.

The body of an answer goes from the kernel straight into the caller's buffer, and the body of a request from
the caller's buffer straight into the kernel, in calls that move megabytes without the interpreter's lock. An
answer that breaks off is resumed at the byte where it broke. There is nothing native in it: no event loops to
start, none to lose in a fork.

Its processor time for a byte is about that of the copy out of the kernel, half of what ``crt`` takes; for a
small object it is half as well. Over TLS OpenSSL decrypts megabytes in one call, see ``_records``. Each
transfer in flight takes a thread and a connection, as many as ``throughput_target_gbps`` asks for at 0.4
Gbit/s each, from 10 to 128; for small transfers as many as can be kept busy with answers, which are few where
the store answers at once. Idle connections are shared by all transports of a process with equal settings.

Certificates are checked against the ``ca_bundle`` of the session, else against those of the machine, else
those of botocore. ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` are heeded.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core._resources import connections_for_throughput, exhausted_files
from s3torch.core.errors import (
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
)
from s3torch.core.plugins import hookimpl
from s3torch.core.ranges import KIB, MIB
from s3torch.core.requests import (
    Answer,
    Request,
    body_of,
    request_headers,
    request_target,
)
from s3torch.core.requests._request import FIRST_ERROR_STATUS
from s3torch.core.transports._retries import Throttling, decide_retry, tell_retry
from s3torch.core.transports._signing import Signer
from s3torch.core.transports._workers import WorkerPool, WorkerTransfer
from s3torch.core.transports.http._connection import StaleConnectionError
from s3torch.core.transports.http._connections import Connections
from s3torch.core.transports.http._download import Download
from s3torch.core.transports.http._messages import request_head

if TYPE_CHECKING:
    from s3torch.core.models import BucketEndpoint, Credentials
    from s3torch.core.seam import TransportContext
    from s3torch.core.transports.http._connection import Connection
    from s3torch.core.transports.http._messages import ResponseHead

T = TypeVar("T")

_MAX_ERROR_BODY = 64 * KIB
# A listing of 1,000 keys of 1,024 characters, each quoted, with all that is told of them.
_MAX_ANSWER = 16 * MIB


@hookimpl
def s3torch_create_transport(context: TransportContext) -> HttpTransport:
    """Creates the transport."""
    return HttpTransport(context)


class HttpTransport:
    """Moves bytes over sockets. The rules are those of ``s3torch.core.seam``."""

    ends_early = True

    def __init__(self, context: TransportContext) -> None:
        connections = context.config.connections
        self._context = context
        self._connections = Connections(context)
        self._signer = Signer()
        self._throttling = Throttling()
        at_once = connections_for_throughput(context.config.throughput_target_gbps)
        self._pool = WorkerPool(
            connections, name="s3torch-http", at_once=at_once, target=self._connections.target
        )

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> WorkerTransfer[T]:
        """Starts a request."""
        return self._pool.start(self._transfer(request, body, into))

    def send_now(self, request: Request[T], *, into: memoryview | None = None) -> T:
        """Sends a request on the calling thread, which spares the changes of threads."""
        return self._pool.do(self._transfer(request, None, into))

    def close(self) -> None:
        """Cancels what is in flight and ends threads and connections."""
        self._pool.close()
        self._connections.close()

    def _transfer(
        self, request: Request[T], body: memoryview | None, into: memoryview | None
    ) -> WorkerTransfer[T]:
        download = Download(request, None if into is None else len(into)) if request.streams else None
        buffer = into if download is not None else body_of(request, body)
        return WorkerTransfer(
            lambda transfer: self._run(transfer, request, download), request=request, buffer=buffer
        )

    def _run(self, transfer: WorkerTransfer[T], request: Request[T], download: Download[T] | None) -> T:
        """Sends a request until it succeeds, on the thread of its transfer."""
        session = self._context.session
        attempt = sent = 0
        renewed = False
        while True:
            transfer.check()
            attempt += 1
            endpoint = session.endpoint(request.bucket)
            credentials = session.credentials(request.bucket)
            try:
                return self._attempt(transfer, request, download, endpoint, credentials)
            except S3Error as exc:
                error = exc
                request.locate(error)
                sent += error.attempts or 1
                error.attempts = sent
            transfer.check()
            decision = decide_retry(
                error,
                attempt,
                attempts=self._context.config.attempts,
                renewed=renewed,
                resumable=download is not None and download.restarts(error),
                throttling=self._throttling,
            )
            if decision.action == "renew":
                renewed = session.renew_credentials(credentials, request.bucket)
            if decision.action == "fail" or (decision.action == "renew" and not renewed):
                if download is not None:
                    return download.failed(error)
                return request.failed(error)
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
        download: Download[T] | None,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> T:
        fresh = False
        try:
            while True:
                connection = self._connections.take(endpoint, fresh=fresh)
                try:
                    return self._exchange(transfer, request, download, connection, endpoint, credentials)
                except StaleConnectionError:
                    # Nothing came back, so this is no attempt; the other kept ones may be as old.
                    fresh = True
                except S3Error as exc:
                    # But it may have arrived.
                    exc.attempts = 1 + fresh
                    raise
                finally:
                    self._connections.give_back(connection)
        except TimeoutError as exc:
            if isinstance(exc, S3Error):
                raise
            raise S3TimeoutError(f"{endpoint.host}: {exc}") from exc
        except OSError as exc:
            if isinstance(exc, S3Error):
                raise
            raise S3ConnectionError(f"{endpoint.host}: {_words(exc)}") from exc

    def _exchange(
        self,
        transfer: WorkerTransfer[T],
        request: Request[T],
        download: Download[T] | None,
        connection: Connection,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> T:
        buffer = transfer.borrow(connection.interrupt)
        try:
            asked: Request[Any] = request if download is None else download.next_request()
            body = buffer if download is None else None
            head = self._head(asked, connection, body, endpoint, credentials)
            transfer.sent_at = time.monotonic()
            answer = connection.ask(head, body, has_answer_body=request.method != "HEAD")
            if answer.status < FIRST_ERROR_STATUS and download is not None:
                return download.receive(answer, connection, buffer)
            limit = _MAX_ANSWER if answer.status < FIRST_ERROR_STATUS else _MAX_ERROR_BODY
            return request.result(_answer(answer, connection.body(answer, limit), endpoint.signing_region))
        finally:
            transfer.give_back()

    def _head(
        self,
        request: Request[Any],
        connection: Connection,
        body: memoryview | None,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> bytes:
        target = request_target(request, endpoint)
        headers = request_headers(request, self._context, endpoint, body=body)
        if request.streams:
            headers.append(("Accept-Encoding", "identity"))
        if credentials is not None:
            headers += self._signer.sign(
                request.method, target, headers, endpoint=endpoint, credentials=credentials
            )
        headers += connection.headers
        return request_head(request.method, connection.target_prefix + target, headers)


def _answer(head: ResponseHead, body: bytes, region: str) -> Answer:
    return Answer(head.status, head.headers, body, len(body), region)


def _words(error: OSError) -> str:
    """Says what has broken; without files to open, hosts are unknown, too."""
    return exhausted_files() or str(error)
