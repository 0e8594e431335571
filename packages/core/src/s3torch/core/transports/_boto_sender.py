"""How the ``boto`` transport sends: tries that are counted over botocore's own."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core.transports._boto_body import BodyStream
from s3torch.core.transports._boto_errors import error_from_boto
from s3torch.core.transports._boto_retries import failure_of_try
from s3torch.core.transports._retries import backoff, has_expired, may_succeed_now, tell_retry

if TYPE_CHECKING:
    from collections.abc import Callable

    from s3torch.core.errors import S3Error
    from s3torch.core.models import Credentials
    from s3torch.core.protocols import TransportContext
    from s3torch.core.transports._pool import PooledTransfer

T = TypeVar("T")


class _Spent(BaseException):
    """All tries are used up; the error of the last one stands."""


class _Current(threading.local):
    """What the thread is sending, for the events of the boto3 client."""

    transfer: PooledTransfer[Any] | None = None
    sent: int = 0
    credentials: Credentials | None = None
    failed: bool = False
    # What came back for the last try of a call that botocore may make again.
    answer: S3Error | None = None


class BotoSender:
    """Sends requests for transfers, ``config.attempts`` times in all.

    botocore tries again by itself until a response begins. Its events tell this class of each try, and let
    it end a cancelled transfer between two.
    """

    def __init__(self, context: TransportContext) -> None:
        self._context = context
        self._current = _Current()
        self._lock = threading.RLock()  # The collector may abort a dropped upload in here.
        self._client: Any = None

    def send(self, transfer: PooledTransfer[T], once: Callable[[Any], T]) -> T:
        """Calls ``once`` with the boto3 client until it succeeds.

        Args:
            transfer: Whose thread this is.
            once: Makes one call of the client and deals with its response.

        Raises:
            S3Error: It failed for good.
            Stop: The transfer was cancelled.
        """
        current = self._current
        current.transfer, current.sent, current.failed = transfer, 0, False
        failure: S3Error | None = None
        renewed = False
        try:
            while True:
                transfer.check()
                current.answer = None
                try:
                    client = self._boto_client()
                    current.credentials = self._context.session.credentials(transfer.bucket)
                    return once(client)
                except Exception as exc:  # noqa: BLE001 - Each becomes an error of ours.
                    failure = error_from_boto(exc, **_about(transfer))
                failure.attempts = current.sent or None
                current.failed = True
                if current.sent >= self._context.config.attempts or failure.operation != transfer.operation:
                    # What comes before, such as a session with the bucket, has been tried often enough.
                    raise failure
                if has_expired(failure) and not renewed and self._renew(transfer.bucket):
                    renewed = True
                    self._tell_retry(transfer, failure, 0)
                elif may_succeed_now(failure):
                    seconds = backoff(current.sent, failure)
                    self._tell_retry(transfer, failure, seconds)
                    transfer.pause(seconds)
                else:
                    raise failure
        except _Spent:
            if failure is None:
                raise
            raise failure from failure.__cause__
        finally:
            current.transfer = current.answer = None
            failure = None

    def close(self) -> None:
        """Takes back the event handlers."""
        with self._lock:
            client, self._client = self._client, None
        self._unregister(client)

    def _renew(self, bucket: str) -> bool:
        """Takes the client of a session with other credentials, if there are any."""
        stale = self._current.credentials
        if not self._context.session.renew_credentials(stale, bucket):
            return False
        with self._lock:
            if self._client is not self._context.session.boto_client():
                # The old one goes on to serve other threads; its events must stay.
                self._client = None
        return True

    def _unregister(self, client: Any) -> None:
        if client is not None:
            client.meta.events.unregister("before-call.s3", self._before_call)
            client.meta.events.unregister("before-send.s3", self._before_send)
            client.meta.events.unregister("needs-retry.s3", self._before_retry)

    def _boto_client(self) -> Any:
        with self._lock:
            if self._client is None:
                client = self._context.session.boto_client()
                client.meta.events.register_last("before-call.s3", self._before_call)
                client.meta.events.register("before-send.s3", self._before_send)
                client.meta.events.register_first("needs-retry.s3", self._before_retry)
                self._client = client
            return self._client

    def _before_call(self, params: dict[str, Any], **_: Any) -> None:
        # botocore asks before it sends any body (Expect: 100-continue), which costs a round trip.
        if self._current.transfer is not None and not isinstance(params.get("body"), BodyStream):
            params["headers"].pop("Expect", None)

    def _before_send(self, **_: Any) -> None:
        current = self._current
        if current.transfer is None:
            return
        current.transfer.check()
        if current.failed and current.sent >= self._context.config.attempts:
            raise _Spent
        if current.answer is not None:
            # botocore has made its pause already.
            self._tell_retry(current.transfer, current.answer, 0)
        current.sent += 1

    def _before_retry(self, response: Any, caught_exception: Exception | None, **_: Any) -> None:
        current = self._current
        if current.transfer is None:
            return
        current.transfer.check()
        current.answer = None
        if self._context.on_retry is not None:
            current.answer = failure_of_try(response, caught_exception, **_about(current.transfer))

    def _tell_retry(self, transfer: PooledTransfer[Any], error: S3Error, seconds: float) -> None:
        tell_retry(self._context.on_retry, transfer, attempt=self._current.sent, error=error, seconds=seconds)


def _about(transfer: PooledTransfer[Any]) -> dict[str, str]:
    return {"operation": transfer.operation, "bucket": transfer.bucket, "key": transfer.key}
