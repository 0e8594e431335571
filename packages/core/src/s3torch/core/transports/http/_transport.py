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
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from s3torch.core._memory import new_bytes
from s3torch.core._resources import connections_for_throughput, exhausted_files
from s3torch.core.errors import (
    PreconditionFailedError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    TruncatedError,
)
from s3torch.core.plugins import hookimpl
from s3torch.core.ranges import KIB, MIB, ByteRange
from s3torch.core.requests import Answer, Request, announced_length, get_headers
from s3torch.core.requests._request import FIRST_ERROR_STATUS, is_weak, same_etag
from s3torch.core.transports import body_of, request_headers, request_target
from s3torch.core.transports._retries import Throttling, decide_retry, tell_retry
from s3torch.core.transports._workers import WorkerPool, WorkerTransfer
from s3torch.core.transports.http._connecting import ConnectionMaker
from s3torch.core.transports.http._connection import Connections, StaleConnectionError
from s3torch.core.transports.http._messages import Signer, request_head

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.core.models import BucketEndpoint, Credentials
    from s3torch.core.seam import TransportContext
    from s3torch.core.transports.http._connection import Connection
    from s3torch.core.transports.http._messages import ResponseHead

T = TypeVar("T")

_MAX_ERROR_BODY = 64 * KIB
# A listing of 1,000 keys of 1,024 characters, each quoted, with all that is told of them.
_MAX_ANSWER = 16 * MIB
# Larger bodies are received into memory that is made for them; smaller ones are joined from their pieces.
_LARGE = 32 * KIB


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
        self._connections = Connections(ConnectionMaker(context), context)
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

    def send_now(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> T:
        """Sends a request on the calling thread, which spares the changes of threads."""
        return self._pool.do(self._transfer(request, body, into))

    def close(self) -> None:
        """Cancels what is in flight and ends threads and connections."""
        self._pool.close()
        self._connections.close()

    def _transfer(
        self, request: Request[T], body: memoryview | None, into: memoryview | None
    ) -> WorkerTransfer[T]:
        download = Download(request, None if into is None else len(into)) if request.streams else None
        buffer = into if download is not None else body_of(request, body)
        return WorkerTransfer(lambda transfer: self._run(transfer, download), request=request, buffer=buffer)

    def _run(self, transfer: WorkerTransfer[T], download: Download[T] | None) -> T:
        """Sends a request until it succeeds, on the thread of its transfer."""
        request, context = transfer.request, self._context
        session = context.session
        attempt = sent = 0
        renewed = False
        while True:
            transfer.check()
            attempt += 1
            endpoint = session.endpoint(request.bucket)
            credentials = session.credentials(request.bucket)
            try:
                return self._attempt(transfer, download, endpoint, credentials)
            except S3Error as exc:
                error = exc
                request.locate(error)
                sent += error.attempts or 1
                error.attempts = sent
            transfer.check()
            decision = decide_retry(
                error,
                attempt,
                attempts=context.config.attempts,
                renewed=renewed,
                resumable=download is not None and download.restarts(error),
                throttling=self._throttling,
            )
            if decision.action == "renew":
                renewed = session.renew_credentials(credentials, request.bucket)
            if decision.action == "fail" or (decision.action == "renew" and not renewed):
                return (request if download is None else download).failed(error)
            tell_retry(
                context.on_retry, request, transfer, attempt=attempt, error=error, seconds=decision.seconds
            )
            transfer.pause(decision.seconds)

    def _attempt(
        self,
        transfer: WorkerTransfer[T],
        download: Download[T] | None,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> T:
        fresh = False
        try:
            while True:
                connection = self._connections.take(endpoint, fresh=fresh)
                try:
                    return self._exchange(transfer, download, connection, endpoint, credentials)
                except StaleConnectionError:
                    # Nothing came back, so this is no attempt; the other kept ones may be as old.
                    fresh = True
                except S3Error as exc:
                    # But it may have arrived.
                    exc.attempts = 1 + fresh
                    raise
                finally:
                    self._connections.give_back(connection)
        except S3Error:
            raise
        except TimeoutError as exc:
            raise S3TimeoutError(f"{endpoint.host}: {exc}") from exc
        except OSError as exc:
            # Without files to open, hosts are unknown, too.
            raise S3ConnectionError(f"{endpoint.host}: {exhausted_files() or exc}") from exc

    def _exchange(
        self,
        transfer: WorkerTransfer[T],
        download: Download[T] | None,
        connection: Connection,
        endpoint: BucketEndpoint,
        credentials: Credentials | None,
    ) -> T:
        request, buffer = transfer.request, transfer.borrow(connection.socket.interrupt)
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
            method, signer = request.method, self._signer
            headers += signer.sign(method, target, headers, endpoint=endpoint, credentials=credentials)
        headers += connection.headers
        return request_head(request.method, connection.target_prefix + target, headers)


def _answer(head: ResponseHead, body: bytes, region: str) -> Answer:
    # Here, because no frame of an error may keep a body: some servers quote the request in it.
    return Answer(head.status, head.headers, body, len(body), region)


class Download(Generic[T]):
    """One GET over all of its attempts: what has come stays, the rest is asked for.

    Args:
        request: What is asked for.
        room: How long the caller's buffer is; ``None`` where there is none.
    """

    def __init__(self, request: Request[T], room: int | None) -> None:
        self._request = request
        self._wanted = request.byte_range
        self._room = room
        self._received = 0
        self._length = 0
        self._etag: str | None = None
        # The first answer of which anything has been kept.
        self._headers: Mapping[str, str] = {}
        self._status = 0
        self._pieces: list[bytes] = []
        self._memory: tuple[bytes, memoryview] | None = None

    def next_request(self) -> Request[T]:
        """Returns the request of the next attempt."""
        if self._etag is None:
            # What has come cannot be told from another version.
            self._forget()
        if not self._received and self._wanted is self._request.byte_range:
            return self._request
        return self._request._replace(
            headers=get_headers(self._missing, self._etag or self._request.if_match)
        )

    def receive(self, answer: ResponseHead, connection: Connection, buffer: memoryview | None) -> T:
        """Receives a body, or what is missing of it.

        Raises:
            TruncatedError: It is not what was asked for, or not whole.
            OSError: The connection broke.
        """
        announced = self._begin(answer)
        length = self._limited(announced)
        is_all = length == announced
        if length is not None and self._room is not None and length > self._room:
            raise TruncatedError(f"the body has {length} bytes, more than the {self._room} asked for")
        missing = None if length is None else length - self._received
        if is_all and None not in {answer.length, missing} and answer.length != missing:
            raise TruncatedError(f"the answer announces {answer.length} of {missing} bytes")
        if answer.length is None or length is None:
            self._receive_pieces(answer, connection, buffer, length)
        elif buffer is not None:
            self._fill(connection, buffer, length)
        elif length < _LARGE:
            self._collect(connection, length)
        else:
            if self._memory is None:
                self._memory = _memory_for(length)
            self._fill(connection, self._memory[1], length)
        if is_all:
            connection.end_body()
        return self._result(buffer)

    def restarts(self, error: S3Error) -> bool:
        """Whether an attempt failed only because the object was replaced since the one before."""
        if isinstance(error, PreconditionFailedError) and self._received and self._request.if_match is None:
            self._forget()
            return True
        return False

    def failed(self, error: S3Error) -> T:
        """Returns a result where the error means success, or raises it."""
        if self._received:
            raise error
        return self._request.failed(error, into=self._room)

    @property
    def _missing(self) -> ByteRange | None:
        """What the next attempt asks for; ``None`` for a whole object."""
        if not self._received:
            return self._wanted
        start = self._wanted.start if self._wanted is not None else 0
        return ByteRange(start + self._received, start + self._length)

    def _forget(self) -> None:
        """Begins anew."""
        self._received = self._length = 0
        self._etag = self._memory = None
        self._headers = {}
        self._pieces = []

    def _begin(self, answer: ResponseHead) -> int | None:
        """Checks what an answer brings against what was asked for; returns the length of all attempts."""
        try:
            length = announced_length(answer.headers, self._missing, status=answer.status)
        except TruncatedError:
            if not self._received:
                raise
            # A server that does not know ranges, or not this one, begins anew, and so does this side.
            self._forget()
            length = announced_length(answer.headers, self._wanted, status=answer.status)
        etag = answer.headers.get("etag")
        if self._received:
            if not same_etag(etag or "", self._etag or ""):
                self._forget()
                raise TruncatedError(f"the object was replaced while it was read (ETag {etag})")
            return self._length
        self._headers, self._status = answer.headers, answer.status
        self._length = length or 0
        # A weak ETag never matches, so what has come would be of no use.
        self._etag = etag if length is not None and etag and not is_weak(etag) else None
        return length

    def _limited(self, length: int | None) -> int | None:
        """Returns how much of a body is received; the connection is not used again where that is not all."""
        at_most = self._request.at_most
        if at_most is None:
            return length
        if length is None and self._wanted is None:
            # It may be of any size. The next attempt asks for a range.
            self._wanted = ByteRange(0, at_most)
            raise TruncatedError("the answer does not tell its length")
        if length is None:
            return None
        self._length = min(length, at_most)
        return self._length

    def _fill(self, connection: Connection, memory: memoryview, length: int) -> None:
        while self._received < length:
            with memory[self._received : length] as missing:
                count = connection.receive_into(missing)
            if not count:
                raise self._truncated(length)
            self._received += count

    def _collect(self, connection: Connection, length: int) -> None:
        while self._received < length:
            piece = connection.receive(length - self._received)
            if not piece:
                raise self._truncated(length)
            self._pieces.append(piece)
            self._received += len(piece)

    def _receive_pieces(
        self, answer: ResponseHead, connection: Connection, buffer: memoryview | None, length: int | None
    ) -> None:
        """Receives a body whose end is not told by its length."""
        most = self._room if length is None else length
        if most is None and self._wanted is not None:
            most = len(self._wanted)
        target = buffer if self._memory is None else self._memory[1]
        for piece in connection.pieces(answer):
            stop = self._received + len(piece)
            if most is not None and stop > most:
                raise TruncatedError(f"the body has more than the {most} bytes asked for")
            if target is not None:
                target[self._received : stop] = piece
            else:
                self._pieces.append(piece)
            self._received = stop
        if length is not None and self._received != length:
            raise self._truncated(length)

    def _result(self, buffer: memoryview | None) -> T:
        data: bytes | None = None
        if self._memory is not None:
            data, view = self._memory
            view.release()
        elif self._room is None:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        body = memoryview(b"") if buffer is None else buffer[: self._received]
        with body if data is None else memoryview(data) as view:
            answer = Answer(self._status, self._headers, data, self._received, view=view)
            return self._request.result(answer)

    def _truncated(self, length: int) -> TruncatedError:
        return TruncatedError(f"got {self._received} of {length} bytes")


def _memory_for(length: int) -> tuple[bytes, memoryview]:
    """Makes memory for a body whose length is what the server says."""
    try:
        return new_bytes(length)
    except (MemoryError, OverflowError, SystemError) as exc:
        raise S3Error(f"there is no memory for the {length} bytes that the answer announces") from exc
