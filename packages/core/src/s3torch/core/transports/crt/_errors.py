"""What the errors of awscrt mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from s3torch.core.errors import (
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    TransferCancelledError,
    TruncatedError,
    error_from_response,
)
from s3torch.core.requests import Answer

if TYPE_CHECKING:
    from s3torch.core.requests import Request

# Errors that come without a response after the last attempt, by the name that the CRT gives them.
_STATUS_BY_NAME = {
    "AWS_ERROR_S3_SLOW_DOWN": (503, "SlowDown"),
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "InternalError"),
    "AWS_ERROR_S3_REQUEST_TIMEOUT": (400, "RequestTimeout"),
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
}
_CANCELLED = {"AWS_ERROR_S3_CANCELED", "AWS_ERROR_S3_PAUSED"}
# Answers that have other bytes than were asked for; the CRT keeps what they were to itself.
NO_RANGE = "AWS_ERROR_S3_MISSING_CONTENT_RANGE_HEADER"
NO_ETAG = "AWS_ERROR_S3_MISSING_ETAG"
_TRUNCATED = {
    NO_RANGE: "the store answered a request for a range without a range",
    "AWS_ERROR_S3_INVALID_CONTENT_RANGE_HEADER": "the store answered with another range than was asked for",
    "AWS_ERROR_DEST_COPY_TOO_SMALL": "the body is longer than what was asked for",
}
_TIMEOUTS = {
    "AWS_IO_SOCKET_TIMEOUT",
    "AWS_ERROR_HTTP_CHANNEL_THROUGHPUT_FAILURE",
    "AWS_ERROR_HTTP_RESPONSE_FIRST_BYTE_TIMEOUT",
}


def error_of(
    request: Request[Any],
    error: Exception,
    headers: list[tuple[str, str]] | None,
    body: bytes | None,
    status: int | None,
    *,
    host: str,
    late: bool,
) -> S3Error:
    """Makes the error of an attempt that the CRT calls a failure; the arguments are those of its ``on_done``.

    Args:
        request: What was asked.
        error: The native error.
        headers: The headers of the answer, if there was one.
        body: Its body.
        status: Its status.
        host: Who was asked.
        late: Whether the attempt was given up because nothing came in time.
    """
    if isinstance(error, S3Error):
        return error
    name = getattr(error, "name", type(error).__name__)
    if status is not None:
        return request.error(Answer(status, {key.lower(): value for key, value in headers or ()}, body))
    if name in _STATUS_BY_NAME:
        known_status, code = _STATUS_BY_NAME[name]
        return error_from_response(
            operation=request.operation,
            bucket=request.bucket,
            key=request.key or None,
            status=known_status,
            code=code,
        )
    if late:
        return S3TimeoutError(f"no answer from {host} in time")
    if name in _CANCELLED:
        return TransferCancelledError("the transfer was cancelled")
    if name in _TRUNCATED:
        return TruncatedError(_TRUNCATED[name])
    text = f"{host}: {getattr(error, 'message', None) or str(error)} ({name})"
    kind = S3TimeoutError if name in _TIMEOUTS else S3ConnectionError
    return kind(text)
