"""How many bytes a transport has to have on their way to reach its throughput, and no more.

For transports that hold each part in memory of their own until it is whole, so that every part on its way
costs memory, also where the bytes are for the caller's.
"""

from __future__ import annotations

import math
from collections import deque

_REMEMBERED = 64
_FEWEST_PARTS = 4


class Pace:
    """Bytes on their way for one part after the other, by Little's law: throughput times duration of a part.

    On a fast network nearby that is a few parts. Where a part takes 0.1 seconds, which is what it takes in a
    region, 10 gigabits per second need 120 MiB.

    Args:
        gbps: The throughput to reach, in gigabits per second.
        part_size: Bytes of a part.
    """

    def __init__(self, gbps: float, part_size: int) -> None:
        self._bytes_per_second = gbps * 1e9 / 8
        self._part_size = part_size
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def took(self, size: int, seconds: float) -> None:
        """Learns how long a request took; one that was smaller than a part tells nothing of parts."""
        if size >= self._part_size:
            self._seconds.append(seconds)

    @property
    def limit(self) -> int:
        """The bytes, at least those of four parts."""
        # The fastest has waited least for others: a longer queue must not ask for a longer queue.
        fastest = min(tuple(self._seconds), default=0.0)
        return max(math.ceil(self._bytes_per_second * fastest), _FEWEST_PARTS * self._part_size)
