"""The client: threads, processes, pickles, and operations."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3torch.core import S3Client, S3ClientConfig, S3ReaderConstructor
from s3torch.core._memory import Memory
from s3torch.core.errors import ConfigurationError, ForkedProcessError, NotFoundError, S3Error
from s3torch.core.ranges import MIB
from s3torch.testing.faults import Fault

PART = 5 * MIB


def test_what_it_was_given(client):
    assert client.region == "us-east-1"
    assert client.endpoint is None
    assert client.s3client_config.transport == "memory"
    assert "us-east-1" in repr(client)
    assert S3Client().region is None
    assert S3Client("x", endpoint="http://h/").endpoint == "http://h"
    assert S3Client("x").s3client_config == S3ClientConfig()
    for name in ("region", "endpoint", "s3client_config", "user_agent_prefix"):
        with pytest.raises(AttributeError):
            setattr(client, name, "other")


@pytest.mark.parametrize("region", ["", 5, b"us-east-1"])
def test_a_region_is_a_string(region):
    with pytest.raises(ConfigurationError, match="region"):
        S3Client(region)


@pytest.mark.parametrize(
    ("bucket", "key"), [("", "k"), ("b", ""), (None, "k"), ("b", None), (b"b", "k"), (5, "k")]
)
def test_bucket_and_key_are_strings(client, bucket, key):
    calls = [
        client.get_object,
        client.put_object,
        client.head_object,
        client.delete_object,
        client.exists,
        lambda *place: client.copy_object(*place, "b", "k"),
        lambda *place: client.copy_object("b", "k", *place),
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="Bucket should be specified|bucket must be|key"):
            call(bucket, key)


def test_what_is_put_can_be_got_headed_listed_copied_and_deleted(client):
    with client.put_object("bucket", "a/ü +%20") as writer:
        writer.write(b"data")
    head = client.head_object("bucket", "a/ü +%20")
    (page,) = client.list_objects("bucket")
    (info,) = page.object_info
    assert (info.key, info.size, info.etag) == ("a/ü +%20", 4, head.etag)
    client.copy_object("bucket", "a/ü +%20", "bucket", "copy")
    with client.get_object("bucket", "copy") as reader:
        assert reader.read() == b"data"
    client.delete_object("bucket", "copy")
    client.delete_object("bucket", "copy")
    assert (client.exists("bucket", "a/ü +%20"), client.exists("bucket", "copy")) == (True, False)
    with pytest.raises(NotFoundError):
        client.copy_object("bucket", "copy", "bucket", "again")


@pytest.mark.promise(9)
@pytest.mark.parametrize("keys", ["some-key", b"some-key"], ids=repr)
def test_one_key_is_not_taken_for_many(client, store, keys):
    store.put("bucket", "s", b"")
    with pytest.raises(ConfigurationError, match="keys"):
        client.delete_objects("bucket", keys)
    assert client.exists("bucket", "s")


def test_reader_constructors(client, store):
    store.put("bucket", "k", b"data")
    made = []

    def constructor(source):
        made.append((source.bucket, source.key))
        return S3ReaderConstructor.default()(source)

    assert client.get_object("bucket", "k", reader_constructor=constructor).read() == b"data"
    assert made == [("bucket", "k")]
    name = S3ReaderConstructor.get_reader_type_string
    assert name(None) == name(S3ReaderConstructor.sequential()) == name(S3ReaderConstructor.default())
    assert name(None) == "sequential"
    assert name(S3ReaderConstructor.range_based(5)) == "range_based"
    assert name(constructor) == "unknown"
    stream = pickle.loads(pickle.dumps(S3ReaderConstructor.range_based(5)))
    assert client.get_object("bucket", "k", reader_constructor=stream).read(2) == b"da"


def test_a_closed_client_connects_again(client, store):
    store.put("bucket", "k", b"data")
    for _ in range(3):
        assert client.get_object("bucket", "k").read() == b"data"
        client.close()
        client.close()
    with client as same:
        assert same is client
        assert same.exists("bucket", "k")
    assert client.exists("bucket", "k")


# What follows is about the wire, so a real server and both native transports.


@pytest.mark.promise(5)
def test_it_can_be_pickled_before_and_after_use(wire):
    wire.put("k", b"data")
    client = wire.client()
    reader = client.get_object(wire.bucket, "k")
    for _ in range(2):
        packed = pickle.dumps((client, client.get_object(wire.bucket, "k"), client.list_objects(wire.bucket)))
        assert wire.server.secret_key.encode() not in packed
        assert wire.server.access_key.encode() not in packed
        again, unread, listing = pickle.loads(packed)
        with again:
            assert again.get_object(wire.bucket, "k").read() == unread.read() == b"data"
            assert [info.key for page in listing for info in page.object_info] == ["k"]
        assert reader.read() in {b"data", b""}


def test_many_threads_share_one_client(wire):
    wire.put("k", bytes(100_000))
    client = wire.client()
    barrier = threading.Barrier(32)

    def work(number):
        barrier.wait()
        with client.put_object(wire.bucket, f"k{number}") as writer:
            writer.write(bytes([number]) * 1000)
        assert client.get_object(wire.bucket, "k").read() == bytes(100_000)
        return client.get_object(wire.bucket, f"k{number}").read()

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(32))) == [bytes([number]) * 1000 for number in range(32)]


@pytest.mark.promise(4)
def test_parent_and_children_go_on_after_a_fork(wire, in_child):
    data = wire.content(2 * PART + 1)
    bucket, key = wire.stock(len(data))
    client = wire.client()
    inherited = client.get_object(bucket, key)
    assert inherited.read(10) == data[:10]
    unread = client.get_object(bucket, key)
    writer = client.put_object(wire.bucket, "k")
    writer.write(data)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            assert client.get_object(bucket, key).read() == data

    thread = threading.Thread(target=busy)
    thread.start()

    def child():
        for call in (inherited.read, inherited.tell, lambda: inherited.seek(0), writer.close, writer.abort):
            with pytest.raises(ForkedProcessError):
                call()
        inherited.close()
        with client.put_object(wire.bucket, "of-the-child") as mine:
            mine.write(unread.read())
        found = client.get_object(bucket, key).read() == data
        client.close()
        return os.getpid(), found

    try:
        for _ in range(3):
            pid, found = in_child(child)
            assert found
            assert pid != os.getpid()
    finally:
        stop.set()
        thread.join()
    assert inherited.read() == data[10:]
    writer.close()
    assert wire.get("k") == wire.get("of-the-child") == data
    assert wire.uploads() == []


def test_memory_comes_back_when_all_is_closed(wire):
    client = wire.client(memory_limit=40 * MIB)
    budget = Memory.of_this_process(40 * MIB).budget
    bucket, key = wire.stock(2 * PART + 1)
    wire.proxy.add(Fault.error(403, "AccessDenied"), method="GET", skip=1, times=1)
    with pytest.raises(S3Error), client.get_object(bucket, key) as failing:
        failing.read()
    reader = client.get_object(bucket, key)
    reader.read(10)
    reader.close()
    with client.put_object(wire.bucket, "k") as writer:
        writer.write(bytes(PART + 1))
    assert budget.used == 0
