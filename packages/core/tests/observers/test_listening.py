"""Who is told of what, on the wire and in memory, and that nobody pays when nobody listens."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from s3torch.core import NotFoundError, PutOptions, ThrottledError, TransferCancelledError, observers
from s3torch.core.observers import TransferObserver, add_observer, observe, remove_observer
from s3torch.core.observers._observed import Observations, ObservedTransfer, ObservedTransport
from s3torch.core.ranges import MIB
from s3torch.core.requests import get_object, put_object
from s3torch.core.transports.memory import MemoryStore, MemoryTransport
from s3torch.testing.faults import Fault
from s3torch.testing.transport_tests import TransportTests

PART = 5 * MIB


class TestObservedTransport(TransportTests):
    """The observed transport is as good a transport as the one behind it."""

    speaks_http = False
    store = MemoryStore()

    def create_transport(self, context):
        return ObservedTransport(MemoryTransport(self.store), Observations())

    @pytest.fixture(autouse=True)
    def _listens(self, diary):
        return diary

    @pytest.fixture
    def transport_context(self):
        return None

    @pytest.fixture
    def bucket(self):
        self.store.create_bucket("conformance") if "conformance" not in self.store._buckets else None
        return "conformance"


def write(client, bucket, key, size, content):
    with client.put_object(bucket, key) as writer:
        writer.write(content(size))


def test_a_transfer_is_told_from_start_to_end(wire, diary):
    client = wire.client(verify="off")
    write(client, wire.bucket, "k", 10, wire.content)
    assert client.get_object(wire.bucket, "k").read() == wire.content(10)
    assert [(event, transfer.operation) for event, transfer, _ in diary.events] == [
        (event, operation)
        for operation in ("PutObject", "GetObject")
        for event in ("started", "progressed", "ended")
    ]
    (sent, progress), (received, _) = diary.of("progressed")
    assert (sent.bucket, sent.key, sent.size, sent.direction) == (wire.bucket, "k", 10, "write")
    assert (progress.nbytes, progress.object_size) == (10, 10)
    assert (received.direction, received.number) == ("read", sent.number + 1)
    for transfer, end in diary.of("ended"):
        assert (end.nbytes, end.attempts, end.throttles, end.error) == (10, 1, 0, None)
        assert end.seconds >= 0
        assert transfer in (sent, received)


def test_a_large_object_is_a_transfer_for_each_part(wire, diary):
    client = wire.client(verify="off")
    size = 2 * PART + 1
    write(client, wire.bucket, "k", size, wire.content)
    assert client.get_object(wire.bucket, "k").read() == wire.content(size)
    ends = diary.of("ended")
    assert len(ends) == len(wire.proxy.requests())
    uploads = {end.upload_id for transfer, end in ends if transfer.operation != "GetObject"}
    assert len(uploads) == 1
    assert None not in uploads
    assert {transfer.part_number for transfer, _ in diary.of("ended", "UploadPart")} == {1, 2, 3}
    for operation in ("UploadPart", "GetObject"):
        assert sum(progress.nbytes for _, progress in diary.of("progressed", operation)) == size
    ranges = [transfer.byte_range for transfer, _ in diary.of("started", "GetObject")]
    assert sum(len(each) for each in ranges if each is not None) >= size
    assert all(progress.object_size == size for _, progress in diary.of("progressed", "GetObject"))


def test_operations_that_move_no_bytes_are_told(wire, diary):
    client = wire.client()
    wire.put("a")
    client.head_object(wire.bucket, "a")
    list(client.list_objects(wire.bucket))
    client.copy_object(wire.bucket, "a", wire.bucket, "b")
    client.delete_object(wire.bucket, "a")
    client.delete_objects(wire.bucket, ["b"])
    with pytest.raises(NotFoundError):
        client.head_object(wire.bucket, "a")
    assert [(transfer.operation, transfer.key) for transfer, _ in diary.of("started")] == [
        ("HeadObject", "a"),
        ("ListObjectsV2", None),
        ("CopyObject", "b"),
        ("DeleteObject", "a"),
        ("DeleteObjects", None),
        ("HeadObject", "a"),
    ]
    assert [type(end.error) for _, end in diary.of("ended")] == [type(None)] * 5 + [NotFoundError]
    assert len(wire.proxy.requests()) == 6


def test_throttling_is_told_attempt_by_attempt(wire, diary):
    client = wire.client(verify="off")
    wire.put("k")
    rule = wire.proxy.add(Fault.slow_down(), method="GET", times=2)
    assert client.get_object(wire.bucket, "k").read() == b"data"
    assert rule.hits == 2
    retries = diary.of("retried")
    assert [retry.attempt for _, retry in retries] == [1, 2]
    assert {type(retry.error) for _, retry in retries} == {ThrottledError}
    assert {retry.error.key for _, retry in retries} == {"k"}
    ((_, end),) = diary.of("ended")
    assert (end.attempts, end.throttles, end.error) == (3, 2, None)
    assert len(wire.proxy.requests("GET")) == 3


def test_throttling_of_other_operations_is_told(wire, diary):
    client = wire.client()
    wire.put("k")
    wire.proxy.add(Fault.slow_down(), method="HEAD", times=1)
    wire.proxy.add(Fault.slow_down(), match=lambda request: "list-type" in request.query, times=1)
    client.head_object(wire.bucket, "k")
    assert [info.key for page in client.list_objects(wire.bucket, "k") for info in page.object_info] == ["k"]
    head, listing = [end for _, end in diary.of("ended")]
    assert (head.attempts, head.throttles) == (listing.attempts, listing.throttles) == (2, 1)
    assert [(each.operation, each.key) for each, _ in diary.of("retried")] == [
        ("HeadObject", "k"),
        ("ListObjectsV2", None),
    ]
    assert len(wire.proxy.requests()) == 4


def test_the_last_attempt_counts_as_well(wire, diary):
    client = wire.client()
    wire.proxy.add(Fault.slow_down(), method="PUT")
    with pytest.raises(ThrottledError):
        write(client, wire.bucket, "k", 10, wire.content)
    ((_, end),) = diary.of("ended")
    assert (end.attempts, end.throttles, end.nbytes) == (3, 3, 0)
    assert isinstance(end.error, ThrottledError)
    assert len(wire.proxy.requests("PUT")) == 3
    assert diary.of("progressed") == []


def test_a_retry_is_told_of_the_range_that_failed(wire, diary):
    client = wire.client(max_attempts=5)
    bucket, key = wire.stock(3 * PART)
    last = f"bytes={2 * PART}-"
    wire.proxy.add(
        Fault.slow_down(),
        match=lambda request: request.headers.get("range", "").startswith(last),
        times=2,
    )
    source = client.open_ranges(bucket, key)
    pending = [source.start(start, start + PART) for start in range(0, 3 * PART, PART)]
    assert b"".join(each.wait() for each in pending) == wire.content(3 * PART)
    attempts = {transfer.byte_range.start: end.attempts for transfer, end in diary.of("ended")}
    assert attempts == {0: 1, PART: 1, 2 * PART: 3}


@pytest.mark.parametrize("transfer", [None, Future()], ids=["unnamed", "wrapped"])
def test_a_retry_of_an_unknown_transfer_is_told_of_its_object(diary, transfer):
    observations = Observations()
    about = {"operation": "GetObject", "bucket": "b", "key": "k"}
    begun = observations.begin(get_object("b", "k"), None)
    begun.transfer = Future()
    observations.retried(**about, attempt=1, error=ThrottledError(), seconds=0, transfer=transfer)
    begun.end()
    observations.retried(**about, attempt=1, error=ThrottledError(), seconds=0, transfer=transfer)
    assert [event for event, _, _ in diary.events] == ["started", "retried", "ended"]


def test_a_cancelled_transfer_ends(wire, diary):
    client = wire.client()
    wire.proxy.add(Fault(latency=60), method="GET")
    pending = client.open_ranges(wire.bucket, "k").start(0, 10)
    pending.cancel()
    with pytest.raises(TransferCancelledError):
        pending.wait()
    ((_, end),) = diary.of("ended")
    assert isinstance(end.error, TransferCancelledError)


def test_a_failure_that_is_known_at_once_holds_no_buffer():
    observations = Observations()
    failed = Future()
    failed.set_exception(NotFoundError())

    def start(body):
        request = put_object("b", "k", options=PutOptions())
        return ObservedTransfer(failed, observations.begin(request, len(body))), len(body)

    body = bytearray(10)
    transfer, _ = start(memoryview(body))
    with pytest.raises(NotFoundError):
        transfer.result(0)
    body.append(0)


def test_what_cannot_start_ends(client, diary):
    transport = client._handle.get().transport
    transport.close()
    with pytest.raises(ValueError, match="closed"):
        transport.send(put_object("bucket", "k", options=PutOptions()), body=memoryview(b""))
    ((_, end),) = diary.of("ended")
    assert isinstance(end.error, ValueError)


def test_clients_begin_and_end_to_be_observed(client):
    write(client, "bucket", "k", 1, bytes)
    first, second = TransferObserver(), TransferObserver()
    runtime = client._handle.get()
    bare = runtime.transport
    with observe(first):
        assert runtime.transport is not bare
        add_observer(second)
    assert runtime.transport is not bare
    remove_observer(second)
    remove_observer(second)
    assert runtime.transport is bare


def test_who_is_told_of_the_start_is_told_of_the_end(client, diary):
    release = threading.Event()

    class Gate(TransferObserver):
        def started(self, transfer):
            remove_observer(diary)

        def ended(self, transfer, end):
            release.set()

    with observe(Gate()):
        write(client, "bucket", "k", 1, bytes)
    assert release.is_set()
    assert [event for event, _, _ in diary.events] == ["started", "progressed", "ended"]


def test_a_broken_observer_harms_nobody(client, diary, caplog):
    class Broken(TransferObserver):
        def __repr__(self):
            return "the broken one"

        def started(self, transfer):
            raise KeyError("mine")

        ended = None

    with observe(Broken()), caplog.at_level(logging.WARNING):
        for _ in range(3):
            write(client, "bucket", "k", 1, bytes)
    assert len(diary.of("ended")) == 3
    (record,) = caplog.records
    assert "the broken one" in record.getMessage()
    assert record.name == "s3torch.core.observers._listening"


def test_nobody_pays_when_nobody_listens(client):
    place = str(Path(observers.__file__).parent)
    called = []

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(place):
            called.append(frame.f_code.co_qualname)

    def use():
        runtime = client._handle.get()
        called.clear()
        write(client, "bucket", "k", 6 * MIB, bytes)
        client.get_object("bucket", "k").read()
        client.head_object("bucket", "k")
        list(client.list_objects("bucket"))
        runtime.close()
        return len(called)

    # Threads take the function that is set when they begin: those of the transport, too.
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        assert use() == 0
        client.close()
        with observe(TransferObserver()):
            assert use() > 0
        client.close()
        assert use() == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def test_a_forked_child_listens_anew(client, in_child, diary):
    def child():
        write(client, "bucket", "k", 1, bytes)
        heard = len(diary.events)
        remove_observer(diary)
        with observe(type(diary)()) as own:
            client.get_object("bucket", "k").read()
        return heard, len(own.events)

    write(client, "bucket", "k", 1, bytes)
    before = len(diary.events)
    assert in_child(child) == (before, 3)
    assert len(diary.events) == before


def test_a_retry_is_logged(wire, caplog):
    client = wire.client()
    wire.put("k")
    wire.proxy.add(Fault.slow_down(), method="GET", times=1)
    with caplog.at_level(logging.DEBUG, "s3torch"):
        client.get_object(wire.bucket, "k").read()
    texts = [record.getMessage() for record in caplog.records if "attempt" in record.getMessage()]
    assert len(texts) == 1
    assert f"GetObject s3://{wire.bucket}/k" in texts[0]
    assert "attempt 1 failed" in texts[0]
