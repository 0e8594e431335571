"""HTTP/1.1 as a proxy needs it: heads and bodies that pass unchanged through one reused buffer."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from s3torch.core.ranges import KIB

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

_BUFFER = 256 * KIB
_DRAIN_TIMEOUT = 1.0
# Closing with this option sends a reset instead of an orderly end.
_NO_LINGER = struct.pack("ii", 1, 0)

Framing = int | Literal["chunked", "to the end"]
"""Where a body ends: after so many bytes, with its last chunk, or with the connection."""


class WireError(ConnectionError):
    """The peer has gone, or does not speak HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a request or a response.

    Attributes:
        raw: The bytes, up to and with the empty line.
        words: The words of the first line.
        headers: The headers, with names in lower case.
    """

    raw: bytes
    words: list[str]
    headers: dict[str, str]

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """Reads the lines."""
        first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        words = first.split(" ", 2)
        if len(words) < 2:
            raise WireError(f"not HTTP: {first[:80]!r}")
        return cls(raw, words, headers)

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.words[1])

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection serves another request after this one."""
        return "HTTP/1.1" in self.words and "close" not in self.headers.get("connection", "").lower()

    def request_body(self) -> Framing:
        """Returns where the body of a request ends."""
        return self._framing(otherwise=0)

    def response_body(self, method: str) -> Framing:
        """Returns where the body of the response to such a request ends."""
        if method == "HEAD" or self.status in (204, 304):
            return 0
        return self._framing(otherwise="to the end")

    def _framing(self, *, otherwise: Framing) -> Framing:
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            return "chunked"
        return int(self.headers["content-length"]) if "content-length" in self.headers else otherwise

    def with_headers(self, changes: Mapping[str, str | None]) -> bytes:
        """Returns the bytes with headers replaced or added, or removed where the value is ``None``."""
        changed = {name.lower() for name in changes}
        first, *lines = self.raw.rstrip(b"\r\n").split(b"\r\n")
        kept = [
            line for line in lines if line.partition(b":")[0].strip().lower().decode("latin-1") not in changed
        ]
        added = [f"{n}: {v}".encode("latin-1") for n, v in changes.items() if v is not None]
        return b"\r\n".join([first, *kept, *added, b"", b""])


class Wire:
    """One end of a connection, read through a buffer of fixed size.

    What ``body`` yields lies in that buffer and is valid until the next read.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        connection.setblocking(False)  # noqa: FBT003 - the name of the method says it
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._loop = loop
        self._socket = connection
        self._storage = bytearray(_BUFFER)
        self._buffer = memoryview(self._storage)
        self._start = self._stop = 0

    async def head(self) -> Head | None:
        """Reads a head; ``None`` if the connection ends before it begins."""
        raw = await self._through(b"\r\n\r\n")
        return Head.parse(raw) if raw else None

    async def body(self, framing: Framing) -> AsyncIterator[tuple[memoryview, bool]]:
        """Reads a body piece by piece; tells of each whether it is content or belongs to the framing."""
        if framing == "to the end":
            while self._start < self._stop or await self._fill():
                yield self._take(_BUFFER), True
        elif framing == "chunked":
            async for chunk in self._chunks():
                yield chunk
        else:
            async for piece in self._bytes(framing):
                yield piece, True

    async def send(self, data: memoryview | bytes) -> None:
        """Sends all of it."""
        await self._loop.sock_sendall(self._socket, data)

    def is_stale(self) -> bool:
        """Tells whether an idle connection has been closed by the peer, or has sent what nobody asked for."""
        if self._start < self._stop:
            return True
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    def reset_on_close(self) -> None:
        """Makes ``close`` end the connection with a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)

    async def finish(self) -> None:
        """Ends the connection so that the peer gets what was sent to it, although it is still sending."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(_DRAIN_TIMEOUT):
                while await self._loop.sock_recv_into(self._socket, self._buffer):
                    pass
        except (OSError, TimeoutError):
            pass

    def close(self) -> None:
        """Closes the connection."""
        self._socket.close()

    async def _chunks(self) -> AsyncIterator[tuple[memoryview, bool]]:
        size = -1
        while size:
            line = await self._through(b"\r\n")
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError as exc:
                raise WireError(f"not the size of a chunk: {line[:80]!r}") from exc
            yield memoryview(line), False
            async for piece in self._bytes(size):
                yield piece, True
            if size:
                yield memoryview(await self._through(b"\r\n")), False
        while True:  # The trailers, and the empty line.
            line = await self._through(b"\r\n")
            yield memoryview(line), False
            if line in (b"\r\n", b""):
                return

    async def _bytes(self, count: int) -> AsyncIterator[memoryview]:
        while count:
            if self._start == self._stop and not await self._fill():
                raise WireError(f"the connection ended {count} bytes too early")
            piece = self._take(count)
            count -= len(piece)
            yield piece

    async def _through(self, end: bytes) -> bytes:
        """Reads up to and with some bytes; none at all if the connection ends first."""
        while (found := self._storage.find(end, self._start, self._stop)) < 0:
            if not await self._fill():
                if self._start < self._stop:
                    raise WireError("the connection ended within a line")
                return b""
        return bytes(self._take(found + len(end) - self._start))

    def _take(self, most: int) -> memoryview:
        piece = self._buffer[self._start : min(self._stop, self._start + most)]
        self._start += len(piece)
        return piece

    async def _fill(self) -> bool:
        if self._start == self._stop:
            self._start = self._stop = 0
        elif self._stop == len(self._buffer):
            kept = self._stop - self._start
            if kept == len(self._buffer):
                raise WireError("a head does not fit into the buffer")
            self._buffer[:kept] = bytes(self._buffer[self._start : self._stop])
            self._start, self._stop = 0, kept
        try:
            count = await self._loop.sock_recv_into(self._socket, self._buffer[self._stop :])
        except OSError as exc:
            raise WireError("the connection broke") from exc
        self._stop += count
        return count > 0
