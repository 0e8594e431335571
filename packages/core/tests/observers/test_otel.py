"""Metrics and spans, as the SDK of OpenTelemetry gets them."""

from __future__ import annotations

import sys
import threading

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from s3torch.core import ConfigurationError, NotFoundError
from s3torch.core.observers import observe
from s3torch.core.observers.otel import OpenTelemetryObserver
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

PART = 5 * MIB


class Telemetry:
    def __init__(self):
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meters = MeterProvider([self._reader])
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))

    def points(self, name):
        """The points of a metric."""
        data = self._reader.get_metrics_data()
        metrics = [
            metric
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        ]
        return [point for metric in metrics if metric.name == name for point in metric.data.data_points]

    def values(self, name):
        return {point.attributes["rpc.method"]: point.value for point in self.points(name)}

    @property
    def spans(self):
        return self._exporter.get_finished_spans()

    def named(self, name):
        return [span for span in self.spans if span.name == name]


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    with observe(OpenTelemetryObserver(meter_provider=telemetry.meters, tracer_provider=telemetry.tracers)):
        yield telemetry
    telemetry.meters.shutdown()
    telemetry.tracers.shutdown()


def test_metrics_of_a_write_and_a_read(wire, telemetry):
    client = wire.client()
    size = PART + 1
    wire.proxy.add(Fault.slow_down(), method="GET", times=1)
    with client.put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(size))
    assert client.get_object(wire.bucket, "k").read() == wire.content(size)
    assert telemetry.values("s3torch.client.io") == {"UploadPart": size, "GetObject": size}
    directions = {
        point.attributes["rpc.method"]: point.attributes["network.io.direction"]
        for point in telemetry.points("s3torch.client.io")
    }
    assert directions == {"UploadPart": "transmit", "GetObject": "receive"}
    assert telemetry.values("s3torch.client.throttles") == {"GetObject": 1}
    assert telemetry.values("s3torch.client.retries") == {"GetObject": 1}
    assert set(telemetry.values("s3torch.client.active_operations").values()) == {0}
    durations = telemetry.points("s3torch.client.operation.duration")
    assert sum(point.count for point in durations) == len(wire.proxy.requests()) - 1
    assert all("key" not in name for point in durations for name in point.attributes)
    assert all(point.attributes["aws.s3.bucket"] == wire.bucket for point in durations)
    assert durations[0].explicit_bounds[0] < 0.01


def test_an_upload_is_one_span_with_its_parts_below(wire, telemetry):
    client = wire.client()
    tracer = telemetry.tracers.get_tracer("mine")
    with tracer.start_as_current_span("epoch") as epoch, client.put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(2 * PART + 1))
    (upload,) = telemetry.named("s3torch.upload")
    assert upload.parent.span_id == epoch.get_span_context().span_id
    assert upload.status.status_code is StatusCode.UNSET
    parts = telemetry.named("S3/UploadPart")
    assert {span.attributes["aws.s3.part_number"] for span in parts} == {1, 2, 3}
    below = [
        *parts,
        *telemetry.named("S3/CreateMultipartUpload"),
        *telemetry.named("S3/CompleteMultipartUpload"),
    ]
    assert len(below) == len(wire.proxy.requests()) == 5
    assert {span.parent.span_id for span in below} == {upload.context.span_id}
    assert all(span.kind is SpanKind.CLIENT for span in below)
    assert all(upload.start_time <= span.start_time <= span.end_time <= upload.end_time for span in below)


def test_an_aborted_upload_ends_its_span(wire, telemetry):
    client = wire.client()
    with pytest.raises(KeyError), client.put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(2 * PART + 1))
        raise KeyError
    (upload,) = telemetry.named("s3torch.upload")
    assert upload.attributes["error.type"] == "aborted"


def test_an_upload_that_cannot_begin_ends_its_span(wire, telemetry):
    client = wire.client()
    with pytest.raises(NotFoundError), client.put_object("s3torch-no-such-bucket", "k") as writer:
        writer.write(wire.content(2 * PART + 1))
    (upload,) = telemetry.named("s3torch.upload")
    assert upload.status.status_code is StatusCode.ERROR


def test_a_read_is_a_span_for_each_part(wire, telemetry):
    client = wire.client()
    bucket, key = wire.stock(2 * PART)
    wire.proxy.add(Fault.slow_down(), method="GET", times=1)
    tracer = telemetry.tracers.get_tracer("mine")
    with tracer.start_as_current_span("epoch") as epoch:
        source = client.open_ranges(bucket, key)
        source.start(PART, 2 * PART).wait()
    (span,) = telemetry.named("S3/GetObject")
    assert span.parent.span_id == epoch.get_span_context().span_id
    assert (span.attributes["s3torch.range.start"], span.attributes["s3torch.range.stop"]) == (PART, 2 * PART)
    assert (span.attributes["s3torch.attempts"], span.attributes["s3torch.nbytes"]) == (2, PART)
    assert (span.attributes["rpc.method"], span.attributes["aws.s3.key"]) == ("GetObject", key)
    (event,) = span.events
    assert (event.name, event.attributes["error.type"]) == ("retry", "ThrottledError")


def test_a_failure_is_a_span_with_its_reason(wire, telemetry):
    client = wire.client()
    with pytest.raises(NotFoundError):
        client.get_object(wire.bucket, "missing").read()
    (span,) = telemetry.named("S3/GetObject")
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["error.type"] == "NotFoundError"
    (point,) = telemetry.points("s3torch.client.operation.duration")
    assert point.attributes["error.type"] == "NotFoundError"


def test_metrics_come_without_spans_if_so_wanted(client):
    telemetry = Telemetry()
    observer = OpenTelemetryObserver(
        meter_provider=telemetry.meters, tracer_provider=telemetry.tracers, spans=False
    )
    with observe(observer):
        client.exists("bucket", "k")
    assert telemetry.spans == ()
    assert len(telemetry.points("s3torch.client.operation.duration")) == 1
    telemetry.meters.shutdown()


def test_a_transfer_in_the_midst_of_a_call_waits_for_its_turn(client):
    class Locked(SpanProcessor):
        """Has a lock that cannot be taken twice, and moves something under it, as the collector may."""

        def __init__(self):
            self.lock = threading.Lock()
            self.names = []

        def on_start(self, span, parent_context=None):
            assert self.lock.acquire(blocking=False)
            self.names.append(span.name)
            if len(self.names) == 1:
                client.exists("bucket", "k")
            self.lock.release()

    telemetry = Telemetry()
    processor = Locked()
    telemetry.tracers.add_span_processor(processor)
    observer = OpenTelemetryObserver(meter_provider=telemetry.meters, tracer_provider=telemetry.tracers)
    with observe(observer), client.put_object("bucket", "k") as writer:
        writer.write(b"data")
    assert processor.names == ["S3/PutObject", "S3/HeadObject"]
    assert sorted(span.name for span in telemetry.spans) == ["S3/HeadObject", "S3/PutObject"]
    telemetry.meters.shutdown()
    telemetry.tracers.shutdown()


def test_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"s3torch\[otel\]"):
        OpenTelemetryObserver()
