"""How long the ``crt`` transport waits for an answer.

The CRT hands over an answer only when it is whole: while the bytes of a part come or go, nothing is called.
Whether any bytes move is asked of the kernel. While they do, what is bounded is the whole answer, with time
for the bytes that share the line.

The sockets belong to the CRT, so the kernel is asked about them by their numbers only: a copy or an object of
Python could outlive them or change how they behave.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import logging
import math
import re
import socket
import struct
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from s3torch.core._process import PerProcess, start_thread
from s3torch.core.errors import S3Error
from s3torch.core.ranges import MIB
from s3torch.core.transports.crt._errors import error_of_handshake, failed_handshake

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from s3torch.core._config import S3ClientConfig
    from s3torch.core.transports.crt._transfer import CrtTransfer
    from s3torch.core.transports.crt._transport import CrtRuntime

_SLOWEST_BYTES_PER_SECOND = 1 * MIB
_MOST_TIMES_LONGER = 10
_LOOKS_PER_TIMEOUT = 8
# After so long without an answer the certificate of a server that has never answered is looked at.
_SUSPICIOUS_SECONDS = 0.5
_PORTS = {"http": 80, "https": 443}
_OPEN_FILES = "/proc/self/fd"
_STATUS = "/proc/self/status"
_STATUS_LENGTH = 4096
_TABLE_SIZE = re.compile(rb"\nFDSize:\s+(\d+)\n")
# Up to so many descriptors all numbers are asked about.
_SMALL_TABLE = 4096
_FAMILIES = {socket.AF_INET, socket.AF_INET6}
# How an address begins in both families: the family, and the port in network order.
_ADDRESS_SIZE = 128
_FAMILY = struct.Struct("=H")
_PORT = struct.Struct("!H")
# In struct tcp_info: tcpi_bytes_acked and tcpi_bytes_received.
_INFO_SIZE = 256
_COUNTS = struct.Struct("=QQ")
_COUNTS_OFFSET = 120

_log = logging.getLogger(__name__)


class Watch:
    """Sets a deadline for every attempt, and gives up those that miss it or that nothing comes for."""

    def __init__(self, config: S3ClientConfig, live: set[CrtTransfer[Any]], runtime: CrtRuntime) -> None:
        self._config = config
        self._timeout = config.read_timeout
        self._part_size = config.part_size
        self._live = live
        self._runtime = runtime
        self._moved: int | None = None
        self._moved_at = 0.0
        # Since when the speed is measured, and how many bytes there were then.
        self._measured_at = -math.inf
        self._measured: int | None = None
        # Hosts over TLS that have answered, or whose certificate is good, or is being looked at.
        self.trusted: set[str] = set()
        # Read without the lock by whoever starts a transfer, which is in ``live`` already then.
        self.is_looking = False
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.

    def begin(self) -> None:
        """Looks from time to time, as long as there are transfers."""
        with self._lock:
            if self.is_looking:
                return
            self.is_looking = True
        try:
            self._look_later()
        except S3Error:
            self.is_looking = False
            raise

    def _look_later(self) -> None:
        timer.get().call_later(min(self._timeout / _LOOKS_PER_TIMEOUT, 1.0), self._look)

    def _look(self) -> None:
        self.is_looking = False
        live = list(self._live)
        if not live:
            return
        now = time.monotonic()
        moved = moved_bytes(_ports(self._runtime.servers))
        slow_since = self._measure(now, moved)
        if moved is None or moved != self._moved:
            self._moved, self._moved_at = moved, now
        for transfer in live:
            begun_at = transfer.begun_at
            silent_since = max(self._moved_at, begun_at)
            if (
                now - begun_at >= self._longest(transfer)
                or now - silent_since >= self._timeout
                or begun_at <= slow_since
            ):
                transfer.give_up(begun_at)
            elif now - begun_at >= _SUSPICIOUS_SECONDS and transfer.host not in self.trusted:
                self._ask_certificate(transfer.host)
        self.begin()

    def _measure(self, now: float, moved: int | None) -> float:
        """Returns since when fewer bytes have moved than is wanted; long ago if there were enough."""
        since, seconds = self._measured_at, now - self._measured_at
        slow = False
        # Connections that end take their bytes with them; then it begins anew.
        if moved is not None and self._measured is not None and moved >= (self._moved or 0):
            if seconds < self._config.low_speed_time:
                return -math.inf
            slow = moved - self._measured < self._config.low_speed_limit * seconds
        self._measured, self._measured_at = moved, now
        return since if slow else -math.inf

    def _ask_certificate(self, host: str) -> None:
        """Finds out on another thread whether a host that does not answer is one to trust."""
        self.trusted.add(host)
        if ("https", host) in self._runtime.servers:
            with suppress(S3Error):  # Then the CRT tells, some time later.
                start_thread(self._judge, host, name="s3torch-tls")

    def _judge(self, host: str) -> None:
        reason = failed_handshake(host, self._runtime.bundle, timeout=self._config.connect_timeout)
        if reason is None:
            return
        self.trusted.discard(host)
        for transfer in list(self._live):
            if transfer.host == host:
                transfer.give_up(transfer.begun_at, error_of_handshake(host, reason))

    def _longest(self, transfer: CrtTransfer[Any]) -> float:
        """Returns how many seconds an attempt may take while bytes move."""
        size = transfer.receiver.part_size or (len(transfer.body) if transfer.body is not None else 0)
        waiting = transfer.in_flight * self._part_size
        seconds = (max(size - self._part_size, 0) + waiting) / _SLOWEST_BYTES_PER_SECOND
        return self._timeout + min(seconds, _MOST_TIMES_LONGER * self._timeout)


def _ports(servers: set[tuple[str, str]]) -> set[int]:
    """Returns the ports to which there are connections; none if there may be others."""
    from urllib.request import getproxies

    if not getproxies().keys().isdisjoint(_PORTS):
        return set()
    return {urlsplit(f"//{host}").port or _PORTS[scheme] for scheme, host in servers}


def moved_bytes(ports: Collection[int]) -> int | None:
    """Sums the bytes that went over the connections to these ports, either way.

    Args:
        ports: The ports of the other side; none for all connections.

    Returns:
        ``None`` where the kernel does not tell, as outside Linux.
    """
    if not hasattr(socket, "TCP_INFO"):
        return None
    try:
        files = _descriptors()
    except OSError:
        return None
    address = ctypes.create_string_buffer(_ADDRESS_SIZE)
    return sum(_moved(file) for file in files if _is_wanted(file, ports, address))


def _descriptors() -> Iterable[int]:
    """Returns the numbers that open files have, and perhaps others.

    To list them takes the interpreter's lock again for each, so where the table is small all are returned
    that may be in use.
    """
    with open(_STATUS, "rb", buffering=0) as file:  # noqa: PTH123 - With the fewest calls.
        found = _TABLE_SIZE.search(file.read(_STATUS_LENGTH))
    if found is not None and int(found[1]) <= _SMALL_TABLE:
        return range(int(found[1]))
    return [int(file.name) for file in Path(_OPEN_FILES).iterdir()]


def _is_wanted(file: int, ports: Collection[int], address: ctypes.Array[ctypes.c_char]) -> bool:
    size = ctypes.c_uint32(_ADDRESS_SIZE)
    if _library().getpeername(file, address, ctypes.byref(size)) != 0:
        return False  # No socket, or not connected, or closed by now.
    family, port = _FAMILY.unpack_from(address)[0], _PORT.unpack_from(address, _FAMILY.size)[0]
    return family in _FAMILIES and (not ports or port in ports)


def _moved(file: int) -> int:
    info = ctypes.create_string_buffer(_INFO_SIZE)
    size = ctypes.c_uint32(_INFO_SIZE)
    asked = (file, socket.IPPROTO_TCP, socket.TCP_INFO, info, ctypes.byref(size))
    if _library().getsockopt(*asked) != 0 or size.value < _COUNTS_OFFSET + _COUNTS.size:
        return 0
    return sum(_COUNTS.unpack_from(info, _COUNTS_OFFSET))


@cache
def _library() -> Any:
    # With the interpreter's lock: the calls take no time, but to get it back may take milliseconds.
    return ctypes.PyDLL(None)


class Timer:
    """Calls functions at their time on one thread, which is started by the first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Calls ``function`` after so many seconds; it must not block."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), function))
            if self._thread is None:
                self._thread = start_thread(self._run, name="s3torch-timer")
            self._changed.notify()

    def _run(self) -> None:
        while True:
            function = self._next()
            try:
                function()
            except Exception:  # noqa: BLE001 - The others must still be called.
                _log.exception("a delayed callback failed")
            del function

    def _next(self) -> Callable[[], object]:
        with self._changed:
            while not self._due or self._due[0][0] > time.monotonic():
                wait = self._due[0][0] - time.monotonic() if self._due else None
                self._changed.wait(wait if wait is None else max(0.0, wait))
            return heapq.heappop(self._due)[2]


# All waiting of the transport is done here. Threads do not survive a fork; the child starts its own.
timer = PerProcess(Timer)
