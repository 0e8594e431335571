"""The bytes that a process may have in flight, and the buffers that hold them.

The rule that keeps this free of deadlocks: a reader or writer may always hold the one part that its caller is
waiting for; only what goes beyond it, read-ahead and parts that upload meanwhile, is asked for here, and a
refusal means "not now", never "wait".
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import threading
import time
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

from s3torch.core._process import PerProcess, start_thread
from s3torch.core._resources import available_memory, processes_on_node
from s3torch.core.errors import S3Error
from s3torch.core.ranges import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "BufferPool",
    "Memory",
    "MemoryBudget",
    "Reservation",
    "advise_huge_pages",
    "default_memory_limit",
    "new_bytes",
]

_SHARE_OF_MEMORY = 8
_LOWEST_LIMIT = 64 * MIB
_HIGHEST_LIMIT = 2 * GIB
_POOLED_BYTES = 128 * MIB
_IDLE_SECONDS = 10.0
_HUGE_PAGE = 2 * MIB
# After a store has asked to slow down a process has at most 16 requests in flight, after another second of
# refusals 8, then one more every two seconds. The first step is no cost to a load that met one busy moment.
_SLOWED_FROM = 32
_SLOWED_SECONDS = 1.0
_MORE_PER_SECOND = 0.5


def default_memory_limit() -> int:
    """Derives the limit for this process: an eighth of the memory, shared between all of this job."""
    share = available_memory() // _SHARE_OF_MEMORY // processes_on_node()
    return max(_LOWEST_LIMIT, min(share, _HIGHEST_LIMIT))


class Memory:
    """The budget and the pool of buffers that clients of one process share."""

    def __init__(self, limit: int) -> None:
        self.budget = MemoryBudget(limit)
        self.pool = BufferPool(idle_seconds=_IDLE_SECONDS)

    @staticmethod
    def of_this_process(limit: int | None) -> Memory:
        """Returns what all clients of this process with the same limit share."""
        shared = _shared.get()
        wanted = default_memory_limit() if limit is None else limit
        return shared.setdefault(wanted, Memory(wanted))


class MemoryBudget:
    """Counts the bytes in flight against a limit. Methods may be called from any thread.

    ``give_back`` takes no lock, because finalizers call it, which may run within the other methods. What was
    given back is subtracted by whoever reserves next.

    Args:
        limit: The bytes that may be in flight.
        clock: Tells the time in seconds.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._used = self._count = 0
        # How many could be reserved at a time when a store last asked to slow down, and when that was.
        self._most = math.inf
        self._slowed_at = -math.inf
        self._returned: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        with self._lock:
            self._subtract_returned()
            return self._used

    def try_reserve(self, count: int) -> Reservation | None:
        """Takes bytes out of the budget if they are there."""
        with self._lock:
            self._subtract_returned()
            if self._used + count > self.limit or self._count >= self._allowed():
                return None
            self._used += count
            self._count += count > 0
        return Reservation(self, count)

    def reserve(self, count: int) -> Reservation:
        """Takes the bytes that a caller is waiting for, even beyond the limit."""
        with self._lock:
            self._subtract_returned()
            self._used += count
            self._count += count > 0
        return Reservation(self, count)

    def slow_down(self) -> None:
        """Halves how many requests may be in flight, because a store asks for fewer; once a second at most.

        Otherwise new requests follow those that are served, while those that were refused wait longer and
        longer, until one of them has failed for good.
        """
        with self._lock:
            now = self._clock()
            if now - self._slowed_at >= _SLOWED_SECONDS:
                self._most = max(1.0, min(self._allowed(), _SLOWED_FROM) / 2)
                self._slowed_at = now

    def give_back(self, count: int) -> None:
        """Counts bytes that are not in flight any more."""
        self._returned.append(count)

    def _allowed(self) -> float:
        """How many may be reserved at a time."""
        if self._most < math.inf:
            allowed = self._most + _MORE_PER_SECOND * (self._clock() - self._slowed_at)
            if allowed < _SLOWED_FROM:
                return allowed
            self._most = math.inf
        return math.inf

    def _subtract_returned(self) -> None:
        while self._returned:
            self._used -= self._returned.popleft()
            self._count -= 1


class Reservation:
    """Bytes taken out of a budget; given back once, at the latest when it is dropped."""

    __slots__ = ("_budget", "_count")

    def __init__(self, budget: MemoryBudget, count: int) -> None:
        self._budget = budget
        self._count = count

    @property
    def count(self) -> int:
        """How many bytes; 0 once they were given back."""
        return self._count

    def release(self) -> None:
        """Gives the bytes back; may be called again."""
        count, self._count = self._count, 0
        if count:
            self._budget.give_back(count)

    def __del__(self) -> None:
        self.release()


class BufferPool:
    """Keeps buffers for reuse: memory that was touched before is many times faster than fresh memory.

    Args:
        limit: The most bytes that are kept.
        idle_seconds: After so long without use all are freed; ``None`` keeps them.
    """

    def __init__(self, limit: int = _POOLED_BYTES, *, idle_seconds: float | None = None) -> None:
        self._limit = limit
        self._idle_seconds = idle_seconds
        self._free: dict[int, deque[memoryview]] = {}
        self._kept = 0
        self._used_at = 0.0
        self._is_watched = False
        self._returned: deque[memoryview] = deque()
        self._lock = threading.Lock()

    @property
    def kept(self) -> int:
        return self._kept

    def take(self, size: int) -> memoryview:
        """Returns a writable buffer of exactly this size, with whatever bytes are in it."""
        self._sort_in()
        with self._lock:
            free = self._free.get(size)
            if free:
                self._kept -= size
                return free.pop()
        return _new_buffer(size)

    def give(self, buffer: memoryview) -> None:
        """Takes a buffer back; nobody may use it any more.

        It waits for no lock, because a finalizer may give within another call; the next one sorts it in then.
        """
        self._returned.append(buffer)
        self._sort_in()

    def clear(self) -> None:
        """Frees all buffers that are not in use."""
        with self._lock:
            self._free.clear()
            self._kept = 0

    def _sort_in(self) -> None:
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._keep_returned()
                starts = self._idle_seconds is not None and self._kept > 0 and not self._is_watched
                self._is_watched = self._is_watched or starts
            finally:
                self._lock.release()
            if starts:
                try:
                    start_thread(self._watch, name="s3torch-pool")
                except S3Error:  # Then they are freed with the process.
                    self._is_watched = False

    def _keep_returned(self) -> None:
        while self._returned:
            buffer = self._returned.popleft()
            size = len(buffer)
            if self._kept + size <= self._limit:
                self._kept += size
                self._free.setdefault(size, deque()).append(buffer)
                self._used_at = time.monotonic()

    def _watch(self) -> None:
        """Frees the buffers when they were not used for long enough, on a thread that ends with that."""
        idle = self._idle_seconds or 0.0
        while True:
            with self._lock:
                wait = self._used_at + idle - time.monotonic()
                if wait <= 0:
                    self._is_watched = False
                    self._free.clear()
                    self._kept = 0
                    return
            time.sleep(wait)


def new_bytes(size: int) -> tuple[bytes, memoryview]:
    """Makes a ``bytes`` object whose content is not set yet, and the view that sets it.

    ``read()`` has to return ``bytes``, and filling them in place spares a copy of the whole object. Nobody
    else may see the object before the view has been filled and released.
    """
    data: bytes = _bytes_maker()(None, size)
    address = id(data) + bytes.__basicsize__ - 1
    if size >= _HUGE_PAGE:
        _advise_huge_pages(address, size)
    window = _window_type(size.bit_length()).from_address(address)
    window.owner = data  # The view keeps the window alive, and the window the bytes.
    return data, memoryview(window).cast("B")[:size]


@cache
def _bytes_maker() -> Any:
    make = ctypes.pythonapi.PyBytes_FromStringAndSize
    make.restype = ctypes.py_object
    make.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t)
    return make


@cache
def _window_type(bits: int) -> Any:
    """A few types for all sizes, because to make one takes longer than to use it."""
    return ctypes.c_ubyte * (1 << bits)


def advise_huge_pages(pages: mmap.mmap) -> None:
    """Asks for large pages, which are touched for the first time much faster, where the system has them."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A system without huge pages, or without those for files in memory, goes on with small ones.
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)


def _new_buffer(size: int) -> memoryview:
    if size < _HUGE_PAGE:
        return memoryview(bytearray(size))
    try:
        pages = mmap.mmap(-1, size)
    except OSError as exc:
        raise MemoryError(
            f"no memory for a buffer of {size} bytes ({exc.strerror}); lower memory_limit or part_size"
        ) from exc
    advise_huge_pages(pages)
    return memoryview(pages)


def _advise_huge_pages(address: int, size: int) -> None:
    begin = -(-address // _HUGE_PAGE) * _HUGE_PAGE
    length = (address + size - begin) // _HUGE_PAGE * _HUGE_PAGE
    if length <= 0 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    libc = ctypes.CDLL(None)
    libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), ctypes.c_int(mmap.MADV_HUGEPAGE))


_shared: PerProcess[dict[int, Memory]] = PerProcess(dict)
