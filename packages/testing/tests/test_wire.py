from __future__ import annotations

import asyncio
import socket

import pytest

from s3torch.testing import _wire
from s3torch.testing._wire import Head, Wire, WireError

CHUNKED = b"".join(b"%x;ext=1\r\n%b\r\n" % (size, b"x" * size) for size in (1, 7, 40, 3, 100)) + (
    b"0\r\ntrailer: 1\r\n\r\n"
)


def read(sent, framing, *, heads=0):
    """Reads heads and a body from a connection that is closed behind what was sent."""

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _ = listener.accept()
        with theirs, ours:
            wire = Wire(asyncio.get_running_loop(), ours)
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)
            found = [await wire.head() for _ in range(heads)]
            pieces = [(bytes(piece), content) async for piece, content in wire.body(framing)]
            return found, pieces

    return asyncio.run(main())


@pytest.mark.parametrize("size", range(40, 72))
def test_bodies_pass_whole_wherever_the_buffer_ends(size, monkeypatch):
    monkeypatch.setattr(_wire, "_BUFFER", size)
    _, pieces = read(CHUNKED, "chunked")
    assert b"".join(piece for piece, _ in pieces) == CHUNKED
    assert b"".join(piece for piece, is_content in pieces if is_content) == b"x" * 151
    head = b"GET / HTTP/1.1\r\nHost: abcdefgh\r\n\r\n"
    heads, pieces = read(head + head + b"body" * 30, 120, heads=2)
    assert [found.raw for found in heads] == [head, head]
    assert b"".join(piece for piece, _ in pieces) == b"body" * 30


@pytest.mark.parametrize(
    ("sent", "framing", "heads"),
    [
        (b"short", 6, 0),
        (b"5\r\nhel", "chunked", 0),
        (b"five\r\nhello\r\n", "chunked", 0),
        (b"GET / HTTP/1.1\r\nHo", 0, 1),
        (b"nonsense\r\n\r\n", 0, 1),
        (b"GET / HTTP/1.1\r\nHost: " + b"x" * 300_000, 0, 1),
    ],
)
def test_what_is_not_http_is_refused(sent, framing, heads):
    with pytest.raises(WireError):
        read(sent, framing, heads=heads)


def test_a_connection_may_end_before_a_head():
    assert read(b"", 0, heads=1) == ([None], [])


@pytest.mark.parametrize(
    ("head", "method", "framing"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "GET", 5),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD", 0),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "DELETE", 0),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "GET", 0),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n", "GET", "chunked"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "GET", "to the end"),
    ],
)
def test_where_a_body_ends(head, method, framing):
    assert Head.parse(head).response_body(method) == framing
