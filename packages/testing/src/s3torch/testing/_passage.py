"""The way of one body through the proxy, and what goes wrong on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from s3torch.testing._faults import Break, Fault, Side
    from s3torch.testing._recording import Entry
    from s3torch.testing._wire import Framing, Wire

# How often a second a limited body moves on: often enough to look even, seldom enough to cost nothing.
_STEPS_PER_SECOND = 50


class Passage:
    """Passes a body on.

    Args:
        source: Where it comes from.
        target: Where it goes.
        side: Whether it belongs to the request or to the response.
        fault: What goes wrong with the request.
        entry: Where the bytes are counted, before they leave.
        interrupt: Makes an interruption happen; raises if the connection does not survive it.
    """

    def __init__(
        self,
        source: Wire,
        target: Wire,
        *,
        side: Side,
        fault: Fault,
        entry: Entry,
        interrupt: Callable[[Break], Awaitable[None]],
    ) -> None:
        self._source = source
        self._target = target
        self._side = side
        self._entry = entry
        self._interrupt = interrupt
        self._bandwidth = fault.bandwidth
        ahead = fault.interruption
        self._break = ahead if ahead is not None and ahead.side == side else None
        flip = fault.corruption
        self._flip = flip.index if flip is not None and flip.side == side else -1
        self._done = 0

    async def run(self, framing: Framing) -> None:
        """Passes the whole body."""
        begun = asyncio.get_running_loop().time()
        async for piece, is_content in self._source.body(framing):
            if not is_content:
                await self._target.send(piece)
                continue
            start = 0
            while start < len(piece):
                stop = start + self._room(len(piece) - start)
                if start == stop:
                    await self._break_here()
                    continue
                await self._pass(piece[start:stop])
                start = stop
                if self._bandwidth is not None:
                    passed = asyncio.get_running_loop().time() - begun
                    await asyncio.sleep(self._done / self._bandwidth - passed)

    def _room(self, available: int) -> int:
        if self._break is not None and self._break.after is not None:
            available = min(available, self._break.after - self._done)
        if self._bandwidth is not None:
            available = min(available, max(1, int(self._bandwidth / _STEPS_PER_SECOND)))
        return available

    async def _break_here(self) -> None:
        interruption, self._break = self._break, None
        if interruption is not None:
            await self._interrupt(interruption)

    async def _pass(self, part: memoryview) -> None:
        if 0 <= self._flip - self._done < len(part):
            part[self._flip - self._done] ^= 0xFF
        self._done += len(part)
        self._entry.count(self._side, len(part))
        await self._target.send(part)
