from __future__ import annotations

import io
import sys
import threading
from concurrent.futures import wait
from functools import partial
from pathlib import Path

import pytest

from s3torch.core.errors import TransportError, TruncatedError
from s3torch.core.ranges import MIB, ByteRange
from s3torch.core.requests import announced_length
from s3torch.core.transports.crt import CrtTransport
from s3torch.core.transports.crt._transfer import BodyStream

PATIENCE = 30


@pytest.fixture
def connect(connect_with):
    return partial(connect_with, CrtTransport)


def test_each_range_is_one_request(connect, stub, answer):
    size = 20 * MIB
    data = bytes(size)
    stub.will(answer(206, data, {"Content-Range": f"bytes 0-{size - 1}/{size}"}))
    transport = connect(stub.endpoint, part_size=5 * MIB)
    result = transport.get("bucket", "key", byte_range=ByteRange(0, size)).result(PATIENCE)
    assert result.length == size
    assert [request.headers["range"] for request in stub.requests] == [f"bytes=0-{size - 1}"]


def test_two_ports_of_one_host(connect, seaweedfs, moto):
    # A native client remembers the address of a host by its name only.
    for server in (seaweedfs, moto):
        bucket = server.create_bucket()
        transport = connect(server.endpoint, keys=(server.access_key, server.secret_key))
        body = memoryview(server.name.encode())
        transport.put(bucket, "key", body).result(PATIENCE)
        assert transport.get(bucket, "key").result(PATIENCE).data == body


def test_callbacks_run_on_a_thread_of_the_transport(connect, stub, answer):
    stub.will(*[answer(200, bytes(MIB))] * 8)
    transport = connect(stub.endpoint)
    names = set()
    transfers = [transport.get("bucket", "key") for _ in range(8)]
    for transfer in transfers:
        transfer.add_done_callback(lambda _: names.add(threading.current_thread().name))
    wait(transfers, PATIENCE)
    assert all(transfer.result(0).length == MIB for transfer in transfers)
    assert names


def test_body_stream_is_a_file():
    data = bytes(range(100))
    stream, like = BodyStream(memoryview(data)), io.BytesIO(data)
    for offset, whence in ((0, 0), (10, 0), (5, 1), (-5, 2), (0, 2), (0, 0)):
        assert stream.seek(offset, whence) == like.seek(offset, whence)
        got, expected = bytearray(30), bytearray(30)
        assert stream.readinto(got) == like.readinto(expected)
        assert got == expected
        assert stream.tell() == like.tell()
    stream.release()
    stream.seek(0)
    assert stream.readinto(bytearray(1)) == 0


@pytest.mark.parametrize(
    ("headers", "byte_range", "expected"),
    [
        ({"content-length": "7"}, None, 7),
        ({}, None, None),
        ({"content-range": "bytes 2-4/9", "content-length": "3"}, ByteRange(2, 5), 3),
        ({"content-range": "bytes 2-8/9", "content-length": "7"}, ByteRange(2, 50), 7),
        ({"content-length": "5"}, ByteRange(0, 5), 5),
    ],
)
def test_announced_length(headers, byte_range, expected):
    assert announced_length(headers, byte_range) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"content-range": "bytes 0-2/9"},
        {"content-range": "bytes 2-3/9"},
        {"content-range": "bytes 2-9/10"},
        {"content-length": "3"},
        {"content-length": "9"},
        {},
    ],
)
def test_answer_with_other_bytes(headers):
    with pytest.raises(TruncatedError):
        announced_length(headers, ByteRange(2, 5))


@pytest.mark.promise(8)
def test_without_awscrt_it_says_so_at_once(make_context, stub, monkeypatch):
    monkeypatch.setitem(sys.modules, "awscrt.s3", None)
    with pytest.raises(TransportError, match="needs awscrt.*pip install awscrt.*transport='http'"):
        CrtTransport(make_context(stub.endpoint))


@pytest.mark.parametrize("wire", ["crt"], indirect=True)
def test_a_forked_child_ends_no_native_client(wire, in_child):
    with wire.client() as client, client.put_object(wire.bucket, "k") as writer:
        writer.write(b"data")

    def native_threads():
        names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
        return sum(name.startswith("AwsEventLoop") for name in names)

    def child():
        counts = []
        for _ in range(4):
            with wire.client() as mine:
                assert mine.get_object(wire.bucket, "k").read() == b"data"
            counts.append(native_threads())
        return counts

    counts = in_child(child)
    assert counts[0] > 0
    assert set(counts) == {counts[0]}
