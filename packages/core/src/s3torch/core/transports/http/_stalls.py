"""When a call on a socket has taken too long."""

from __future__ import annotations

import math
import time

# How often a call that makes no way comes back: a send looks then whether there is an answer already.
_TICK_SECONDS = 1.0
# The kernel keeps time less exactly than this side counts.
_NEARLY = 0.999


class StallTimer:
    """Ends what takes too long: nothing moves, a head does not come to its end, bytes come too slowly.

    Args:
        timeout: Seconds in which no byte moves, or a head is not whole.
        low_speed_limit: Bytes a second that have to move, on average; 0 for any number.
        low_speed_time: Seconds over which that is measured.

    Attributes:
        tick: Seconds after which a call that waits in vain has to tell.
    """

    def __init__(self, timeout: float, low_speed_limit: int = 0, low_speed_time: float = math.inf) -> None:
        self._timeout = timeout
        self._limit, self._seconds = low_speed_limit, low_speed_time if low_speed_limit else math.inf
        self.tick = min(timeout / math.ceil(timeout / _TICK_SECONDS), self._seconds)
        self._silent = self._least = 0.0
        self._moved = 0
        # Until when so many bytes have to move; ``None`` spares looking at the clock each time.
        self._until: float | None = None
        self.expect_bytes()

    @property
    def is_exact(self) -> bool:
        """Whether it has to be told of all bytes as they move, and not only of silence."""
        return self._until is not None

    def expect_head(self) -> None:
        """Begins to wait for a head, all of which has to come in time."""
        self._silent = self._moved = 0
        self._until, self._least = time.monotonic() + self._timeout, math.inf

    def expect_bytes(self) -> None:
        """Begins to wait for bytes, or to send them."""
        self._silent = self._moved = 0
        self._until = time.monotonic() + self._seconds if self._limit else None
        self._least = self._limit * self._seconds if self._limit else 0.0

    def moved(self, count: int) -> None:
        """Takes note that a call has moved so many bytes: 0 if it has waited for a tick in vain.

        Raises:
            TimeoutError: It takes too long.
        """
        if count:
            self._silent = 0
        else:
            self._silent += self.tick
            if self._silent > self._timeout * _NEARLY:
                raise TimeoutError(f"no byte has moved for {self._timeout:g} seconds")
        if self._until is None:
            return
        self._moved += count
        if time.monotonic() < self._until:
            return
        if self._least == math.inf:
            raise TimeoutError(f"the answer has not begun within {self._timeout:g} seconds")
        if self._moved < self._least:
            raise TimeoutError(
                f"fewer than {self._limit} bytes a second have moved for {self._seconds:g} seconds"
            )
        self.expect_bytes()
