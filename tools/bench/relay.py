"""A line to a server that carries so many bytes per second at most, over all connections together."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 64 * 1024


class _Line:
    def __init__(self, upstream: str, bytes_per_second: float) -> None:
        self._upstream = urlsplit(upstream)
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relays one connection."""
        answers, requests = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        await asyncio.gather(
            self._pass(reader, requests, bounded=False), self._pass(answers, writer, bounded=True)
        )

    async def _pass(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, bounded: bool
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(_PIECE):
                if bounded:
                    now = time.monotonic()
                    self._free_at = max(now, self._free_at) + len(piece) / self._rate
                    await asyncio.sleep(self._free_at - now)
                target.write(piece)
                await target.drain()
            target.close()


@contextmanager
def bounded_line(upstream: str, bytes_per_second: float) -> Iterator[str]:
    """Yields the address of a line to a server."""
    loop = asyncio.new_event_loop()
    line = _Line(upstream, bytes_per_second)
    server = loop.run_until_complete(asyncio.start_server(line.connect, "127.0.0.1", 0))
    port = server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
