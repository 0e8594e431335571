"""Free ports on loopback."""

from __future__ import annotations

import random
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

HOST = "127.0.0.1"
# SeaweedFS also listens on every port plus this.
SECOND_PORT = 10_000
# So that both ports of a pair stay below the ephemeral ports of Linux, which begin at 32768, and the first
# port of no pair is the second of another.
_LOWEST, _HIGHEST = 10_000, 19_999

_random = random.SystemRandom()


def is_free(port: int) -> bool:
    """Tells whether a server could listen on the port now."""
    with socket.socket() as probe:
        # Connections that have just been closed keep a port, but do not hinder a listener.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def is_free_pair(port: int) -> bool:
    """Tells whether the port and the one that belongs to it are free."""
    return is_free(port) and is_free(port + SECOND_PORT)


def free_pairs(count: int, *, besides: Iterable[int] = ()) -> list[int]:
    """Chooses ports at random of which each is free together with its second port."""
    chosen: list[int] = []
    taken = set(besides)
    while len(chosen) < count:
        port = _random.randint(_LOWEST, _HIGHEST)
        if port not in taken and is_free_pair(port):
            taken.add(port)
            chosen.append(port)
    return chosen
