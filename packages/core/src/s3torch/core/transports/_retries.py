"""Which failures are tried again, and after how long; the same for every transport that speaks HTTP."""

from __future__ import annotations

import random
import ssl
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import (
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    ThrottledError,
    TruncatedError,
)

if TYPE_CHECKING:
    from s3torch.core.protocols import RetryListener

_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 20.0
# A server that is not there needs no mercy, and whoever mistyped its address should soon know.
_MAX_CONNECTION_BACKOFF_SECONDS = 1.0
_RETRIED_STATUS = {500, 502, 504}
_RETRIED_ERRORS = (S3ConnectionError, S3TimeoutError, ThrottledError, TruncatedError)
# How the CRT calls it; connections that break in the middle of a handshake have another name.
_DISTRUST = "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE"
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}


def may_succeed_now(error: S3Error) -> bool:
    """Tells whether the same request may succeed when it is sent again."""
    if _is_distrust(error.__cause__):
        return False
    if isinstance(error, ServerError):
        return error.status in _RETRIED_STATUS or error.code == "InternalError"
    return isinstance(error, _RETRIED_ERRORS)


def _is_distrust(cause: BaseException | None) -> bool:
    """Tells whether a certificate was refused, which the CRT does after up to 30 seconds each time."""
    return getattr(cause, "name", None) == _DISTRUST or isinstance(cause, ssl.SSLCertVerificationError)


def has_expired(error: S3Error) -> bool:
    """Tells whether S3 refused the credentials because their time is over."""
    return error.code in _EXPIRED


def backoff(tries: int, error: S3Error) -> float:
    """Gives the seconds to wait after so many tries, with jitter."""
    quick = isinstance(error, S3ConnectionError | TruncatedError)
    most = _MAX_CONNECTION_BACKOFF_SECONDS if quick else _MAX_BACKOFF_SECONDS
    longest = min(_BACKOFF_SECONDS * 2.0 ** min(tries, 20), most)
    return random.uniform(0.5, 1) * longest  # noqa: S311 - This is jitter.


def tell_retry(
    listener: RetryListener | None, transfer: Any, *, attempt: int, error: S3Error, seconds: float
) -> None:
    """Tells that an attempt has failed and another follows.

    Args:
        listener: The ``on_retry`` of the transport's context.
        transfer: The transfer that the transport has returned, with ``operation``, ``bucket`` and ``key``.
        attempt: Which one failed, from 1.
        error: Why.
        seconds: The pause before the next.
    """
    if listener is not None:
        listener(
            operation=transfer.operation,
            bucket=transfer.bucket,
            key=transfer.key,
            attempt=attempt,
            error=error,
            seconds=seconds,
            transfer=transfer,
        )
