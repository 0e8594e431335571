"""The keys of directory buckets (S3 Express One Zone): one session for each bucket, renewed before it ends.

All requests to a bucket are signed with the same session, so that a process asks for one per bucket and five
minutes.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import (
    ConfigurationError,
    NoCredentialsError,
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    ServerError,
    bare_cause,
    error_from_response,
)
from s3torch.core.models import Credentials, SecretText

if TYPE_CHECKING:
    from collections.abc import Callable


# A session lives for 300 seconds. Within the first of these before its end one thread fetches the next while
# the others go on; within the second all wait for it.
_SHOULD_RENEW_SECONDS = 60
_MUST_RENEW_SECONDS = 10
_RETRY_SECONDS = 15

_NO_CREDENTIALS = (
    "no credentials found in environment variables, the AWS files, web identity, container or instance "
    "metadata; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a profile, "
    "or use unsigned=True for public data"
)

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Slot:
    """The session of one bucket."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: Credentials | None = None
    # When renewing in advance makes sense again after it failed, by the monotonic clock.
    next_try: float = 0.0


class BucketSessions:
    """The sessions of one client in one process; may be shared by threads.

    Args:
        create: Sends one CreateSession request for a bucket and returns the keys, with their end.
    """

    def __init__(self, create: Callable[[str], Credentials]) -> None:
        self._create = create
        self._slots: dict[str, _Slot] = {}

    def credentials(self, bucket: str) -> Credentials:
        """Returns keys for a bucket that are valid now."""
        slot = self._slots.setdefault(bucket, _Slot())
        keys = slot.keys
        if keys is None or _seconds_left(keys) <= _MUST_RENEW_SECONDS:
            with slot.lock:
                if slot.keys is keys or slot.keys is None:
                    slot.keys = self._create(bucket)
                return slot.keys
        if _seconds_left(keys) <= _SHOULD_RENEW_SECONDS and slot.lock.acquire(blocking=False):
            try:
                self._renew_in_advance(bucket, slot, keys)
            finally:
                slot.lock.release()
        return slot.keys or keys

    def renew(self, bucket: str, stale: Credentials) -> bool:
        """Begins another session in place of one that S3 has refused; tells whether there is another now."""
        slot = self._slots.setdefault(bucket, _Slot())
        with slot.lock:
            if slot.keys is None or slot.keys == stale:
                slot.keys = self._create(bucket)
            return slot.keys != stale

    def _renew_in_advance(self, bucket: str, slot: _Slot, ending: Credentials) -> None:
        if slot.keys is not ending or time.monotonic() < slot.next_try:
            return
        try:
            slot.keys = self._create(bucket)
        except S3Error as exc:
            slot.next_try = time.monotonic() + _RETRY_SECONDS
            _log.debug("the session with %s was not renewed and is used until it expires: %s", bucket, exc)


def _seconds_left(keys: Credentials) -> float:
    return 0.0 if keys.expires_at is None else (keys.expires_at - datetime.now(UTC)).total_seconds()


def create_session(client: Any, bucket: str) -> Credentials:
    """Sends one CreateSession request with a boto3 client, which knows how it is signed and retried."""
    try:
        told = client.create_session(Bucket=bucket).get("Credentials", {})
    except Exception as exc:  # noqa: BLE001 - It is raised as one of ours.
        raise error_from_boto(exc, operation="CreateSession", bucket=bucket) from bare_cause(exc)
    for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"):
        if not told.get(name):
            text = f"the answer has no {name}; is this a directory bucket of S3?"
            raise ServerError(text, operation="CreateSession", bucket=bucket)
        if name != "Expiration":
            told[name] = SecretText(told[name])
    return Credentials(told["AccessKeyId"], told["SecretAccessKey"], told["SessionToken"], told["Expiration"])


def error_from_boto(exc: Exception, *, operation: str, bucket: str, key: str | None = None) -> S3Error:
    """Makes our error of an exception that a call of the boto3 client raised.

    Args:
        exc: The exception; becomes the cause of the result.
        operation: The S3 operation, as in ``"GetObject"``.
        bucket: The bucket that was asked.
        key: The key that was asked for, if any.
    """
    from botocore.exceptions import ClientError

    about: dict[str, Any] = {"operation": operation, "bucket": bucket, "key": key}
    if isinstance(exc, S3Error):
        if exc.bucket is None:
            exc.operation, exc.bucket, exc.key = operation, bucket, key
        return exc
    if isinstance(exc, ClientError):
        error = _from_answer(exc, operation=operation, bucket=bucket, key=key)
    elif isinstance(exc, _no_credentials()):
        text = _NO_CREDENTIALS if type(exc).__name__ == "NoCredentialsError" else str(exc)
        error = NoCredentialsError(text, **about)
    else:
        error = _without_answer(exc)(str(exc) or type(exc).__name__, **about)
    error.__cause__ = exc
    return error


def _no_credentials() -> tuple[type[Exception], ...]:
    """Lists what botocore raises where there are no credentials to sign with."""
    from botocore import exceptions as boto

    return (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.TokenRetrievalError,
        boto.NoAuthTokenError,
        boto.SSOError,
        boto.MetadataRetrievalError,
    )


def _from_answer(exc: Any, *, operation: str, bucket: str, key: str | None) -> S3Error:
    told = exc.response.get("Error", {})
    answer = exc.response.get("ResponseMetadata", {})
    headers = answer.get("HTTPHeaders", {})
    status = answer.get("HTTPStatusCode")
    code = told.get("Code")
    # Where the answer has no body, botocore puts the status and its standard text there.
    described = bool(code) and code != str(status)
    error = error_from_response(
        operation=operation,
        bucket=bucket,
        key=key,
        status=status,
        code=code if described else None,
        message=told.get("Message") if described else None,
        request_id=answer.get("RequestId") or headers.get("x-amz-request-id"),
        host_id=answer.get("HostId") or headers.get("x-amz-id-2"),
        region=headers.get("x-amz-bucket-region") or told.get("Region"),
        location=headers.get("location") or told.get("Endpoint"),
    )
    if "RetryAttempts" in answer:
        error.attempts = answer["RetryAttempts"] + 1
    return error


def _without_answer(exc: Exception) -> type[S3Error]:
    from botocore import exceptions as boto

    if isinstance(exc, boto.ReadTimeoutError | boto.ConnectTimeoutError | TimeoutError):
        return S3TimeoutError
    if isinstance(exc, boto.HTTPClientError | boto.ConnectionError | OSError):
        return S3ConnectionError
    # What is left never reached the network: parameters, endpoints, settings.
    return ConfigurationError if isinstance(exc, boto.BotoCoreError | ValueError) else S3Error
