"""The default transport: the AWS Common Runtime (awscrt).

Facts about awscrt that this module rests on, checked on 0.38:

* A ranged ``GET_OBJECT`` no larger than the client's part size is exactly one HTTP request, with pooled
  part buffers; ``DEFAULT`` grows its buffer and costs half as much CPU time again.
* ``on_body`` gets the offset in the object, not in the range, on a thread of the CRT.
* The native error objects cannot be unpickled, so they never leave this module but as ``__cause__``.
* Of an answer nothing is told before its end, so time-outs are for whole answers (``_watch``).
* ``finished_future`` is set before ``on_done`` runs; ``on_done`` is what this module listens to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core.plugins.hookspecs import hookimpl
from s3torch.core.requests import body_of, request_headers, request_target
from s3torch.core.transports.crt._runtime import CrtRuntime
from s3torch.core.transports.crt._transfer import CrtTransfer
from s3torch.core.transports.crt._watch import Watch

if TYPE_CHECKING:
    from awscrt.s3 import S3Request

    from s3torch.core.models import Credentials
    from s3torch.core.requests import Request
    from s3torch.core.seam import TransportContext

T = TypeVar("T")


@hookimpl
def s3torch_create_transport(context: TransportContext) -> CrtTransport:
    """Creates the transport."""
    return CrtTransport(context)


class CrtTransport:
    """Moves bytes with awscrt. The rules are those of ``s3torch.core.seam``."""

    buffers_parts = True

    def __init__(self, context: TransportContext) -> None:
        self._context = context
        self._runtime = CrtRuntime(context)
        self._live: set[CrtTransfer[Any]] = set()
        self._watch = Watch(context.config, self._live)
        self.attempts = context.config.attempts
        self.on_retry = context.on_retry
        self.closed = False

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> CrtTransfer[T]:
        """Starts a request."""
        if self.closed:
            raise ValueError("the transport is closed")
        transfer = CrtTransfer(request, body_of(request, body), into, self._live, self)
        transfer.start(lambda: self._send(transfer))
        return transfer

    def close(self) -> None:
        """Cancels what is in flight and lets go of the native clients."""
        self.closed = True
        for transfer in list(self._live):
            transfer.cancel()
        self._runtime.close()

    def renew(self, stale: Credentials | None, bucket: str) -> bool:
        """Fetches other credentials than these for a bucket; ``False`` if there are none."""
        return self._context.session.renew_credentials(stale, bucket)

    def _send(self, transfer: CrtTransfer[Any]) -> S3Request:
        from awscrt.http import HttpHeaders, HttpRequest
        from awscrt.s3 import S3RequestType

        session, request, receiver = self._context.session, transfer.request, transfer.receiver
        endpoint = session.endpoint(request.bucket)
        transfer.host = endpoint.host
        transfer.credentials = session.credentials(request.bucket)
        body = transfer.body.body if transfer.body is not None else None
        headers = request_headers(request, self._context, endpoint, body=body)
        headers += self._runtime.session_headers(endpoint, transfer.credentials)
        ranged = receiver.part_size is not None
        self._watch.begin(transfer, endpoint)
        native: S3Request = self._runtime.client(endpoint).make_request(
            type=S3RequestType.GET_OBJECT if ranged else S3RequestType.DEFAULT,
            operation_name=request.operation,
            request=HttpRequest(
                request.method, request_target(request, endpoint), HttpHeaders(headers), transfer.body
            ),
            signing_config=self._runtime.signing_config(endpoint, transfer.credentials),
            # One request for this range, whatever the part size of the client is.
            part_size=receiver.part_size,
            on_headers=receiver.on_headers,
            on_body=receiver.on_body,
            on_done=transfer.on_done,
        )
        return native
