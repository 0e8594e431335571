"""One transfer of the CRT, over all of its attempts: what it sends, and what comes back."""

from __future__ import annotations

import io
import math
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from s3torch.core._process import start_thread
from s3torch.core.errors import S3Error, TransferCancelledError, TruncatedError
from s3torch.core.requests import Answer
from s3torch.core.requests._objects import OBJECT_STATUS, check_end
from s3torch.core.transports import decide_retry, tell_retry
from s3torch.core.transports.crt._errors import NO_ETAG, NO_RANGE, error_of
from s3torch.core.transports.crt._watch import timer

if TYPE_CHECKING:
    from awscrt.s3 import S3Request

    from s3torch.core.models import Credentials
    from s3torch.core.requests import Request
    from s3torch.core.transports.crt._transport import CrtTransport, Turns

T = TypeVar("T")

# A native request that is still connecting takes many seconds to end.
_CANCEL_SECONDS = 0.5
_OK = 200


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


class BodyStream(io.RawIOBase):
    """Lets the CRT read a buffer without a copy on this side."""

    def __init__(self, body: memoryview) -> None:
        super().__init__()
        self.body = body
        self._position = 0
        # Whoever lets go of the buffer may change it, so it must not be read at that moment.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self.body)

    def release(self) -> None:
        """Lets go of the buffer; the CRT keeps the stream for longer than its request."""
        with self._lock:
            self.body = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        """True: the CRT begins again at each attempt."""
        return True

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            count = max(0, min(len(buffer), len(self.body) - self._position))
            buffer[:count] = self.body[self._position : self._position + count]
            self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.body)}
        self._position = max(0, origin[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position


class Receiver:
    """Takes in what comes back for the attempts of one request; called on threads of the CRT.

    Args:
        request: What is asked.
        into: The caller's buffer, if there is one.
    """

    def __init__(self, request: Request[Any], into: memoryview | None) -> None:
        byte_range = request.byte_range
        self.start = 0 if byte_range is None else byte_range.start
        # The length of the range that is asked for, where there is one.
        self.part_size = None if byte_range is None else len(byte_range)
        self.into = into
        self.has_buffer = into is not None
        # How many bytes may come; ``None`` for any number.
        self._room = self.part_size if into is None else len(into)
        # Once a transfer was cancelled its buffer is not touched any more.
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self.begin()

    def begin(self) -> None:
        """Forgets what came back for the attempt before."""
        self._status = _OK
        self._headers: dict[str, str] = {}
        self._chunks: list[bytes] = []
        self._received = 0

    def on_headers(self, status_code: int, headers: list[tuple[str, str]], **_: Any) -> None:
        """Takes the head of the response."""
        self._status = status_code
        self._headers = {name.lower(): value for name, value in headers}

    def on_body(self, chunk: bytes, offset: int, **_: Any) -> None:
        """Puts a piece of the body where it belongs; the offset is that in the object."""
        self._received += len(chunk)
        begin = offset - self.start
        if begin < 0 or (self._room is not None and begin + len(chunk) > self._room):
            raise TruncatedError(f"the body has more than the {self._room} bytes asked for")
        if not self.has_buffer:
            self._chunks.append(chunk)
            return
        with self._lock:
            if self.into is not None:
                self.into[begin : begin + len(chunk)] = chunk

    def judge(self, request: Request[T]) -> T:
        """Returns the result of what came back for an attempt that the CRT calls a success."""
        brings_object = request.streams and self._status in OBJECT_STATUS
        if brings_object:
            # Up to the end of the connection the CRT reads nothing, whatever was asked for.
            check_end(self._headers)
        if not self.has_buffer:
            body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            return request.result(
                Answer(self._status, self._headers, body, self._received, view=memoryview(body))
            )
        # Cancelling waits for this, because the buffer is looked at.
        with self._lock:
            view = None if self.into is None else self.into[: self._received]
            return request.result(Answer(self._status, self._headers, None, self._received, view=view))

    def take_plain(self) -> bool:
        """Lets the CRT pass on whatever is answered from now on; ``False`` where it does already."""
        is_new = self.part_size is not None
        self.part_size = None
        return is_new

    def release(self) -> None:
        """Lets go of buffers."""
        self._chunks = []
        with self._lock:
            self.into = None
