"""The default transport: the AWS Common Runtime (awscrt).

Facts about awscrt that this module rests on, checked on 0.38:

* A ranged ``GET_OBJECT`` no larger than the client's part size is exactly one HTTP request, with pooled
  part buffers; ``DEFAULT`` grows its buffer and costs half as much CPU time again.
* ``on_body`` gets the offset in the object, not in the range, on a thread of the CRT.
* The native error objects cannot be unpickled, so they never leave this module but as ``__cause__``.
* Of an answer nothing is told before its end, so time-outs are for whole answers (``_crt_watch``).
* ``finished_future`` is set before ``on_done`` runs; ``on_done`` is what this module listens to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from s3torch.core.plugins.hookspecs import hookimpl
from s3torch.core.transports._crt_exchange import BodyStream, Exchange, GetExchange
from s3torch.core.transports._crt_runtime import CrtRuntime
from s3torch.core.transports._crt_transfer import CrtTransfer
from s3torch.core.transports._crt_watch import Watch
from s3torch.core.transports._http import common_headers
from s3torch.core.transports._requests import Request, get_headers, version_query
from s3torch.core.transports._uploads import Uploads

if TYPE_CHECKING:
    from concurrent.futures import Future

    from awscrt.s3 import S3Request

    from s3torch.core.models import (
        Credentials,
        GetResult,
    )
    from s3torch.core.protocols import TransportContext
    from s3torch.core.ranges import ByteRange

__all__ = ["CrtTransport", "s3torch_create_transport"]

T = TypeVar("T")


@hookimpl
def s3torch_create_transport(context: TransportContext) -> CrtTransport:
    """Creates the transport."""
    return CrtTransport(context)


class CrtTransport(Uploads):
    """Moves bytes with awscrt. The rules are those of ``s3torch.core.protocols``."""

    holds_parts = True

    def __init__(self, context: TransportContext) -> None:
        self._context = context
        self._runtime = CrtRuntime(context)
        self._live: set[CrtTransfer[Any]] = set()
        self._watch = Watch(context.config, self._live)
        self.attempts = context.config.attempts
        self.on_retry = context.on_retry
        self.closed = False

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
        exchange = GetExchange(byte_range, into)
        request = Request(
            "GetObject",
            "GET",
            bucket,
            key,
            exchange.finish,
            query=version_query(version_id),
            headers=get_headers(byte_range, if_match),
        )
        return self._start(request, exchange)

    def close(self) -> None:
        """Cancels what is in flight and lets go of the native clients."""
        self.closed = True
        for transfer in list(self._live):
            transfer.cancel()
        self._runtime.close()

    def _call(self, request: Request[T], body: memoryview | None = None) -> CrtTransfer[T]:
        return self._start(request, Exchange(request.finish, ignored=request.ignored), body)

    def _start(
        self, request: Request[T], exchange: Exchange[T], body: memoryview | None = None
    ) -> CrtTransfer[T]:
        if self.closed:
            raise ValueError("the transport is closed")
        transfer = CrtTransfer(request.operation, request.bucket, request.key, exchange, self._live, self)
        transfer.start(lambda: self._send(transfer, request, body))
        return transfer

    def renew(self, stale: Credentials | None, bucket: str) -> bool:
        """Fetches other credentials than these for a bucket; ``False`` if there are none."""
        return self._context.session.renew_credentials(stale, bucket)

    def _send(self, transfer: CrtTransfer[T], asked: Request[T], body: memoryview | None) -> S3Request:
        from awscrt.http import HttpHeaders, HttpRequest
        from awscrt.s3 import S3RequestType

        session = self._context.session
        endpoint = session.endpoint(transfer.bucket)
        transfer.host = endpoint.host
        transfer.credentials = session.credentials(transfer.bucket)
        path = endpoint.base_path + quote(asked.key, safe="/~") + (f"?{asked.query}" if asked.query else "")
        lines = [("Host", endpoint.host), ("User-Agent", self._context.user_agent), *asked.headers]
        lines += common_headers(self._context.config, transfer.operation)
        lines += self._runtime.session_headers(endpoint, transfer.credentials)
        if asked.method in {"PUT", "POST"}:
            lines.append(("Content-Length", str(len(body) if body is not None else 0)))
        if body:
            transfer.body = BodyStream(body)
        ranged = transfer.exchange.part_size is not None
        self._watch.begin(transfer, endpoint)
        request: S3Request = self._runtime.client(endpoint).make_request(
            type=S3RequestType.GET_OBJECT if ranged else S3RequestType.DEFAULT,
            operation_name=transfer.operation,
            request=HttpRequest(asked.method, path, HttpHeaders(lines), transfer.body),
            signing_config=self._runtime.signing_config(endpoint, transfer.credentials),
            # One request for this range, whatever the part size of the client is.
            part_size=transfer.exchange.part_size,
            on_headers=transfer.exchange.on_headers,
            on_body=transfer.exchange.on_body,
            on_done=transfer.on_done,
        )
        return request
