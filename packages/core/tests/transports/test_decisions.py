"""What follows an attempt that failed, as a pure function."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3torch.core import S3ClientConfig, errors
from s3torch.core.errors import (
    CertificateError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    ThrottledError,
    TruncatedError,
    error_from_response,
)
from s3torch.core.requests import get_object
from s3torch.core.transports import RetryDecision, decide_retry
from s3torch.core.transports._retries import Throttling, may_succeed_now, tell_retry

RETRIED = {S3ConnectionError, S3TimeoutError, ThrottledError, TruncatedError}
EVERY_CLASS = [
    cls
    for name in errors.__all__
    if isinstance(cls := getattr(errors, name), type) and issubclass(cls, S3Error)
]
FAIL = RetryDecision("fail")


def answer(status, code=None):
    return error_from_response(operation="GetObject", bucket="b", key="k", status=status, code=code)


@pytest.mark.parametrize("cls", EVERY_CLASS, ids=lambda cls: cls.__name__)
def test_each_class_is_tried_again_or_not(cls):
    action = decide_retry(cls(), 1, attempts=3).action
    passes = issubclass(cls, tuple(RETRIED)) and cls is not CertificateError
    assert action == ("retry" if passes else "fail")


@pytest.mark.parametrize(
    ("status", "code", "action"),
    [
        (500, "InternalError", "retry"),
        (500, None, "retry"),
        (502, "BadGateway", "retry"),
        (504, None, "retry"),
        (200, "InternalError", "retry"),
        (503, "SlowDown", "retry"),
        (503, None, "retry"),
        (429, None, "retry"),
        (400, "RequestTimeout", "retry"),
        (408, None, "retry"),
        (501, "NotImplemented", "fail"),
        (505, None, "fail"),
        (400, "InvalidRequest", "fail"),
        (403, "AccessDenied", "fail"),
        (404, "NoSuchKey", "fail"),
        (404, "NoSuchUpload", "fail"),
        (409, "ConditionalRequestConflict", "retry"),
        (409, "OperationAborted", "retry"),
        (409, "BucketNotEmpty", "fail"),
        (409, None, "fail"),
        (200, None, "retry"),
        (412, "PreconditionFailed", "fail"),
        (416, "InvalidRange", "fail"),
        (301, "PermanentRedirect", "fail"),
        (400, "BadDigest", "fail"),
    ],
)
def test_answers_of_s3(status, code, action):
    assert decide_retry(answer(status, code), 1, attempts=3).action == action
    assert decide_retry(answer(status, code), 3, attempts=3) == FAIL


@pytest.mark.parametrize("error", [cls() for cls in sorted(RETRIED, key=str)], ids=lambda e: type(e).__name__)
@given(attempts=st.integers(1, 50), attempt=st.integers(1, 60), jitter=st.floats(0.5, 1))
def test_attempts_are_bounded_and_pauses_grow(error, attempts, attempt, jitter):
    decision = decide_retry(error, attempt, attempts=attempts, jitter=jitter)
    if attempt >= attempts:
        assert decision == FAIL
        return
    quick = isinstance(error, S3ConnectionError | TruncatedError)
    if isinstance(error, ThrottledError):
        longest = min(0.2 * 4 ** (attempt - 1), 90.0)
    else:
        longest = min(0.1 * 2**attempt, 1.0 if quick else 20.0)
    assert decision == RetryDecision("retry", jitter * longest)
    for _ in range(5):
        assert longest / 2 <= decide_retry(error, attempt, attempts=attempts).seconds <= longest


def test_a_store_that_is_throttling_is_asked_for_minutes():
    """S3 splits a range of keys under lasting load, which takes minutes, and refuses requests until then."""
    attempts = range(1, S3ClientConfig().max_attempts)
    pauses = [decide_retry(ThrottledError(), n, attempts=10, jitter=0.75).seconds for n in attempts]
    assert sum(pauses) > 300
    assert sum(pauses[:2]) < 1


def test_a_client_that_is_refused_second_after_second_pauses_longer():
    """Else thousands of ranks ask for more than a range of keys serves, between pauses of a moment."""
    now = 0.0
    throttling = Throttling(clock=lambda: now)

    def pause(at, error=None):
        nonlocal now
        now = at
        error = error or ThrottledError()
        return decide_retry(error, 1, attempts=10, jitter=1, throttling=throttling).seconds

    assert [pause(at) for at in (0, 0.5, 0.9)] == [0.2] * 3
    assert [round(pause(at), 1) for at in (1, 2, 3, 4, 5)] == [0.8, 3.2, 12.8, 12.8, 12.8]
    # It is forgotten within a minute; what is busy once in a while is asked again at once.
    assert [round(pause(at), 1) for at in (60, 90, 120)] == [0.2] * 3
    assert pause(120, ServerError(status=500)) == 0.2


@pytest.mark.parametrize("code", ["ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"])
def test_expired_credentials_are_renewed_once_and_at_once(code):
    error = answer(400, code)
    assert decide_retry(error, 1, attempts=3) == RetryDecision("renew", 0)
    assert decide_retry(error, 2, attempts=3, renewed=True) == FAIL
    assert decide_retry(error, 3, attempts=3) == FAIL
    # What else fails after that is tried again as ever.
    assert decide_retry(ThrottledError(), 2, attempts=3, renewed=True).action == "retry"


def test_a_bare_400_for_a_head_may_mean_expired_credentials():
    error = error_from_response(operation="HeadObject", bucket="b", key="k", status=400)
    assert decide_retry(error, 1, attempts=3) == RetryDecision("renew", 0)
    assert decide_retry(error, 2, attempts=3, renewed=True) == FAIL
    elsewhere = error_from_response(operation="HeadObject", bucket="b", key="k", status=400, region="r")
    assert decide_retry(elsewhere, 1, attempts=3) == FAIL


def test_a_transport_that_can_begin_anew_may():
    error = answer(412, "PreconditionFailed")
    assert decide_retry(error, 1, attempts=2) == FAIL
    assert decide_retry(error, 1, attempts=2, resumable=True).action == "retry"
    assert decide_retry(error, 2, attempts=2, resumable=True) == FAIL


def test_a_certificate_that_was_refused_is_not_asked_for_again():
    error = S3ConnectionError("no trust")
    assert may_succeed_now(error)
    error.__cause__ = ssl.SSLCertVerificationError("self-signed")
    assert not may_succeed_now(error)
    error.__cause__ = ssl.SSLError("broken handshake")
    assert may_succeed_now(error)


def test_listeners_are_told_where_it_was():
    told = []
    request, error, transfer = get_object("bucket", "key"), ThrottledError(), object()
    tell_retry(None, request, None, attempt=1, error=error, seconds=0)
    assert error.bucket is None
    tell_retry(lambda **facts: told.append(facts), request, transfer, attempt=2, error=error, seconds=0.5)
    assert told == [
        {
            "operation": "GetObject",
            "bucket": "bucket",
            "key": "key",
            "attempt": 2,
            "error": error,
            "seconds": 0.5,
            "transfer": transfer,
        }
    ]
    assert (error.operation, error.bucket, error.key) == ("GetObject", "bucket", "key")
