"""Where heads and bodies begin and end, and what is no HTTP."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading

import pytest

from s3torch.testing import FaultProxy, _relay

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def behind():
    """A function that puts a proxy before a server that answers with these bytes, and then closes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        threads = []

        def serve(answers):
            with contextlib.suppress(OSError):  # The listener is closed where nobody connects.
                connection, _ = listener.accept()
                with connection:
                    for answer in answers:
                        connection.recv(10_000)
                        connection.sendall(answer)

        def start(*answers):
            threads.append(threading.Thread(target=serve, args=(answers,)))
            threads[-1].start()
            return stack.enter_context(FaultProxy(f"http://127.0.0.1:{listener.getsockname()[1]}"))

        yield start
        listener.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join()


@pytest.fixture
def connect():
    connections = []

    def open_connection(proxy):
        connections.append(http.client.HTTPConnection(proxy.endpoint.removeprefix("http://"), timeout=60))
        return connections[-1]

    yield open_connection
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_bodies_pass_whole_wherever_the_buffer_ends(size, monkeypatch, connection, upstream, get, content):
    monkeypatch.setattr(_relay, "_BUFFER", size)
    for key in ("plain", "chunked", "endless"):
        assert get(connection, key)[1] == content
    for chunked in (False, True):
        body = [content[:-5], content[-5:]] if chunked else content
        connection.request("PUT", "/bucket/key", body=body, encode_chunked=chunked)
        connection.getresponse().read()
    assert upstream.bodies == [content, content]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nServer: " + b"x" * 300_000,
        b"",
    ],
    ids=["short", "half a chunk", "no chunk", "half a head", "nonsense", "a head without end", "nothing"],
)
def test_an_answer_that_is_not_http_ends_the_connection(answer, behind, connect, get):
    proxy = behind(answer)
    with pytest.raises((http.client.HTTPException, ConnectionResetError)):
        get(connect(proxy))
    assert len(proxy.requests()) == 1
    proxy.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHo",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 300_000,
        b"",
    ],
    ids=["half a head", "nonsense", "a head without end", "nothing"],
)
def test_a_request_that_is_not_http_ends_the_connection(sent, behind):
    proxy = behind()
    port = int(proxy.endpoint.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert proxy.requests() == []
    proxy.close()


@pytest.mark.parametrize(
    ("answer", "method", "body"),
    [
        (HELLO, "GET", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HEAD", b""),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "DELETE", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", b""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "GET", b"hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, "GET", b"hello"),
    ],
    ids=["length", "HEAD", "chunked HEAD", "204", "304", "chunked", "100"],
)
def test_another_request_follows_on_the_same_connection(answer, method, body, behind, connect, get):
    proxy = behind(answer, HELLO)
    connection = connect(proxy)
    assert get(connection, method=method)[1] == body
    first = connection.sock
    assert get(connection)[1] == b"hello"
    assert connection.sock is first


def test_a_body_without_an_end_ends_with_the_connection(behind, connect, get):
    proxy = behind(b"HTTP/1.1 200 OK\r\n\r\nhello")
    connection = connect(proxy)
    assert get(connection)[1] == b"hello"
    assert connection.sock is None


def test_trailers_pass(behind, connect):
    chunks = b"5\r\nhello\r\n0\r\nx-Trailer: t\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    proxy = behind(head + chunks)
    with socket.create_connection(("127.0.0.1", connect(proxy).port), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        received = b""
        while data := client.recv(1000):
            received += data
            if received.endswith(b"\r\n\r\n") and b"\r\n0\r\n" in received:
                break
    assert received == head + chunks
