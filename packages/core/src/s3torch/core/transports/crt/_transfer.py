"""One request of the ``crt`` transport while it runs: what came back, and what that means."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from s3torch.core.errors import (
    S3ConnectionError,
    S3Error,
    S3TimeoutError,
    TransferCancelledError,
    TruncatedError,
    error_from_response,
)
from s3torch.core.requests import Answer
from s3torch.core.transports._retries import decide_retry, tell_retry
from s3torch.core.transports.crt._body import BodyStream, Receiver
from s3torch.core.transports.crt._watch import timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from awscrt.s3 import S3Request

    from s3torch.core.models import Credentials
    from s3torch.core.requests import Request
    from s3torch.core.seam import RetryListener

T = TypeVar("T")

# Errors that come without a response after the last attempt, by the name that the CRT gives them.
_STATUS_BY_NAME = {
    "AWS_ERROR_S3_SLOW_DOWN": (503, "SlowDown"),
    "AWS_ERROR_S3_INTERNAL_ERROR": (500, "InternalError"),
    "AWS_ERROR_S3_REQUEST_TIMEOUT": (400, "RequestTimeout"),
    "AWS_ERROR_S3_REQUEST_TIME_TOO_SKEWED": (403, "RequestTimeTooSkewed"),
}
_CANCELLED = {"AWS_ERROR_S3_CANCELED", "AWS_ERROR_S3_PAUSED"}
# Answers that have other bytes than were asked for; the CRT keeps what they were to itself.
_NO_RANGE = "AWS_ERROR_S3_MISSING_CONTENT_RANGE_HEADER"
_TRUNCATED = {
    _NO_RANGE: "the store answered a request for a range without a range",
    "AWS_ERROR_S3_INVALID_CONTENT_RANGE_HEADER": "the store answered with another range than was asked for",
    "AWS_ERROR_DEST_COPY_TOO_SMALL": "the body is longer than what was asked for",
}
_TIMEOUTS = {
    "AWS_IO_SOCKET_TIMEOUT",
    "AWS_ERROR_HTTP_CHANNEL_THROUGHPUT_FAILURE",
    "AWS_ERROR_HTTP_RESPONSE_FIRST_BYTE_TIMEOUT",
}


class Sender(Protocol):
    """What transfers ask their transport."""

    attempts: int
    closed: bool
    on_retry: RetryListener | None

    def renew(self, stale: Credentials | None, bucket: str) -> bool:
        """Fetches other credentials than these; ``False`` if there are none."""
        ...


class CrtTransfer(Future[T]):
    """The future of one request, which may take several native ones."""

    def __init__(
        self,
        request: Request[T],
        body: memoryview | None,
        into: memoryview | None,
        live: set[CrtTransfer[Any]],
        sender: Sender,
    ) -> None:
        super().__init__()
        self.request = request
        self.receiver = Receiver(request, into)
        self.body = BodyStream(body) if body else None
        self.credentials: Credentials | None = None
        self.host = ""
        # When the attempt was begun and when its answer has to be there, by the monotonic clock.
        self.begun_at = math.inf
        self.deadline = math.inf
        # A native request must be kept until it is done.
        self._live = live
        self._sender = sender
        self._send: Callable[[], S3Request] | None = None
        self._attempts = 0
        self._renewed = False
        self._native: S3Request | None = None
        self._cancelled = False
        self._late = False
        self._waiting = False
        self._lock = threading.Lock()
        live.add(self)

    def start(self, send: Callable[[], S3Request]) -> None:
        """Sends the first attempt; ``send`` makes the native request of each."""
        self._send = send
        self._attempt()

    def cancel(self) -> bool:
        """Asks the CRT to stop; the transfer then fails with ``TransferCancelledError``."""
        with self._lock:
            if self.done():
                return False
            self._cancelled = True
            waiting, self._waiting = self._waiting, False
            native = self._native
        self.receiver.release()
        if native is not None:
            native.cancel()
        if waiting:
            # Callbacks never run on the thread that cancels.
            timer.get().call_later(0, self._end_cancelled)
        return True

    def give_up(self, begun_at: float) -> None:
        """Gives up the attempt that was begun then, because its answer has not come in time."""
        with self._lock:
            if self._native is None or self._late or self.begun_at != begun_at:
                return
            self._late = True
            native = self._native
        native.cancel()

    def on_done(
        self,
        error: Exception | None,
        error_headers: list[tuple[str, str]] | None = None,
        error_body: bytes | None = None,
        status_code: int | None = None,
        **_: Any,
    ) -> None:
        """Ends an attempt; called on a thread of the CRT."""
        try:
            if self._cancelled:
                raise TransferCancelledError("the transfer was cancelled")  # noqa: TRY301
            if error is None:
                result = self.request.result(self.receiver.answer())
            else:
                translated = self._translate(error, error_headers, error_body, status_code)
                translated.__cause__ = error
                result = self.request.failed(translated, into=self.receiver.has_buffer or None)
        except S3Error as exc:
            self._failed(exc)
        except BaseException as exc:  # noqa: BLE001 - It is raised where it is waited for.
            self.fail(exc)
        else:
            self._end()
            with suppress(InvalidStateError):  # An interrupt has ended it.
                self.set_result(result)

    def _attempt(self) -> None:
        """Sends the next attempt."""
        if self._send is None:
            return
        with self._lock:
            self._waiting = False
            if self._cancelled:
                return
            self._attempts += 1
            number = self._attempts
            self._native, self._late = None, False
            self.receiver.begin()
            if self.body is not None:
                # The CRT does not go back by itself: to it, each attempt is a request of its own.
                self.body.seek(0)
        try:
            native = self._send()
        except Exception as exc:  # noqa: BLE001 - The transfer raises it.
            self.fail(exc)
            return
        except BaseException as exc:
            # An interrupt is for whoever is starting the transfer, and may have come when it had begun.
            self.fail(exc)
            raise
        with self._lock:
            # It may be over already, and the next one under way.
            if self.done() or self._attempts != number or self._waiting:
                return
            self._native = native
            cancelled = self._cancelled
        if cancelled:
            native.cancel()

    def _failed(self, error: S3Error) -> None:
        """Tries again where that may help, else ends the transfer."""
        error.attempts = self._attempts
        if getattr(error.__cause__, "name", None) == _NO_RANGE and self.receiver.take_whole():
            self._again(error, 0)
            return
        decision = decide_retry(error, self._attempts, attempts=self._sender.attempts, renewed=self._renewed)
        if (
            self._cancelled
            or decision.action == "fail"
            or (decision.action == "renew" and self._sender.closed)
        ):
            self.fail(error)
        elif decision.action == "renew":
            self._renewed = True
            # Fetching credentials may take a while and must not hold up a thread of the CRT.
            threading.Thread(target=self._renew, args=(error,), name="s3torch-renew", daemon=True).start()
        else:
            self._again(error, decision.seconds)

    def _renew(self, error: S3Error) -> None:
        try:
            renewed = self._sender.renew(self.credentials, self.request.bucket)
        except S3Error as exc:
            exc.__cause__ = error
            self.fail(exc)
            return
        if renewed:
            self._again(error, 0)
        else:
            self.fail(error)

    def _again(self, error: S3Error, seconds: float) -> None:
        with self._lock:
            self._native = None
            self._waiting = not self._cancelled
            waiting = self._waiting
        if waiting:
            tell_retry(
                self._sender.on_retry,
                self.request,
                self,
                attempt=self._attempts,
                error=error,
                seconds=seconds,
            )
            timer.get().call_later(seconds, self._attempt)
        else:
            self._end_cancelled()

    def _end_cancelled(self) -> None:
        self.fail(TransferCancelledError("the transfer was cancelled"))

    def fail(self, error: BaseException) -> None:
        """Ends the transfer with an error that names what it was about."""
        if isinstance(error, S3Error):
            self.request.locate(error)
        self._end()
        try:
            self.set_exception(error)
        except InvalidStateError:  # The native request failed and ended before it was started.
            return

    def _end(self) -> None:
        self.receiver.release()
        if self.body is not None:
            self.body.release()
        self._live.discard(self)
        self._native = None
        self._send = None

    def _translate(
        self,
        error: Exception,
        headers: list[tuple[str, str]] | None,
        body: bytes | None,
        status: int | None,
    ) -> S3Error:
        if isinstance(error, S3Error):
            return error
        name = getattr(error, "name", type(error).__name__)
        if status is not None:
            known = {key.lower(): value for key, value in headers or ()}
            return self.request.error(Answer(status, known, body))
        if name in _STATUS_BY_NAME:
            known_status, code = _STATUS_BY_NAME[name]
            return error_from_response(
                operation=self.request.operation,
                bucket=self.request.bucket,
                key=self.request.key or None,
                status=known_status,
                code=code,
            )
        if self._late:
            return S3TimeoutError(f"no answer from {self.host} in time")
        if name in _CANCELLED:
            return TransferCancelledError("the transfer was cancelled")
        if name in _TRUNCATED:
            return TruncatedError(_TRUNCATED[name])
        text = f"{self.host}: {getattr(error, 'message', None) or str(error)} ({name})"
        kind = S3TimeoutError if name in _TIMEOUTS else S3ConnectionError
        return kind(text)
