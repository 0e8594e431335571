"""Counters against what the server saw."""

from __future__ import annotations

import pickle
import threading

import hypothesis.strategies as st
import pytest
from hypothesis import given

from s3torch.core import ConfigurationError, NotFoundError
from s3torch.core.observers import CounterSnapshot, LatencyHistogram, TransferCounters, observe
from s3torch.core.observers._counters import bucket_of
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

PART = 5 * MIB

durations = st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=50)


@pytest.fixture
def counters():
    with observe(TransferCounters()) as counters:
        yield counters


def histogram(seconds):
    buckets = {}
    for each in seconds:
        buckets[bucket_of(each)] = buckets.get(bucket_of(each), 0) + 1
    return LatencyHistogram(buckets, sum(seconds))


def test_counts_are_those_of_the_server(wire, counters):
    # An answer that is ended early has bytes on the way that nobody receives.
    client = wire.client(verify="off")
    wire.proxy.add(Fault.slow_down(), method="GET", times=2)
    wire.proxy.add(Fault.slow_down(), method="PUT", skip=1, times=1)
    size = 2 * PART + 1
    with client.put_object(wire.bucket, "k") as writer:
        writer.write(wire.content(size))
    assert client.get_object(wire.bucket, "k").read() == wire.content(size)
    requests = wire.proxy.requests()
    counted = counters.snapshot()
    assert counted.requests == len(requests)
    answered = [request for request in requests if request.status in {200, 206}]
    assert counted.bytes_read == sum(each.response_bytes for each in answered if each.method == "GET") == size
    assert counted.bytes_written == size
    assert counted.throttles == sum(request.status == 503 for request in requests) == 3
    assert counted.retries == 3
    assert counted.of("UploadPart").requests == 4
    assert counted.of("UploadPart").transfers == 3
    assert counted.errors == {}
    assert counted.in_flight == 0
    assert 1 <= counted.most_in_flight <= 8
    assert counted.total.latency.count == counted.total.transfers == counted.requests - 3


def test_failures_are_counted_by_class(wire, counters):
    client = wire.client()
    for _ in range(2):
        with pytest.raises(NotFoundError):
            client.get_object(wire.bucket, "missing").read()
    assert not client.exists(wire.bucket, "missing")
    counted = counters.snapshot()
    assert counted.errors == {"NotFoundError": 3}
    assert counted.of("GetObject").errors == {"NotFoundError": 2}
    assert counted.of("HeadObject").transfers == 1
    assert counted.bytes_read == 0


def test_threads_count_together(client, counters):
    def work(number):
        for _ in range(20):
            with client.put_object("bucket", f"k{number}") as writer:
                writer.write(b"x" * 10)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = counters.snapshot()
    assert (counted.requests, counted.bytes_written, counted.in_flight) == (160, 1600, 0)


def test_a_difference_is_what_happened_between(client, counters):
    with client.put_object("bucket", "k") as writer:
        writer.write(b"data")
    before = counters.snapshot()
    client.get_object("bucket", "k").read()
    with pytest.raises(NotFoundError):
        client.head_object("bucket", "missing")
    between = counters.snapshot() - before
    assert (between.requests, between.bytes_read, between.bytes_written) == (2, 4, 0)
    assert between.of("PutObject").latency.count == 0
    assert between.errors == {"NotFoundError": 1}
    whole = before + between
    assert whole.requests == counters.snapshot().requests
    assert whole.of("GetObject") == counters.snapshot().of("GetObject")


def test_a_snapshot_is_a_value(client, counters):
    client.exists("bucket", "k")
    snapshot = counters.snapshot()
    again = pickle.loads(pickle.dumps(snapshot))
    assert again == snapshot
    assert sum([snapshot, again], CounterSnapshot()).requests == 2
    client.exists("bucket", "k")
    assert snapshot.requests == 1


def test_every_process_counts_for_itself(client, counters, in_child):
    def child():
        inherited = counters.snapshot()
        with observe(counters):
            client.exists("bucket", "k")
        return inherited.requests, counters.snapshot().requests

    client.exists("bucket", "k")
    assert in_child(child) == (0, 1)
    assert counters.snapshot().requests == 1
    assert pickle.loads(pickle.dumps(counters)).snapshot() == CounterSnapshot()


@given(durations, st.sampled_from([0, 50, 90, 99, 100]))
def test_percentiles_are_right_to_nine_percent(seconds, percent):
    import math

    exact = sorted(seconds)[max(1, math.ceil(len(seconds) * percent / 100)) - 1]
    told = histogram(seconds).percentile(percent)
    assert exact * 0.999999 <= told <= exact * 2 ** (1 / 8) * 1.000001


@given(durations, durations)
def test_histograms_add_up(first, second):
    both = histogram(first) + histogram(second)
    assert both.buckets == histogram(first + second).buckets
    assert both.count == len(first) + len(second)
    assert both.mean == pytest.approx(sum(first + second) / both.count)
    assert (both - histogram(second)).buckets == histogram(first).buckets


def test_a_histogram_of_nothing():
    assert (LatencyHistogram().count, LatencyHistogram().mean, LatencyHistogram().percentile(50)) == (0, 0, 0)
    with pytest.raises(ConfigurationError, match="101"):
        LatencyHistogram().percentile(101)
