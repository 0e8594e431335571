"""The faults, one by one."""

from __future__ import annotations

import http.client
import socket
import time

import pytest
from botocore.exceptions import ClientError

from s3torch.core.ranges import KIB, MIB
from s3torch.testing import Fault, FaultProxy


def test_latency_comes_before_the_first_byte(proxy, connection, get, content):
    proxy.add(Fault(latency=0.2))
    begun = time.monotonic()
    assert get(connection)[1] == content
    assert time.monotonic() - begun >= 0.2


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_bandwidth_is_limited_in_both_directions(method, proxy, connection, upstream, content):
    proxy.add(Fault(bandwidth=400_000))
    begun = time.monotonic()
    connection.request(method, "/bucket/key", body=content if method == "PUT" else None)
    body = connection.getresponse().read()
    assert time.monotonic() - begun >= len(content) / 400_000 * 0.9
    assert body == (b"" if method == "PUT" else content)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.slow_down(), 503, b"SlowDown"),
        (Fault.internal_error(), 500, b"InternalError"),
        (Fault.expired_token(), 400, b"ExpiredToken"),
        (Fault.error(418, "Tea & more"), 418, b"Tea &amp; more"),
    ],
)
def test_errors_are_answered_in_place_of_the_server(
    fault, status, code, proxy, connection, upstream, get, content
):
    proxy.add(fault | Fault.header("Retry-After", "7"), times=2)
    for method, body in (("GET", None), ("PUT", content)):
        connection.request(method, "/bucket/key", body=body)
        response = connection.getresponse()
        assert (response.status, response.getheader("Retry-After")) == (status, "7")
        assert b"<Code>%b</Code>" % code in response.read()
    assert not upstream.seen
    assert get(connection)[1] == content
    assert [request.status for request in proxy.requests()] == [status, status, 200]


def test_an_error_for_a_head_has_no_body(proxy, connection, get, content):
    proxy.add(Fault.slow_down(), times=1)
    assert get(connection, method="HEAD")[1] == b""
    assert get(connection)[1] == content


def test_an_answer_in_place_of_the_server(proxy, connection, upstream, get, content):
    proxy.add(Fault.answer("<Session/>"), times=1)
    response, body = get(connection)
    assert (response.status, body) == (200, b"<Session/>")
    assert not upstream.seen
    assert get(connection)[1] == content


def test_an_error_comes_instead_of_100_continue(proxy, connection):
    proxy.add(Fault.slow_down())
    with socket.create_connection(("127.0.0.1", connection.port), timeout=60) as client:
        client.sendall(
            b"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 503")


def test_a_reset_loses_an_answer(proxy, connection, upstream, get, content):
    proxy.add(Fault.reset(), times=1)
    with pytest.raises(ConnectionResetError):
        get(connection)
    assert len(upstream.seen) == 1
    assert proxy.requests()[0].status is None
    connection.close()
    assert get(connection)[1] == content


def test_a_reset_keeps_a_request_from_the_server(proxy, connection, upstream, get):
    proxy.add(Fault.reset(side="request"))
    with pytest.raises(ConnectionResetError):
        get(connection)
    assert not upstream.seen


@pytest.mark.parametrize("key", ["plain", "chunked"])
def test_a_reset_comes_after_that_many_bytes(key, proxy, connection, content):
    proxy.add(Fault.reset(after=50_000))
    connection.request("GET", f"/bucket/{key}")
    response = connection.getresponse()
    assert response.read(50_000) == content[:50_000]
    with pytest.raises(ConnectionResetError):
        response.read(1)
    assert proxy.bytes_sent == 50_000


def test_a_truncated_body_ends_orderly(proxy, connection, get, content):
    proxy.add(Fault.truncate(after=1))
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(connection)
    assert caught.value.partial == content[:1]


def test_a_body_that_is_not_longer_passes_whole(proxy, connection, get, content):
    proxy.add(Fault.truncate(after=len(content)))
    assert get(connection)[1] == content
    assert get(connection)[1] == content


@pytest.mark.parametrize(("side", "seen"), [("request", 0), ("response", 1)])
def test_a_dropped_request_gets_no_answer(side, seen, proxy, connection, upstream, get):
    proxy.add(Fault.drop(side=side))
    with pytest.raises(http.client.RemoteDisconnected):
        get(connection)
    assert len(upstream.seen) == seen


@pytest.mark.parametrize(
    "fault", [Fault.reset(after=MIB, side="request"), Fault.truncate(MIB, side="request")]
)
def test_a_broken_upload_never_completes(fault, proxy, connection, upstream):
    proxy.add(fault)
    with pytest.raises(OSError):  # noqa: PT011 - reset, broken pipe or no answer, here or there
        connection.request("PUT", "/bucket/key", body=bytes(64 * MIB))
        connection.getresponse()
    assert not upstream.bodies
    assert proxy.bytes_received == MIB


@pytest.mark.parametrize("after", [None, 0, 1000])
def test_a_stalled_response_goes_on_later(after, proxy, connection, content):
    proxy.add(Fault.stall(0.3, after=after), times=1)
    begun = time.monotonic()
    connection.request("GET", "/bucket/plain")
    response = connection.getresponse()
    assert (time.monotonic() - begun >= 0.3) is (after is None)
    assert response.read(after or 0) == content[: after or 0]
    assert response.read() == content[after or 0 :]
    assert time.monotonic() - begun >= 0.3


def test_a_stalled_upload_goes_on_later(proxy, connection, upstream, content):
    proxy.add(Fault.stall(0.3, after=10, side="request"))
    begun = time.monotonic()
    connection.request("PUT", "/bucket/key", body=content)
    assert connection.getresponse().status == 200
    assert time.monotonic() - begun >= 0.3
    assert upstream.bodies == [content]


def test_closing_the_proxy_ends_a_stall(upstream):
    with FaultProxy(f"http://127.0.0.1:{upstream.server_port}") as proxy:
        proxy.add(Fault.stall(60))
        client = socket.create_connection(("127.0.0.1", int(proxy.endpoint.rpartition(":")[2])), timeout=60)
        client.sendall(b"GET /bucket/plain HTTP/1.1\r\nHost: x\r\n\r\n")
        while not upstream.seen:
            time.sleep(0.01)
        begun = time.monotonic()
    assert client.recv(1) == b""
    client.close()
    assert time.monotonic() - begun < 5
    proxy.close()


@pytest.mark.parametrize("key", ["plain", "chunked"])
def test_one_byte_of_a_response_is_flipped(key, proxy, connection, get, content):
    proxy.add(Fault.flip(70_000))
    body = get(connection, key)[1]
    assert len(body) == len(content)
    assert [i for i in range(len(content)) if body[i] != content[i]] == [70_000]


def test_one_byte_of_a_request_is_flipped(proxy, connection, upstream):
    proxy.add(Fault.flip(3, side="request"))
    connection.request("PUT", "/bucket/key", body=b"abcdef")
    connection.getresponse().read()
    assert upstream.bodies == [b"abc\x9bef"]


def test_headers_of_a_response_are_replaced_added_and_removed(proxy, connection, get, content):
    proxy.add(Fault(headers={"etag": '"wrong"', "x-amz-new": "1", "Server": None}))
    response, body = get(connection)
    assert response.headers.get_all("ETag") == ['"wrong"']
    assert (response.getheader("x-amz-new"), response.getheader("Server")) == ("1", None)
    assert body == content
    assert proxy.requests()[0].response_headers["etag"] == '"wrong"'


def test_a_damaged_upload_is_noticed_by_a_server_that_verifies(seaweedfs, fault_proxy):
    proxy = fault_proxy(seaweedfs)
    bucket = seaweedfs.create_bucket()
    client = seaweedfs.at(proxy.endpoint).client()
    proxy.add(Fault.flip(5 * KIB, side="request"), method="PUT")
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket=bucket, Key="key", Body=bytes(100 * KIB), ChecksumAlgorithm="CRC32")
    assert caught.value.response["Error"]["Code"] in ("BadDigest", "XAmzContentSHA256Mismatch")
    client.close()
