"""What botocore tries again by itself: counted, and told as it happens."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import S3Error
from s3torch.core.transports._boto_errors import error_from_boto
from s3torch.core.transports._retries import tell_retry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.core.protocols import RetryListener


@dataclass(slots=True)
class _Call:
    """One call of a boto3 client."""

    operation: str
    bucket: str
    key: str
    sent: int = 0
    failure: S3Error | None = None


class BotoRetries:
    """Counts the attempts of calls of boto3 clients that wait for their answer, and tells of retries.

    Args:
        on_retry: Who is told; ``None`` for nobody.
    """

    def __init__(self, on_retry: RetryListener | None) -> None:
        self._on_retry = on_retry
        self._current = threading.local()

    def watch(self, client: Any) -> None:
        """Listens to the events of a client, for as long as it lives."""
        client.meta.events.register("before-send.s3", self._before_send)
        if self._on_retry is not None:
            client.meta.events.register_first("needs-retry.s3", self._after_try)

    @contextmanager
    def call(self, operation: str, bucket: str, key: str | None) -> Iterator[None]:
        """Says what this thread is about to ask; errors then tell how often it was sent."""
        self._current.call = call = _Call(operation, bucket, key or "")
        try:
            yield
        except S3Error as error:
            error.attempts = call.sent or None
            raise
        finally:
            self._current.call = None

    def _before_send(self, event_name: str, **_: Any) -> None:
        call = getattr(self._current, "call", None)
        # Directory buckets have their sessions begun in between.
        if call is None or not event_name.endswith(f".{call.operation}"):
            return
        if call.failure is not None:
            # botocore has made its pause already.
            tell_retry(self._on_retry, call, attempt=call.sent, error=call.failure, seconds=0)
            call.failure = None
        call.sent += 1

    def _after_try(self, response: Any, caught_exception: Exception | None, **_: Any) -> None:
        call = getattr(self._current, "call", None)
        if call is not None:
            call.failure = failure_of_try(
                response, caught_exception, operation=call.operation, bucket=call.bucket, key=call.key
            )


def failure_of_try(
    response: Any, caught_exception: Exception | None, *, operation: str, bucket: str, key: str
) -> S3Error | None:
    """Makes an error of what botocore got for one try, as its event ``needs-retry`` tells it.

    Args:
        response: The response and what was read from it; ``None`` if there is none.
        caught_exception: What was raised instead.
        operation: The S3 operation.
        bucket: The bucket.
        key: The key.

    Returns:
        ``None`` where the response was good.
    """
    from botocore.exceptions import ClientError

    exc = caught_exception
    if exc is None:
        if response is None or response[0].status_code < 300:
            return None
        exc = ClientError(response[1], operation)
    return error_from_boto(exc, operation=operation, bucket=bucket, key=key)
