"""A transport that speaks HTTP/1.1 itself and moves bytes with as few copies as sockets allow.

The body of an answer goes from the kernel straight into the caller's buffer, and the body of a request from
the caller's buffer straight into the kernel, in calls that move megabytes without the interpreter's lock. An
answer that breaks off is resumed at the byte where it broke. There is nothing native in it: no event loops to
start, none to lose in a fork.

Its processor time for a byte is about that of the copy out of the kernel, half of what ``crt`` takes; for a
small object it is half as well. Over TLS Python decrypts records of 16 KiB, which takes about as long as in
``crt``, and the interpreter's lock for a moment each. Each transfer under way takes a thread and a
connection, as many as ``throughput_target_gbps`` asks for at 0.4 Gbit/s each, from 10 to 64; for small
transfers as many as can be kept busy with answers, which are few where the store answers at once.

Certificates are checked against ``AWS_CA_BUNDLE`` or ``REQUESTS_CA_BUNDLE``, else against those of the
machine, else those of botocore. ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` are heeded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from s3torch.core._resources import connections_for_throughput
from s3torch.core.plugins.hookspecs import hookimpl
from s3torch.core.transports._http_download import Download
from s3torch.core.transports._http_exchange import Call, Exchange
from s3torch.core.transports._http_sender import Sender
from s3torch.core.transports._pool import PooledTransfer, TransferPool
from s3torch.core.transports._uploads import Uploads

if TYPE_CHECKING:
    from concurrent.futures import Future

    from s3torch.core.models import GetResult
    from s3torch.core.protocols import TransportContext
    from s3torch.core.ranges import ByteRange
    from s3torch.core.transports._requests import Request

__all__ = ["HttpTransport", "s3torch_create_transport"]

T = TypeVar("T")


@hookimpl
def s3torch_create_transport(context: TransportContext) -> HttpTransport:
    """Creates the transport."""
    return HttpTransport(context)


class HttpTransport(Uploads):
    """Moves bytes over sockets. The rules are those of ``s3torch.core.protocols``."""

    def __init__(self, context: TransportContext) -> None:
        connections = context.config.connections
        self._sender = Sender(context, connections=connections)
        at_once = connections_for_throughput(context.config.throughput_target_gbps)
        self._pool = TransferPool(connections, name="s3torch-http", at_once=at_once)

    def get(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        into: memoryview | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> Future[GetResult]:
        """Starts one GetObject request."""
        return self._pool.start(self._download(bucket, key, byte_range, into, if_match, version_id))

    def get_now(
        self,
        bucket: str,
        key: str,
        *,
        byte_range: ByteRange | None = None,
        into: memoryview | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> GetResult:
        """Sends one GetObject request on the calling thread, which spares the changes of threads."""
        return self._pool.do(self._download(bucket, key, byte_range, into, if_match, version_id))

    def close(self) -> None:
        """Cancels what is in flight and ends threads and connections."""
        self._pool.close()
        self._sender.close()

    def _call(self, request: Request[T], body: memoryview | None = None) -> PooledTransfer[T]:
        return self._start(Call(request), body)

    def _download(
        self,
        bucket: str,
        key: str,
        byte_range: ByteRange | None,
        into: memoryview | None,
        if_match: str | None,
        version_id: str | None,
    ) -> PooledTransfer[GetResult]:
        download = Download(
            bucket,
            key,
            byte_range=byte_range,
            room=len(into) if into is not None else None,
            if_match=if_match,
            version_id=version_id,
        )
        return self._transfer(download, into)

    def _start(self, exchange: Exchange[T], buffer: memoryview | None = None) -> PooledTransfer[T]:
        return self._pool.start(self._transfer(exchange, buffer))

    def _transfer(self, exchange: Exchange[T], buffer: memoryview | None) -> PooledTransfer[T]:
        return PooledTransfer(
            lambda transfer: self._sender.send(transfer, exchange),
            operation=exchange.operation,
            bucket=exchange.bucket,
            key=exchange.key,
            buffer=buffer,
        )
