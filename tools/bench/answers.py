"""A server that answers from memory: what a benchmark of clients needs of S3, and as little work as possible.

It knows one bucket of equal objects, lists them, and sends them whole or in ranges. The first byte of an
object comes after a fixed time, for however many requests at once. Signatures are not checked.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD_END = b"\r\n\r\n"
_RANGE = re.compile(rb"\r\nrange: *bytes=(\d+)-(\d+)", re.IGNORECASE)
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
def start_answers(*, prefix: str, count: int, size: int, latency: float = 0) -> Iterator[str]:
    """Runs the server in a process of its own and yields its URL.

    Args:
        prefix: What the keys start with; a number of five digits follows.
        count: How many objects there are.
        size: The bytes of each.
        latency: Seconds until the first byte of an object.
    """
    command = [sys.executable, __file__, prefix, str(count), str(size), str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout is not None else ""
            yield f"http://127.0.0.1:{int(line)}"
        finally:
            server.terminate()


class _Objects:
    """The answers."""

    def __init__(self, prefix: str, count: int, size: int) -> None:
        self._keys = [f"{prefix}{number:05}" for number in range(count)]
        self._body = os.urandom(size)
        self._whole = f"HTTP/1.1 200 OK\r\n{_COMMON}Content-Length: {size}\r\n\r\n".encode()

    def listing(self, target: str) -> bytes:
        """Answers a ListObjectsV2 request."""
        query = parse_qs(urlsplit(target).query)
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        prefix = query.get("prefix", [""])[0]
        keys = [key for key in self._keys if key.startswith(prefix) and key > after]
        page = keys[: min(int(query.get("max-keys", [_PAGE])[0]), _PAGE)]
        more = len(keys) > len(page)
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        entries = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2025-01-01T00:00:00.000Z</LastModified>"
            "<ETag>&quot;0123456789abcdef0123456789abcdef&quot;</ETag>"
            f"<Size>{len(self._body)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key in page
        )
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bench</Name><Prefix>{prefix}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>1000</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{entries}</ListBucketResult>"
        ).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    def content(self, request: bytes) -> bytes:
        """Answers a GetObject or HeadObject request."""
        found = _RANGE.search(request)
        if found is None:
            return self._whole + (b"" if request.startswith(b"HEAD") else self._body)
        size = len(self._body)
        first, last = int(found[1]), min(int(found[2]), size - 1)
        head = (
            f"HTTP/1.1 206 Partial Content\r\n{_COMMON}Content-Length: {last + 1 - first}\r\n"
            f"Content-Range: bytes {first}-{last}/{size}\r\n\r\n"
        )
        return head.encode() + self._body[first : last + 1]


class _Conversation(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self, objects: _Objects, latency: float) -> None:
        self._objects = objects
        self._latency = latency
        self._pending = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while _HEAD_END in self._pending:
            request, _, self._pending = self._pending.partition(_HEAD_END)
            target = request.split(b" ", 2)[1].decode()
            if "list-type=2" in target:
                self._transport.write(self._objects.listing(target))
                continue
            answer = self._objects.content(request)
            if self._latency:
                asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
            else:
                self._transport.write(answer)


async def _serve(objects: _Objects, latency: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Conversation(objects, latency), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(_Objects(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), float(sys.argv[4])))
