"""A server that answers from memory: what a benchmark of clients needs of S3, and as little work as possible.

It knows one bucket of objects, lists them, and sends them whole or in ranges. The first byte of an
object comes after a fixed time, for however many requests at once. Of what is uploaded it keeps the size, and
sends other bytes, unless it is told to keep all. Signatures and checksums are not checked.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from bisect import bisect_left, bisect_right
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HEAD_END = b"\r\n\r\n"
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_COPY_SOURCE = re.compile(rb"\r\nx-amz-copy-source: */?([^\r]+)", re.IGNORECASE)
_RECEIVE = 256 * 1024
_PAGE = 1000
_COMMON = (
    "Content-Type: application/octet-stream\r\n"
    "Accept-Ranges: bytes\r\n"
    "Last-Modified: Wed, 01 Jan 2025 00:00:00 GMT\r\n"
    'ETag: "0123456789abcdef0123456789abcdef"\r\n'
    "x-amz-request-id: 0123456789ABCDEF\r\n"
    "Server: answers\r\n"
)


@contextmanager
def start_answers(
    objects: Iterable[tuple[str, int, int]] = (), *, latency: float = 0, keep: bool = False
) -> Iterator[str]:
    """Runs the server in a process of its own and yields its URL.

    Args:
        objects: What keys start with, which a number of five digits follows, how many there are, and the
            bytes of each.
        latency: Seconds until the first byte of an object.
        keep: Whether what is uploaded is kept.
    """
    command = [sys.executable, __file__, json.dumps([list(objects), latency, keep])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout is not None else ""
            yield f"http://127.0.0.1:{int(line)}"
        finally:
            server.terminate()


class Request(NamedTuple):
    """What a client asks."""

    method: str
    key: str
    query: dict[str, list[str]]
    head: bytes

    @property
    def length(self) -> int:
        """How long the body is."""
        found = _LENGTH.search(self.head)
        return int(found[1]) if found else 0


class _Objects:
    """The answers."""

    def __init__(self, objects: Iterable[tuple[str, int, int]], *, keep: bool) -> None:
        self._sizes = {
            f"{prefix}{number:05}": size for prefix, count, size in objects for number in range(count)
        }
        # In order, or empty after a change.
        self._keys: list[str] = []
        self._parts: dict[str, int] = {}
        self._bytes = memoryview(os.urandom(max(self._sizes.values(), default=0)))
        self.keep = keep
        # The parts of what was uploaded, by number until the upload is complete.
        self._kept: dict[str, dict[int, bytearray]] = {}

    def answer(self, request: Request, uploaded: bytearray) -> tuple[bytes, memoryview]:
        """Returns the head of an answer, with a short body if there is one, and a long body."""
        if "list-type" in request.query:
            return self._listing(request.query), memoryview(b"")
        if request.method in {"GET", "HEAD"}:
            return self._content(request)
        if self.keep and request.method == "PUT":
            number = int(request.query.get("partNumber", ["0"])[0])
            self._kept.setdefault(request.key, {})[number] = uploaded
        return self._change(request), memoryview(b"")

    def _keep(self, key: str, size: int) -> None:
        self._sizes[key] = size
        self._keys = []

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        prefix = query.get("prefix", [""])[0]
        self._keys = self._keys or sorted(self._sizes)
        first = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after))
        most = min(int(query.get("max-keys", [_PAGE])[0]), _PAGE)
        keys = [key for key in self._keys[first : first + most + 1] if key.startswith(prefix)]
        page = keys[:most]
        more = len(keys) > most
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
            "<ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag>"
            f"<Size>{self._sizes[key]}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        return _xml(
            "ListBucketResult",
            f"<Name>bench</Name><Prefix>{prefix}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}",
        )

    def _content(self, request: Request) -> tuple[bytes, memoryview]:
        size = self._sizes.get(request.key)
        if size is None:
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", memoryview(b"")
        content = self._content_of(request.key, size)
        status, told, body = "200 OK", "", content[:size]
        found = _RANGE.search(request.head)
        if found is not None:
            first, last = int(found[1]), min(int(found[2]), size - 1)
            status, body = "206 Partial Content", content[first : last + 1]
            told = f"Content-Range: bytes {first}-{last}/{size}\r\n"
        length = size if request.method == "HEAD" else len(body)
        head = f"HTTP/1.1 {status}\r\n{_COMMON}{told}Content-Length: {length}\r\n\r\n"
        return head.encode(), memoryview(b"") if request.method == "HEAD" else body

    def _content_of(self, key: str, size: int) -> memoryview:
        parts = self._kept.get(key)
        if parts is not None:
            if len(parts) > 1:
                parts = self._kept[key] = {0: bytearray().join(parts[number] for number in sorted(parts))}
            return memoryview(next(iter(parts.values())))
        if size > len(self._bytes):
            self._bytes = memoryview(os.urandom(size))
        return self._bytes

    def _change(self, request: Request) -> bytes:
        key, query = request.key, request.query
        if request.method == "DELETE":
            self._sizes.pop(key, None)
            self._keys = []
            return b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"
        if "uploads" in query:
            self._parts[key] = 0
            named = f"<Bucket>bench</Bucket><Key>{key}</Key><UploadId>1</UploadId>"
            return _xml("InitiateMultipartUploadResult", named)
        if "partNumber" in query:
            self._parts[key] += request.length
        elif "uploadId" in query:
            self._keep(key, self._parts.pop(key))
            return _xml("CompleteMultipartUploadResult", f"<Key>{key}</Key><ETag>&quot;1&quot;</ETag>")
        elif (source := _COPY_SOURCE.search(request.head)) is not None:
            self._keep(key, self._sizes[unquote(source[1].decode()).partition("/")[2]])
            modified = "<LastModified>2025-01-01T00:00:00.000Z</LastModified>"
            return _xml("CopyObjectResult", f"{modified}<ETag>&quot;1&quot;</ETag>")
        else:
            self._keep(key, request.length)
        return b'HTTP/1.1 200 OK\r\nETag: "1"\r\nContent-Length: 0\r\n\r\n'


def _xml(root: str, inner: str) -> bytes:
    text = f'<{root} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</{root}>'
    body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class _Conversation:
    """One connection; requests come one after the other."""

    def __init__(self, objects: _Objects, latency: float, connected: socket.socket) -> None:
        self._objects = objects
        self._latency = latency
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_RECEIVE)
        self._pending = b""

    async def run(self) -> None:
        """Answers until the client leaves."""
        with self._socket:
            try:
                while (request := await self._request()) is not None:
                    head, body = self._objects.answer(request, await self._take_body(request))
                    if self._latency and request.method == "GET" and "list-type" not in request.query:
                        await asyncio.sleep(self._latency)
                    if len(body) < _RECEIVE:
                        await self._loop.sock_sendall(self._socket, head + body)
                    else:
                        await self._loop.sock_sendall(self._socket, head)
                        await self._loop.sock_sendall(self._socket, body)
            except ConnectionError:
                pass  # Clients break connections when they cancel.

    async def _request(self) -> Request | None:
        while _HEAD_END not in self._pending:
            data = await self._loop.sock_recv(self._socket, _RECEIVE)
            if not data:
                return None
            self._pending += data
        head, _, self._pending = self._pending.partition(_HEAD_END)
        method, target, _ = head.split(b" ", 2)
        url = urlsplit(target.decode())
        key = unquote(url.path.removeprefix("/bench").removeprefix("/"))
        return Request(method.decode(), key, parse_qs(url.query, keep_blank_values=True), head)

    async def _take_body(self, request: Request) -> bytearray:
        """Receives a body; what is returned is whole only if bodies are kept."""
        if b"100-continue" in request.head:
            await self._loop.sock_sendall(self._socket, b"HTTP/1.1 100 Continue\r\n\r\n")
        begin, self._pending = self._pending[: request.length], self._pending[request.length :]
        body = bytearray(request.length) if self._objects.keep else self._buffer
        body[: len(begin)] = begin
        received = len(begin)
        while received < request.length:
            room = memoryview(body)[received:] if self._objects.keep else memoryview(body)
            count = await self._loop.sock_recv_into(self._socket, room[: request.length - received])
            if not count:
                raise ConnectionResetError
            received += count
        return body


async def _serve(objects: _Objects, latency: float) -> None:
    loop = asyncio.get_running_loop()
    conversations: set[asyncio.Task[None]] = set()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        server.settimeout(0)
        print(server.getsockname()[1], flush=True)
        while True:
            connected, _ = await loop.sock_accept(server)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(_Conversation(objects, latency, connected).run())
            conversations.add(task)
            task.add_done_callback(conversations.discard)


if __name__ == "__main__":
    objects, latency, keep = json.loads(sys.argv[1])
    asyncio.run(_serve(_Objects(objects, keep=keep), latency))
