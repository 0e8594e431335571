"""What the ``http`` transport asks S3 besides GETs, and what an answer means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from s3torch.core.errors import S3Error, error_from_response
from s3torch.core.ranges import KIB, MIB
from s3torch.core.transports._http import xml_fields

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from s3torch.core.transports._http_connection import Connection
    from s3torch.core.transports._http_head import ResponseHead

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_MAX_ANSWER = 1 * MIB
# Before an error come white space that keeps the connection alive, and the XML declaration.
_ERROR_WITHIN = 64 * KIB


class Exchange(Protocol[T_co]):
    """A request that may take several attempts, and its answer."""

    operation: str
    method: str
    bucket: str
    key: str
    query: str

    def headers(self) -> Sequence[tuple[str, str]]:
        """Gives the headers of the next attempt."""
        ...

    def receive(self, answer: ResponseHead, connection: Connection, buffer: memoryview | None) -> T_co:
        """Receives the body of an answer that is no error, and makes the result."""
        ...

    def restarts(self, error: S3Error) -> bool:
        """Tells whether an attempt that has failed for good may be made anew nevertheless."""
        ...

    def recover(self, error: S3Error) -> T_co:
        """Makes a result of an error that means success, or raises it."""
        ...


class Call(Generic[T]):
    """A request with a short answer.

    Args:
        operation: The S3 operation.
        method: The HTTP method.
        bucket: The bucket.
        key: The key.
        finish: Makes the result of headers and body of the answer.
        query: What follows the ``?``, quoted and sorted.
        headers: The headers of the operation.
        ignored: An error that means that there is nothing to do.
    """

    def __init__(
        self,
        operation: str,
        method: str,
        bucket: str,
        key: str,
        finish: Callable[[dict[str, str], bytes], T],
        *,
        query: str = "",
        headers: Sequence[tuple[str, str]] = (),
        ignored: type[S3Error] | None = None,
    ) -> None:
        self.operation = operation
        self.method = method
        self.bucket = bucket
        self.key = key
        self.query = query
        self._finish = finish
        self._headers = headers
        self._ignored = ignored

    def headers(self) -> Sequence[tuple[str, str]]:
        """The same for each attempt."""
        return self._headers

    def receive(self, answer: ResponseHead, connection: Connection, buffer: memoryview | None) -> T:  # noqa: ARG002
        """Receives the body; S3 may find only while it answers that a completion fails."""
        body = connection.body(answer, _MAX_ANSWER)
        if b"<Error" in body[:_ERROR_WITHIN]:
            raise refusal(self, answer, body)
        return self._finish(answer.headers, body)

    def restarts(self, error: S3Error) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def recover(self, error: S3Error) -> T:
        """Makes a result of an error that is ignored."""
        if self._ignored is not None and isinstance(error, self._ignored):
            return self._finish({}, b"")
        raise error


def refusal(exchange: Exchange[Any], answer: ResponseHead, body: bytes) -> S3Error:
    """Makes the error of an answer that tells one."""
    fields = xml_fields(body.strip())
    return error_from_response(
        operation=exchange.operation,
        bucket=exchange.bucket,
        key=exchange.key,
        status=answer.status,
        code=fields.get("Code"),
        message=fields.get("Message"),
        request_id=answer.headers.get("x-amz-request-id"),
        host_id=answer.headers.get("x-amz-id-2"),
        region=answer.headers.get("x-amz-bucket-region") or fields.get("Region"),
    )
