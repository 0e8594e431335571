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

from s3torch.core.config import checksum_type
from s3torch.core.errors import NotFoundError, S3Error
from s3torch.core.models import CompletedPart, MultipartUpload, PutResult
from s3torch.core.plugins.hookspecs import hookimpl
from s3torch.core.transports._crt_exchange import BodyStream, Exchange, GetExchange
from s3torch.core.transports._crt_runtime import CrtRuntime
from s3torch.core.transports._crt_transfer import CrtTransfer
from s3torch.core.transports._crt_watch import Watch
from s3torch.core.transports._http import (
    checksum_header,
    common_headers,
    complete_body,
    condition_headers,
    put_headers,
    xml_fields,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from awscrt.s3 import S3Request

    from s3torch.core.models import Credentials, GetResult, PutOptions
    from s3torch.core.protocols import TransportContext
    from s3torch.core.ranges import ByteRange

__all__ = ["CrtTransport", "s3torch_create_transport"]

T = TypeVar("T")


@hookimpl
def s3torch_create_transport(context: TransportContext) -> CrtTransport:
    """Creates the transport."""
    return CrtTransport(context)


class CrtTransport:
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
        headers = []
        if byte_range is not None:
            headers.append(("Range", byte_range.header))
        if byte_range is None or not byte_range.start:
            # The range may turn out to be the whole object.
            headers.append(("x-amz-checksum-mode", "ENABLED"))
        if if_match is not None:
            headers.append(("If-Match", if_match))
        query = f"versionId={quote(version_id, safe='')}" if version_id is not None else ""
        return self._start("GetObject", "GET", bucket, key, exchange, query=query, headers=headers)

    def put(
        self,
        bucket: str,
        key: str,
        body: memoryview,
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Future[PutResult]:
        """Starts one PutObject request."""
        headers = [*put_headers(options), *condition_headers(options), *_checksum(checksum)]
        exchange = Exchange(_put_result)
        return self._start("PutObject", "PUT", bucket, key, exchange, headers=headers, body=body)

    def create_multipart_upload(
        self, bucket: str, key: str, *, options: PutOptions, checksum_algorithm: str | None = None
    ) -> Future[MultipartUpload]:
        """Starts a CreateMultipartUpload request."""

        def finish(_: dict[str, str], body: bytes) -> MultipartUpload:
            upload_id = xml_fields(body).get("UploadId")
            if not upload_id:
                raise S3Error("the answer names no upload id")
            return MultipartUpload(bucket, key, upload_id)

        headers = put_headers(options)
        if checksum_algorithm is not None:
            headers.append(("x-amz-checksum-algorithm", checksum_algorithm))
            headers.append(("x-amz-checksum-type", checksum_type(checksum_algorithm)))
        return self._start(
            "CreateMultipartUpload",
            "POST",
            bucket,
            key,
            Exchange(finish),
            query="uploads=",
            headers=headers,
        )

    def upload_part(
        self,
        upload: MultipartUpload,
        number: int,
        body: memoryview,
        *,
        checksum: tuple[str, str] | None = None,
    ) -> Future[CompletedPart]:
        """Starts one UploadPart request."""

        def finish(headers: dict[str, str], _: bytes) -> CompletedPart:
            return CompletedPart(number, headers.get("etag", ""), checksum and checksum[1])

        return self._start(
            "UploadPart",
            "PUT",
            upload.bucket,
            upload.key,
            Exchange(finish),
            query=f"partNumber={number}&uploadId={quote(upload.upload_id, safe='')}",
            headers=_checksum(checksum),
            body=body,
        )

    def complete_multipart_upload(
        self,
        upload: MultipartUpload,
        parts: Sequence[CompletedPart],
        *,
        options: PutOptions,
        checksum: tuple[str, str] | None = None,
    ) -> Future[PutResult]:
        """Starts a CompleteMultipartUpload request."""
        headers = [*condition_headers(options), *_checksum(checksum)]
        if checksum is not None:
            headers.append(("x-amz-checksum-type", checksum_type(checksum[0])))
        return self._start(
            "CompleteMultipartUpload",
            "POST",
            upload.bucket,
            upload.key,
            Exchange(_put_result),
            query=f"uploadId={quote(upload.upload_id, safe='')}",
            headers=headers,
            body=memoryview(complete_body(parts, checksum and checksum[0])),
        )

    def abort_multipart_upload(self, upload: MultipartUpload) -> Future[None]:
        """Starts an AbortMultipartUpload request."""
        exchange: Exchange[None] = Exchange(lambda _headers, _body: None, ignored=NotFoundError)
        return self._start(
            "AbortMultipartUpload",
            "DELETE",
            upload.bucket,
            upload.key,
            exchange,
            query=f"uploadId={quote(upload.upload_id, safe='')}",
        )

    def close(self) -> None:
        """Cancels what is in flight and lets go of the native clients."""
        self.closed = True
        for transfer in list(self._live):
            transfer.cancel()
        self._runtime.close()

    def _start(
        self,
        operation: str,
        method: str,
        bucket: str,
        key: str,
        exchange: Exchange[T],
        *,
        query: str = "",
        headers: Sequence[tuple[str, str]] = (),
        body: memoryview | None = None,
    ) -> CrtTransfer[T]:
        if self.closed:
            raise ValueError("the transport is closed")
        transfer = CrtTransfer(operation, bucket, key, exchange, self._live, self)
        transfer.start(lambda: self._send(transfer, method, query, headers, body))
        return transfer

    def renew(self, stale: Credentials | None, bucket: str) -> bool:
        """Fetches other credentials than these for a bucket; ``False`` if there are none."""
        return self._context.session.renew_credentials(stale, bucket)

    def _send(
        self,
        transfer: CrtTransfer[T],
        method: str,
        query: str,
        headers: Sequence[tuple[str, str]],
        body: memoryview | None,
    ) -> S3Request:
        from awscrt.http import HttpHeaders, HttpRequest
        from awscrt.s3 import S3RequestType

        session = self._context.session
        endpoint = session.endpoint(transfer.bucket)
        transfer.host = endpoint.host
        transfer.credentials = session.credentials(transfer.bucket)
        path = endpoint.base_path + quote(transfer.key, safe="/~") + (f"?{query}" if query else "")
        lines = [("Host", endpoint.host), ("User-Agent", self._context.user_agent), *headers]
        lines += common_headers(self._context.config, transfer.operation)
        lines += self._runtime.session_headers(endpoint, transfer.credentials)
        if method in {"PUT", "POST"}:
            lines.append(("Content-Length", str(len(body) if body is not None else 0)))
        if body:
            transfer.body = BodyStream(body)
        ranged = transfer.exchange.part_size is not None
        self._watch.begin(transfer)
        request: S3Request = self._runtime.client(endpoint).make_request(
            type=S3RequestType.GET_OBJECT if ranged else S3RequestType.DEFAULT,
            operation_name=transfer.operation,
            request=HttpRequest(method, path, HttpHeaders(lines), transfer.body),
            signing_config=self._runtime.signing_config(endpoint, transfer.credentials),
            # One request for this range, whatever the part size of the client is.
            part_size=transfer.exchange.part_size,
            on_headers=transfer.exchange.on_headers,
            on_body=transfer.exchange.on_body,
            on_done=transfer.on_done,
        )
        return request


def _checksum(checksum: tuple[str, str] | None) -> list[tuple[str, str]]:
    return [] if checksum is None else [(checksum_header(checksum[0]), checksum[1])]


def _put_result(headers: dict[str, str], body: bytes) -> PutResult:
    etag = headers.get("etag") or xml_fields(body).get("ETag", "")
    return PutResult(etag, headers.get("x-amz-version-id"))
