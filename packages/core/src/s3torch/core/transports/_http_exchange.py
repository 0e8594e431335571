"""What the ``http`` transport asks S3 besides GETs, and what an answer means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from s3torch.core.ranges import KIB, MIB
from s3torch.core.transports._requests import error_of_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from s3torch.core.errors import S3Error
    from s3torch.core.transports._http_connection import Connection
    from s3torch.core.transports._http_head import ResponseHead
    from s3torch.core.transports._requests import Request

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
        request: What is sent, and what its answer means.
    """

    def __init__(self, request: Request[T]) -> None:
        self.operation = request.operation
        self.method = request.method
        self.bucket = request.bucket
        self.key = request.key
        self.query = request.query
        self._request = request

    def headers(self) -> Sequence[tuple[str, str]]:
        """The same for each attempt."""
        return self._request.headers

    def receive(self, answer: ResponseHead, connection: Connection, buffer: memoryview | None) -> T:  # noqa: ARG002
        """Receives the body; S3 may find only while it answers that a completion fails."""
        body = connection.body(answer, _MAX_ANSWER)
        if b"<Error" in body[:_ERROR_WITHIN]:
            raise refusal(self, answer, body)
        return self._request.finish(answer.headers, body)

    def restarts(self, error: S3Error) -> bool:  # noqa: ARG002
        """Never."""
        return False

    def recover(self, error: S3Error) -> T:
        """Makes a result of an error that is ignored."""
        return self._request.recover(error)


def refusal(exchange: Exchange[Any], answer: ResponseHead, body: bytes) -> S3Error:
    """Makes the error of an answer that tells one."""
    return error_of_answer(
        operation=exchange.operation,
        bucket=exchange.bucket,
        key=exchange.key,
        status=answer.status,
        headers=answer.headers,
        body=body,
    )
