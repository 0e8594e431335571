"""The measurements: latency of small requests, and throughput by size of objects and number at a time."""

from __future__ import annotations

import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from s3torch.core._process import submit
from s3torch.core.cli._objects import folder_of
from s3torch.core.cli._process import stopping
from s3torch.core.errors import S3Error, TransferCancelledError
from s3torch.core.observers import TransferCounters, observe
from s3torch.core.ranges import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from s3torch.core import S3Client
    from s3torch.core.cli._output import Advance

Direction = Literal["PUT", "GET"]
_LATENCY_REQUESTS = 20
_SMALL = 1024
# How much may be in memory; larger combinations are left out.
_MOST_AT_ONCE = 512 * MIB


@dataclass(frozen=True, slots=True)
class Latency:
    """How long small requests take, one at a time, in seconds.

    Attributes:
        operation: The S3 operation.
        median: Half of them were quicker.
        slowest: The slowest one.
    """

    operation: str
    median: float
    slowest: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement of throughput.

    Attributes:
        direction: Whether objects were stored or read.
        size: Bytes of each.
        at_a_time: How many at a time.
        objects: How many were moved.
        seconds: In how many seconds.
        processor: Seconds of processor time that this process took.
        throttles: Answers that asked to slow down.
    """

    direction: Direction
    size: int
    at_a_time: int
    objects: int
    seconds: float
    processor: float
    throttles: int

    @property
    def throughput(self) -> float:
        """Bytes per second."""
        return self.objects * self.size / self.seconds

    @property
    def cores(self) -> float:
        """How many processors were busy."""
        return self.processor / self.seconds


class Bench:
    """Measures with objects of its own in a folder whose name nobody else has, and removes them.

    Args:
        client: Serves the requests.
        bucket: The bucket.
        prefix: The folder that the own folder is in.
        seconds: How long each measurement of throughput takes.
    """

    def __init__(self, client: S3Client, bucket: str, prefix: str, *, seconds: float) -> None:
        self._client = client
        self._bucket = bucket
        self.folder = f"{folder_of(prefix)}.s3torch-bench-{uuid4().hex}/"
        self._seconds = seconds
        self._keys: set[str] = set()
        self._lock = threading.Lock()
        # The bytes that were moved in all.
        self.moved = 0

    def latency(self) -> list[Latency]:
        """Measures small requests, one at a time."""
        key = self._own("small")
        data = os.urandom(_SMALL)
        client, bucket = self._client, self._bucket
        operations: tuple[tuple[str, Callable[[], object]], ...] = (
            ("PutObject", lambda: self._put(key, data)),
            ("HeadObject", lambda: client.head_object(bucket, key)),
            ("GetObject", lambda: client.get_object(bucket, key).read()),
        )
        return [self._latency_of(name, work) for name, work in operations]

    def _latency_of(self, name: str, work: Callable[[], object]) -> Latency:
        # The first one connects, and finds out where to.
        work()
        times = []
        for _ in range(_LATENCY_REQUESTS):
            _stop_if_asked()
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return Latency(name, sorted(times)[len(times) // 2], max(times))

    def cells(self, sizes: Sequence[int], at_a_time: Sequence[int], advance: Advance) -> Iterator[Cell]:
        """Measures all combinations that fit into memory; what is read was stored just before."""
        for size in sizes:
            data = (os.urandom(min(size, MIB)) * -(-size // MIB))[:size]
            fitting = [count for count in at_a_time if count == 1 or count * size <= _MOST_AT_ONCE]
            for count in fitting:
                yield self._cell("PUT", size, count, partial(self._put, data=data), advance)
            for count in fitting:
                yield self._cell("GET", size, count, self._get, advance)

    def _cell(
        self, direction: Direction, size: int, at_a_time: int, work: Callable[[str], object], advance: Advance
    ) -> Cell:
        done = itertools.count()
        deadline = time.perf_counter() + self._seconds

        def repeat(number: int) -> None:
            key = self._own(f"{size}-{number}")
            # Each moves one object at least, so that there is something to read.
            while True:
                work(key)
                next(done)
                advance(size)
                _stop_if_asked()
                if time.perf_counter() >= deadline:
                    return

        with observe(TransferCounters()) as counters:
            begin, processor = time.perf_counter(), time.process_time()
            deadline = begin + self._seconds
            with ThreadPoolExecutor(at_a_time, "s3torch-bench") as pool:
                running = [submit(pool, repeat, number) for number in range(at_a_time)]
                for one in running:
                    one.result()
            seconds, used = time.perf_counter() - begin, time.process_time() - processor
        objects = next(done)
        self.moved += objects * size
        return Cell(direction, size, at_a_time, objects, seconds, used, counters.snapshot().throttles)

    def _own(self, name: str) -> str:
        return f"{self.folder}{name}"

    def _put(self, key: str, data: bytes) -> None:
        with self._lock:
            self._keys.add(key)
        with self._client.put_object(self._bucket, key, expected_size=len(data)) as writer:
            writer.write(data)

    def _get(self, key: str) -> None:
        self._client.get_object(self._bucket, key).read()

    def clean_up(self) -> list[str]:
        """Deletes all that was stored, with its versions; returns the keys that could not be deleted."""
        failures = self._client.delete_objects(self._bucket, sorted(self._keys)) if self._keys else []
        with suppress(S3Error):
            pages = self._client.list_object_versions(self._bucket, self.folder)
            versions = [one for page in pages for one in page.versions if one.version_id != "null"]
            if versions:
                self._client.delete_objects(self._bucket, versions)
        return [failure.key for failure in failures]


def _stop_if_asked() -> None:
    if stopping.is_set():
        raise TransferCancelledError("stopped")
