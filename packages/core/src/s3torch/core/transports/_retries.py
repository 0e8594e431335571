"""Which failures are tried again, and after how long; the same for every transport."""

from __future__ import annotations

import math
import random
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from s3torch.core.errors import (
    CertificateError,
    ConflictError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    ThrottledError,
    TruncatedError,
)
from s3torch.core.requests._request import FIRST_ERROR_STATUS

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.requests import Request
    from s3torch.core.seam import RetryListener, Transfer

_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 20.0
# Retry refused connections quickly, so that a wrong endpoint fails fast.
_MAX_CONNECTION_BACKOFF_SECONDS = 1.0
# S3 splits a range of keys that gets more requests than it serves, which takes minutes, so ten attempts have
# to reach so far. The first pauses are short, for a store that is busy only for a moment.
_THROTTLED_GROWTH = 4.0
_MAX_THROTTLED_BACKOFF_SECONDS = 90.0
# A client that is refused second after second begins with longer pauses, as if it had tried so much oftener.
# Thousands of ranks ask for more than a range of keys serves, if each of them pauses for a moment only.
_MORE_ATTEMPTS = 3
_FORGETS_PER_SECOND = 0.1
_BAD_REQUEST = 400
_RETRIED_STATUS = {500, 502, 504}
_RETRIED_ERRORS = (S3ConnectionError, S3TimeoutError, ThrottledError, TruncatedError)
# https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html: the same upload may succeed
# when it is made again; if the condition does not hold any more, that is refused with 412. For a completion
# S3 advises to upload the parts again, too; as long as it has them, to complete again is enough.
_RETRIED_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted"}
# How the CRT calls it; connections that break in the middle of a handshake have another name.
_DISTRUST = "AWS_IO_TLS_ERROR_NEGOTIATION_FAILURE"


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """What follows an attempt that failed.

    Attributes:
        action: ``"retry"`` sends the request again after ``seconds``, ``"renew"`` does so at once if
            ``session.renew_credentials`` finds other credentials, and ``"fail"`` ends the transfer with the
            error.
        seconds: The pause before the next attempt.
    """

    action: Literal["retry", "renew", "fail"]
    seconds: float = 0.0


class Throttling:
    """For how long a store has been refusing the requests of one client.

    Args:
        clock: Returns seconds; for simulations.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._level = 0.0
        self._before = 0.0
        self._at = -math.inf

    def refused(self) -> int:
        """Takes note of a refusal; returns by how many attempts the pauses are further on."""
        now = self._clock()
        passed = now - self._at
        # Those of one second count once, and not for each other.
        if passed >= 1:
            self._before = max(0.0, min(self._level, _MORE_ATTEMPTS + 1) - passed * _FORGETS_PER_SECOND)
            self._level, self._at = self._before + 1, now
        return min(round(self._before), _MORE_ATTEMPTS)


def decide_retry(
    error: S3Error,
    attempt: int,
    *,
    attempts: int,
    renewed: bool = False,
    resumable: bool = False,
    jitter: float | None = None,
    throttling: Throttling | None = None,
) -> RetryDecision:
    """Decides what follows an attempt that failed; a pure function but for the jitter.

    Args:
        error: Why it failed.
        attempt: Which one it was, from 1.
        attempts: How many may be made in all: ``config.attempts``.
        renewed: Whether the credentials of this request have been renewed already.
        resumable: Whether the transport can begin anew where the error is about what came before.
        jitter: From 0.5 to 1, which part of the longest pause to make; ``None`` takes a random one.
        throttling: What the client remembers of refusals; it takes note of this one.
    """
    if attempt >= attempts:
        return RetryDecision("fail")
    if error.has_expired_credentials or _is_refused_head(error):
        return RetryDecision("fail" if renewed else "renew")
    if not (may_succeed_now(error) or resumable):
        return RetryDecision("fail")
    if throttling is not None and isinstance(error, ThrottledError):
        attempt += throttling.refused()
    share = random.uniform(0.5, 1) if jitter is None else jitter  # noqa: S311 - This is jitter.
    return RetryDecision("retry", share * _longest_pause(error, attempt))


def _longest_pause(error: S3Error, attempt: int) -> float:
    growth, most = 2.0, _MAX_BACKOFF_SECONDS
    if isinstance(error, S3ConnectionError | TruncatedError):
        most = _MAX_CONNECTION_BACKOFF_SECONDS
    elif isinstance(error, ThrottledError):
        growth, most = _THROTTLED_GROWTH, _MAX_THROTTLED_BACKOFF_SECONDS
    return min(2 * _BACKOFF_SECONDS * growth ** min(attempt - 1, 20), most)


def _is_refused_head(error: S3Error) -> bool:
    """Whether a HEAD got the status that expired credentials get, and no code to tell, as it has no body."""
    return (
        type(error) is S3Error
        and (error.operation or "").startswith("Head")
        and (error.status, error.code) == (_BAD_REQUEST, None)
    )


def may_succeed_now(error: S3Error) -> bool:
    """Whether the same request may succeed when it is sent again."""
    if isinstance(error, CertificateError) or _is_distrust(error.__cause__):
        return False
    if isinstance(error, ServerError):
        # With a success, it is only the answer that was wrong.
        is_answered = error.status is not None and error.status < FIRST_ERROR_STATUS
        return (
            (is_answered and error.code is None)
            or error.status in _RETRIED_STATUS
            or error.code == "InternalError"
        )
    if isinstance(error, ConflictError):
        return error.code in _RETRIED_CONFLICTS
    return isinstance(error, _RETRIED_ERRORS)


def _is_distrust(cause: BaseException | None) -> bool:
    """Whether a certificate was refused, by whatever name a transport calls that."""
    return getattr(cause, "name", None) == _DISTRUST or isinstance(cause, ssl.SSLCertVerificationError)


def tell_retry(
    listener: RetryListener | None,
    request: Request[Any],
    transfer: Transfer[Any] | None,
    *,
    attempt: int,
    error: S3Error,
    seconds: float,
) -> None:
    """Tells that an attempt has failed and another follows.

    Args:
        listener: The ``on_retry`` of the transport's context.
        request: What was asked.
        transfer: The transfer that the transport has returned.
        attempt: Which one failed, from 1.
        error: Why.
        seconds: The pause before the next.
    """
    if listener is not None:
        request.locate(error)
        listener(
            operation=request.operation,
            bucket=request.bucket,
            key=request.key,
            attempt=attempt,
            error=error,
            seconds=seconds,
            transfer=transfer,
        )
