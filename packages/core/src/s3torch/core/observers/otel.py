"""Metrics and spans of transfers for OpenTelemetry (extra ``otel``).

Metrics, with the attributes ``rpc.system``, ``rpc.service``, ``rpc.method`` and ``aws.s3.bucket``, and never
with a key:

========================================  =============  ===================================================
``s3torch.client.operation.duration``     histogram, s   transfers; failed ones have ``error.type``
``s3torch.client.io``                     counter, By    bytes of objects, with ``network.io.direction``
``s3torch.client.active_operations``      up-down        transfers in flight
``s3torch.client.retries``                counter        attempts that were made again, with ``error.type``
``s3torch.client.throttles``              counter        answers that asked to slow down
========================================  =============  ===================================================

Spans: one of kind CLIENT for each transfer, ``S3/GetObject``, a child of the span that is current where it
was begun, with an event for each retry. The transfers of one multipart upload are children of a span
``s3torch.upload`` that goes from its creation to its completion or abort.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from s3torch.core._process import PerProcess
from s3torch.core._version import __version__
from s3torch.core.errors import ConfigurationError
from s3torch.core.observers._listening import TransferObserver

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

    from s3torch.core.observers._listening import TransferEnd, TransferInfo, TransferRetry

__all__ = ["OpenTelemetryObserver"]

_NAME = "s3torch"
_IO_DIRECTIONS = {"read": "receive", "write": "transmit"}
# From a cache on this machine to a large part over a slow link, with backoff.
_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]


class OpenTelemetryObserver(TransferObserver):
    """Tells OpenTelemetry of every transfer.

    Only the API of OpenTelemetry is needed; what is done with metrics and spans is up to the SDK of the
    program. A forked child begins without open spans.

    Args:
        meter_provider: ``None`` for the global one.
        tracer_provider: ``None`` for the global one.
        spans: Whether there are spans, and not only metrics.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.

    Example:
        >>> from s3torch.core.observers import add_observer, remove_observer
        >>> from s3torch.core.observers.otel import OpenTelemetryObserver
        >>> observer = OpenTelemetryObserver()
        >>> add_observer(observer)  # From now on, in this process.
        >>> remove_observer(observer)
    """

    def __init__(
        self,
        *,
        meter_provider: MeterProvider | None = None,
        tracer_provider: TracerProvider | None = None,
        spans: bool = True,
    ) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as exc:
            raise ConfigurationError(
                f"this observer needs opentelemetry-api, which cannot be imported here ({exc}); "
                "install it with pip install 's3torch[otel]'"
            ) from exc
        self._metrics = _Metrics(metrics.get_meter(_NAME, __version__, meter_provider))
        tracer = trace.get_tracer(_NAME, __version__, tracer_provider)
        self._spans = PerProcess(lambda: _Spans(tracer)) if spans else None
        self._turns = _Turns()
        # What other threads tell of transfers whose start waits for its turn.
        self._held: dict[int, list[Callable[[], None]]] = {}
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.

    def started(self, transfer: TransferInfo) -> None:
        """Opens a span."""
        if self._turns.taken:
            self._held[transfer.number] = []
        self._turns.take(lambda: self._started(transfer))

    def retried(self, transfer: TransferInfo, retry: TransferRetry) -> None:
        """Counts a retry and adds an event to the span."""
        self._follow(transfer, lambda: self._retried(transfer, retry))

    def ended(self, transfer: TransferInfo, end: TransferEnd) -> None:
        """Records the transfer and ends its span."""
        self._follow(transfer, lambda: self._ended(transfer, end))

    def _follow(self, transfer: TransferInfo, call: Callable[[], None]) -> None:
        """Calls in the turn of this thread, but not before the start of the transfer was told."""
        if transfer.number in self._held:
            with self._lock:
                held = self._held.get(transfer.number)
                if held is not None:
                    held.append(call)
                    return
        self._turns.take(call)

    def _started(self, transfer: TransferInfo) -> None:
        self._metrics.active.add(1, _attributes(transfer))
        if self._spans is not None:
            self._spans.get().start(transfer)
        with self._lock:
            held = self._held.pop(transfer.number, ())
        for call in held:
            self._turns.take(call)

    def _retried(self, transfer: TransferInfo, retry: TransferRetry) -> None:
        error_type = {"error.type": type(retry.error).__name__}
        self._metrics.retries.add(1, _attributes(transfer) | error_type)
        if self._spans is not None:
            self._spans.get().retry(transfer, retry)

    def _ended(self, transfer: TransferInfo, end: TransferEnd) -> None:
        self._metrics.record(transfer, end)
        if self._spans is not None:
            self._spans.get().end(transfer, end)


class _Turns(threading.local):
    """Lets a thread call OpenTelemetry once at a time, as the locks of its SDK ask for.

    An exporter, or the handler of a signal, may begin a transfer in the midst of a call.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self.taken = False

    def take(self, call: Callable[[], None]) -> None:
        """Calls now, or after the call that this thread is in."""
        self._waiting.append(call)
        if self.taken:
            return
        self.taken = True
        try:
            while self._waiting:
                self._waiting.popleft()()
        finally:
            self.taken = False


class _Metrics:
    """The instruments."""

    def __init__(self, meter: Any) -> None:
        self.active = meter.create_up_down_counter(
            "s3torch.client.active_operations", "{operation}", "Transfers in flight"
        )
        self.retries = meter.create_counter(
            "s3torch.client.retries", "{attempt}", "Attempts that were made again"
        )
        self._throttles = meter.create_counter(
            "s3torch.client.throttles", "{answer}", "Answers that asked to slow down"
        )
        self._io = meter.create_counter("s3torch.client.io", "By", "Bytes of objects that were moved")
        self._duration = meter.create_histogram(
            "s3torch.client.operation.duration",
            "s",
            "Duration of transfers, with all attempts",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )

    def record(self, transfer: TransferInfo, end: TransferEnd) -> None:
        """Takes a transfer that has ended."""
        attributes = _attributes(transfer)
        self.active.add(-1, attributes)
        if end.throttles:
            self._throttles.add(end.throttles, attributes)
        if end.nbytes and transfer.direction is not None:
            direction = {"network.io.direction": _IO_DIRECTIONS[transfer.direction]}
            self._io.add(end.nbytes, attributes | direction)
        if end.error is not None:
            attributes["error.type"] = type(end.error).__name__
        self._duration.record(end.seconds, attributes)


class _Spans:
    """The spans of one process that are open."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self._open: dict[int, Span] = {}
        self._uploads: dict[str, Span] = {}
        # Uploads whose id is not known yet, by the number of the transfer that creates them.
        self._created: dict[int, Span] = {}

    def start(self, transfer: TransferInfo) -> None:
        """Opens the span of a transfer, and that of its upload before the first."""
        from opentelemetry.trace import SpanKind

        now = time.time_ns()
        if transfer.operation == "CreateMultipartUpload":
            upload = self._tracer.start_span("s3torch.upload", attributes=_place(transfer), start_time=now)
            with self._lock:
                self._created[transfer.number] = upload
        span = self._tracer.start_span(
            f"S3/{transfer.operation}",
            context=self._context(transfer),
            kind=SpanKind.CLIENT,
            attributes=_facts(transfer),
            start_time=now,
        )
        with self._lock:
            self._open[transfer.number] = span

    def retry(self, transfer: TransferInfo, retry: TransferRetry) -> None:
        """Adds an event."""
        with self._lock:
            span = self._open.get(transfer.number)
        if span is not None:
            span.add_event(
                "retry",
                {
                    "s3torch.attempt": retry.attempt,
                    "s3torch.pause": retry.seconds,
                    "error.type": type(retry.error).__name__,
                    "exception.message": str(retry.error),
                },
            )

    def end(self, transfer: TransferInfo, end: TransferEnd) -> None:
        """Ends the span, and that of the upload with its last transfer."""
        with self._lock:
            span = self._open.pop(transfer.number, None)
        if span is not None:
            span.set_attributes({"s3torch.attempts": end.attempts, "s3torch.nbytes": end.nbytes})
            _close(span, end.error)
        self._end_upload(transfer, end)

    def _context(self, transfer: TransferInfo) -> Context | None:
        from opentelemetry.trace import set_span_in_context

        with self._lock:
            upload = self._created.get(transfer.number) or self._uploads.get(transfer.upload_id or "")
        return None if upload is None else set_span_in_context(upload)

    def _end_upload(self, transfer: TransferInfo, end: TransferEnd) -> None:
        with self._lock:
            created = self._created.pop(transfer.number, None)
            if created is not None and end.upload_id is not None:
                self._uploads[end.upload_id] = created
                return
            last = transfer.operation == "AbortMultipartUpload" or (
                transfer.operation == "CompleteMultipartUpload" and end.error is None
            )
            upload = self._uploads.pop(transfer.upload_id or "", None) if last else created
        if upload is None:
            return
        if transfer.operation == "AbortMultipartUpload" and end.error is None:
            upload.set_attribute("error.type", "aborted")
        _close(upload, end.error)


def _close(span: Span, error: BaseException | None) -> None:
    from opentelemetry.trace import StatusCode

    if error is not None:
        span.set_attribute("error.type", type(error).__name__)
        request_id = getattr(error, "request_id", None)
        if request_id:
            span.set_attribute("aws.request_id", request_id)
        span.set_status(StatusCode.ERROR, str(error))
    span.end()


def _attributes(transfer: TransferInfo) -> dict[str, Any]:
    return {
        "rpc.system": "aws-api",
        "rpc.service": "S3",
        "rpc.method": transfer.operation,
        "aws.s3.bucket": transfer.bucket,
    }


def _place(transfer: TransferInfo) -> dict[str, Any]:
    key = {} if transfer.key is None else {"aws.s3.key": transfer.key}
    return {"aws.s3.bucket": transfer.bucket, **key}


def _facts(transfer: TransferInfo) -> dict[str, Any]:
    facts = _attributes(transfer) | _place(transfer)
    if transfer.upload_id is not None:
        facts["aws.s3.upload_id"] = transfer.upload_id
    if transfer.part_number is not None:
        facts["aws.s3.part_number"] = transfer.part_number
    if transfer.byte_range is not None:
        facts["s3torch.range.start"] = transfer.byte_range.start
        facts["s3torch.range.stop"] = transfer.byte_range.stop
    return facts
