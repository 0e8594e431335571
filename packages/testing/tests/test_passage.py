"""What passes the fault proxy unharmed, and what is noted of it."""

from __future__ import annotations

import http.client
import os
import socket
import threading
import time

import pytest

from s3torch.core.ranges import MIB


@pytest.mark.parametrize("key", ["plain", "chunked", "endless"])
def test_every_kind_of_body_passes_whole_and_is_counted(key, proxy, connection, get, content):
    response, body = get(connection, key)
    assert (response.status, body) == (200, content)
    (request,) = proxy.requests()
    assert (request.method, request.bucket, request.key, request.status) == ("GET", "bucket", key, 200)
    assert (request.request_bytes, request.response_bytes) == (0, len(content))
    assert proxy.bytes_sent == len(content)


def test_a_connection_is_used_again_as_long_as_both_sides_want(proxy, connection, get):
    get(connection)
    first = connection.sock
    get(connection, "chunked")
    assert connection.sock is first
    get(connection, "endless")
    assert connection.sock is None
    assert len(proxy.requests()) == 3


def test_a_head_has_no_body(proxy, connection, get, content):
    response, body = get(connection, method="HEAD")
    assert (response.getheader("Content-Length"), body) == (str(len(content)), b"")
    assert get(connection)[1] == content
    assert [request.response_bytes for request in proxy.requests()] == [0, len(content)]


@pytest.mark.parametrize("chunked", [False, True])
def test_uploads_pass_whole_and_are_counted(chunked, proxy, connection, upstream, content):
    body = (content[i : i + 999] for i in range(0, len(content), 999)) if chunked else content
    headers = {} if chunked else {"Content-Length": str(len(content))}
    connection.request("PUT", "/bucket/key", body=body, headers=headers, encode_chunked=chunked)
    assert connection.getresponse().read() == b""
    assert upstream.bodies == [content]
    assert proxy.requests()[0].request_bytes == proxy.bytes_received == len(content)


def test_a_client_that_expects_100_is_told_to_continue(proxy, connection, upstream):
    with socket.create_connection(("127.0.0.1", connection.port), timeout=60) as client:
        client.sendall(
            b"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
        )
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert upstream.bodies == [b"hello"]
    assert proxy.requests()[0].status == 200


def test_an_answer_that_comes_before_the_body_was_sent_arrives(proxy, connection):
    size = 64 * MIB
    with socket.create_connection(("127.0.0.1", connection.port), timeout=60) as client:
        client.sendall(b"PUT /bucket/refused HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\nx" % size)
        assert client.recv(1000).startswith(b"HTTP/1.1 403")
    assert proxy.requests()[0].status == 403


def test_the_host_and_all_other_headers_pass_unchanged(proxy, connection, get):
    get(connection, "a%20b%2Bc/d?versionId=x%26y&acl", Range="bytes=0-9")
    (request,) = proxy.requests()
    assert request.headers["host"] == proxy.endpoint.removeprefix("http://")
    assert request.headers["range"] == "bytes=0-9"
    assert request.key == "a b+c/d"
    assert request.query == {"versionId": "x&y", "acl": ""}


def test_requests_are_found_by_method_and_key_and_forgotten_on_demand(proxy, connection, get):
    before = time.monotonic()
    for key in ("one", "two", "onetwo"):
        get(connection, key)
    get(connection, "one", method="HEAD")
    assert [request.key for request in proxy.requests("get")] == ["one", "two", "onetwo"]
    assert [request.method for request in proxy.requests(key="one")] == ["GET", "GET", "HEAD"]
    assert not proxy.requests(key="bucket")
    assert before < proxy.requests()[0].started < time.monotonic()
    proxy.clear()
    assert (proxy.requests(), proxy.bytes_sent) == ([], 0)


def test_counts_are_exact_with_many_connections(proxy, connection, get, content):
    def work():
        own = http.client.HTTPConnection("127.0.0.1", connection.port, timeout=30)
        for _ in range(10):
            assert get(own)[1] == content
        own.close()

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(proxy.requests("GET")) == 160
    assert proxy.bytes_sent == 160 * len(content)


def test_signatures_stay_valid_and_large_bodies_pass(s3_server, bucket, fault_proxy):
    proxy = fault_proxy(s3_server)
    client = s3_server.at(proxy.endpoint).client()
    body = os.urandom(5 * MIB + 17)
    client.put_object(Bucket=bucket, Key="a key+ü", Body=body, ChecksumAlgorithm="CRC32")
    assert client.get_object(Bucket=bucket, Key="a key+ü")["Body"].read() == body
    assert [request.key for request in proxy.requests()] == ["a key+ü"] * 2
    assert proxy.bytes_sent == len(body)
    client.close()
