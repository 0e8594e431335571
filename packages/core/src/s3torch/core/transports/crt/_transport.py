"""The transport over the AWS Common Runtime (awscrt).

Facts about awscrt that this module rests on, checked on 0.38:

* A ranged ``GET_OBJECT`` no larger than the client's part size is exactly one HTTP request, with pooled
  part buffers; ``DEFAULT`` grows its buffer and costs half as much CPU time again.
* ``on_body`` gets the offset in the object, not in the range, on a thread of the CRT.
* The native error objects cannot be unpickled, so they never leave this module but as ``__cause__``.
* Of an answer nothing is told before its end, so time-outs are for whole answers (``_watch``).
* ``finished_future`` is set before ``on_done`` runs; ``on_done`` is what this module listens to.
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core._process import start_thread
from s3torch.core.errors import S3Error, TransferCancelledError
from s3torch.core.plugins import hookimpl
from s3torch.core.ranges import MIB
from s3torch.core.requests import body_of, request_headers, request_target
from s3torch.core.transports._retries import Throttling, decide_retry, tell_retry
from s3torch.core.transports.crt._bodies import BodyStream, Receiver
from s3torch.core.transports.crt._errors import NO_ETAG, NO_RANGE, error_of
from s3torch.core.transports.crt._runtime import CrtRuntime
from s3torch.core.transports.crt._watch import Watch, timer

if TYPE_CHECKING:
    from awscrt.s3 import S3Request

    from s3torch.core.models import Credentials
    from s3torch.core.requests import Request
    from s3torch.core.seam import TransportContext
    from s3torch.core.transports.crt._connections import Turns

T = TypeVar("T")

# A native request that is still connecting takes many seconds to end.
_CANCEL_SECONDS = 0.5
# Transfers from this size on are bounded by whoever starts them.
_LARGE = 1 * MIB


@hookimpl
def s3torch_create_transport(context: TransportContext) -> CrtTransport:
    """Creates the transport."""
    return CrtTransport(context)


class CrtTransport:
    """Moves bytes with awscrt. The rules are those of ``s3torch.core.seam``."""

    buffers_parts = True

    def __init__(self, context: TransportContext) -> None:
        self._context = context
        self._runtime = CrtRuntime(context)
        self.live: set[CrtTransfer[Any]] = set()
        self.watch = Watch(context.config, self.live, self._runtime)
        self._turns: dict[str, Turns] = {}
        self.attempts = context.config.attempts
        self.throttling = Throttling()
        self.on_retry = context.on_retry
        self.closed = False
        # Whether the store tells ETags, without which the CRT takes no range.
        self.has_etags = True

    def send(
        self, request: Request[T], *, body: memoryview | None = None, into: memoryview | None = None
    ) -> CrtTransfer[T]:
        """Starts a request."""
        if self.closed:
            raise ValueError("the transport is closed")
        payload = body_of(request, body)
        is_small = len(request.byte_range or payload or ()) < _LARGE
        turns = self._turns_of(request.bucket) if is_small else None
        transfer = CrtTransfer(request, payload, into, self)
        transfer.begin(turns)
        return transfer

    def _turns_of(self, bucket: str) -> Turns | None:
        """Returns the turns of small requests to a bucket; ``None`` where the request will fail."""
        turns = self._turns.get(bucket)
        with suppress(S3Error):  # The transfer raises it.
            if turns is None:
                endpoint = self._context.session.endpoint(bucket)
                turns = self._turns[bucket] = self._runtime.client(endpoint).turns
            if turns.is_full:
                # Keys that are due are renewed here, and not on the thread of the CRT that gives a turn.
                self._context.session.credentials(bucket)
        return turns

    def close(self) -> None:
        """Cancels what is in flight and lets go of the native clients."""
        self.closed = True
        for transfer in list(self.live):
            transfer.cancel()
        self._runtime.close()

    def renew(self, stale: Credentials | None, bucket: str) -> bool:
        """Fetches other credentials than these for a bucket; ``False`` if there are none."""
        return self._context.session.renew_credentials(stale, bucket)

    def send_native(self, transfer: CrtTransfer[Any]) -> S3Request:
        """Makes the native request of an attempt."""
        from awscrt.http import HttpHeaders, HttpRequest
        from awscrt.s3 import S3RequestType

        session, request, receiver = self._context.session, transfer.request, transfer.receiver
        endpoint = session.endpoint(request.bucket)
        transfer.host, transfer.region = endpoint.host, endpoint.signing_region
        transfer.credentials = session.credentials(request.bucket)
        body = transfer.body.body if transfer.body is not None else None
        headers = request_headers(request, self._context, endpoint, body=body)
        headers += self._runtime.session_headers(endpoint, transfer.credentials)
        ranged = receiver.part_size is not None
        transfer.in_flight = len(self.live)
        transfer.begun_at = time.monotonic()
        if not self.watch.is_looking:
            self.watch.begin()
        native: S3Request = self._runtime.client(endpoint).native.make_request(
            type=S3RequestType.GET_OBJECT if ranged else S3RequestType.DEFAULT,
            operation_name=request.operation,
            request=HttpRequest(
                request.method, request_target(request, endpoint), HttpHeaders(headers), transfer.body
            ),
            signing_config=self._runtime.signing_config(endpoint, transfer.credentials),
            # One request for this range, whatever the part size of the client is.
            part_size=receiver.part_size,
            on_headers=receiver.on_headers,
            on_body=receiver.on_body,
            on_done=transfer.on_done,
        )
        return native


class CrtTransfer(Future[T]):
    """The future of one request, which may take several native ones."""

    def __init__(
        self,
        request: Request[T],
        body: memoryview | None,
        into: memoryview | None,
        transport: CrtTransport,
    ) -> None:
        super().__init__()
        self.request = request
        self.receiver = Receiver(request, into)
        if not transport.has_etags:
            self.receiver.take_plain()
        self.body: BodyStream | None = None
        self._payload = body
        self.credentials: Credentials | None = None
        self.host = self.region = ""
        # When the attempt was begun, by the monotonic clock, and how many were in flight then.
        self.begun_at = math.inf
        self.in_flight = 0
        self._transport = transport
        self._has_ended = False
        self._attempts = 0
        self._renewed = False
        self._native: S3Request | None = None
        self._cancelled = False
        self._late = False
        self._is_over = False
        self._waiting = False
        self._turns: Turns | None = None
        self._turn_began = 0.0
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        # A native request must be kept until it is done.
        transport.live.add(self)

    def begin(self, turns: Turns | None) -> None:
        """Sends the first attempt, now or when it is its turn."""
        if turns is None:
            self.attempt()
        else:
            self._waiting = True
            turns.enter(lambda: self._take_turn(turns))

    def _take_turn(self, turns: Turns) -> None:
        self._turns, self._turn_began = turns, time.monotonic()
        if self._has_ended:
            self._give_turn_back()
        else:
            self.attempt()

    def _give_turn_back(self) -> None:
        with self._lock:
            turns, self._turns = self._turns, None
        if turns is not None:
            turns.leave(self._turn_began)

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
        # Callbacks never run on the thread that cancels.
        timer.get().call_later(0 if waiting else _CANCEL_SECONDS, self._end_cancelled)
        return True

    def give_up(self, begun_at: float, error: S3Error | None = None) -> None:
        """Gives up the attempt that was begun then, because no answer will come in time, or the transfer."""
        with self._lock:
            if self._native is None or self._late or self.begun_at != begun_at:
                return
            self._late = True
            native = self._native
        native.cancel()
        if error is not None:
            error.attempts = self._attempts
            self.fail(error)

    def on_done(
        self,
        error: Exception | None,
        error_headers: list[tuple[str, str]] | None = None,
        error_body: bytes | None = None,
        status_code: int | None = None,
        **_: Any,
    ) -> None:
        """Ends an attempt; called on a thread of the CRT."""
        with self._lock:
            self._native, self._is_over = None, True
        if self._has_ended:
            return
        if error is None or status_code is not None:
            self._transport.watch.trusted.add(self.host)
        try:
            if self._cancelled:
                raise TransferCancelledError("the transfer was cancelled")  # noqa: TRY301
            if error is None:
                result = self.receiver.judge(self.request)
            else:
                translated = error_of(
                    self.request,
                    error,
                    error_headers,
                    error_body,
                    status_code,
                    host=self.host,
                    region=self.region,
                    late=self._late,
                )
                # They may quote the headers of the request, and error trackers show what a frame holds.
                error_headers = error_body = None
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

    def attempt(self) -> None:
        """Sends the next attempt."""
        if self._has_ended:
            return
        with self._lock:
            self._waiting = False
            if self._cancelled:
                return
            self._attempts += 1
            number = self._attempts
            self._native, self._late, self._is_over = None, False, False
            self.receiver.begin()
            # The CRT leaves a stream where it has read to.
            self.body = BodyStream(self._payload) if self._payload else None
        try:
            native = self._transport.send_native(self)
        except Exception as exc:  # noqa: BLE001 - The transfer raises it.
            self.fail(exc)
            return
        except BaseException as exc:
            # An interrupt is for whoever is starting the transfer, and may have come when it had begun.
            self.fail(exc)
            raise
        with self._lock:
            # It may be over already, and the next one under way.
            if self._is_over or self._attempts != number:
                return
            self._native = native
            unwanted = self._cancelled or self._has_ended
        if unwanted:
            native.cancel()

    def _failed(self, error: S3Error) -> None:
        """Tries again where that may help, else ends the transfer."""
        error.attempts = self._attempts
        name = getattr(error.__cause__, "name", None)
        if name == NO_ETAG:
            self._transport.has_etags = False
        if (
            name == NO_ETAG or (name == NO_RANGE and self.receiver.start == 0)
        ) and self.receiver.take_plain():
            self._again(error, 0)
            return
        decision = decide_retry(
            error,
            self._attempts,
            attempts=self._transport.attempts,
            renewed=self._renewed,
            throttling=self._transport.throttling,
        )
        if (
            self._cancelled
            or decision.action == "fail"
            or (decision.action == "renew" and self._transport.closed)
        ):
            self.fail(error)
        elif decision.action == "renew":
            self._renewed = True
            # Fetching credentials may take a while and must not hold up a thread of the CRT.
            try:
                start_thread(self._renew, error, name="s3torch-renew")
            except S3Error as exc:
                self.fail(exc)
        else:
            self._again(error, decision.seconds)

    def _renew(self, error: S3Error) -> None:
        try:
            renewed = self._transport.renew(self.credentials, self.request.bucket)
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
                self._transport.on_retry,
                self.request,
                self,
                attempt=self._attempts,
                error=error,
                seconds=seconds,
            )
            timer.get().call_later(seconds, self.attempt)
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
        self._payload = None
        self._transport.live.discard(self)
        # A native request that has not ended keeps this transfer, which has to keep it.
        self._has_ended = True
        self._give_turn_back()
