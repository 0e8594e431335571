"""Counts transfers: how many, how many bytes, how long, how often again, and what failed.

How long is a histogram of fixed, narrow buckets, which can be added up over processes.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from s3torch.core._process import PerProcess
from s3torch.core.errors import ConfigurationError
from s3torch.core.observers._listening import TransferObserver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from s3torch.core.observers._listening import TransferEnd, TransferInfo

_BUCKETS_PER_DOUBLING = 8
_SHORTEST_SECONDS = 1e-6


def bucket_of(seconds: float) -> int:
    """Returns the number of the bucket for a duration; each is 9 % wider than the one before."""
    return math.ceil(math.log2(max(seconds, _SHORTEST_SECONDS)) * _BUCKETS_PER_DOUBLING)


@dataclass(frozen=True, slots=True)
class LatencyHistogram:
    """Durations, each known to 9 %.

    Attributes:
        buckets: How many durations fell into each bucket; those of bucket n took at most
            ``2 ** (n / 8)`` seconds.
        total: The sum of all durations in seconds.
    """

    buckets: Mapping[int, int] = field(default_factory=dict, hash=False)
    total: float = 0.0

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.buckets.values())

    @property
    def mean(self) -> float:
        """The mean in seconds; 0 if there are none."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Returns the seconds that so many percent of all took at most; 0 if there are none.

        Raises:
            ConfigurationError: ``percent`` is not between 0 and 100.
        """
        if not 0 <= percent <= 100:
            raise ConfigurationError(f"percent must be between 0 and 100, got {percent}")
        wanted = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return float(2.0 ** (bucket / _BUCKETS_PER_DOUBLING))
        return 0.0

    def __add__(self, other: LatencyHistogram) -> LatencyHistogram:
        return self._combined(other, 1)

    def __sub__(self, earlier: LatencyHistogram) -> LatencyHistogram:
        return self._combined(earlier, -1)

    def _combined(self, other: LatencyHistogram, sign: int) -> LatencyHistogram:
        buckets = dict(self.buckets)
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + sign * count
        return LatencyHistogram(
            {bucket: count for bucket, count in buckets.items() if count},
            self.total + sign * other.total,
        )


_NOTHING = LatencyHistogram()


@dataclass(frozen=True, slots=True)
class OperationCounts:
    """The transfers of one S3 operation that have ended.

    Attributes:
        transfers: How many there were.
        requests: How many requests they took, with those that were made again.
        throttles: How many of these were answered with a request to slow down.
        nbytes: The bytes of objects that were moved.
        errors: How many transfers failed, by the name of the class of the error; those that were cancelled
            are among them, as ``TransferCancelledError``.
        latency: How long the transfers took.
    """

    transfers: int = 0
    requests: int = 0
    throttles: int = 0
    nbytes: int = 0
    errors: Mapping[str, int] = field(default_factory=dict, hash=False)
    latency: LatencyHistogram = _NOTHING

    @property
    def retries(self) -> int:
        """How many requests were made again."""
        return self.requests - self.transfers

    def __add__(self, other: OperationCounts) -> OperationCounts:
        return self._combined(other, 1)

    def __sub__(self, earlier: OperationCounts) -> OperationCounts:
        return self._combined(earlier, -1)

    def _combined(self, other: OperationCounts, sign: int) -> OperationCounts:
        errors = dict(self.errors)
        for name, count in other.errors.items():
            errors[name] = errors.get(name, 0) + sign * count
        return OperationCounts(
            self.transfers + sign * other.transfers,
            self.requests + sign * other.requests,
            self.throttles + sign * other.throttles,
            self.nbytes + sign * other.nbytes,
            {name: count for name, count in errors.items() if count},
            self.latency + other.latency if sign > 0 else self.latency - other.latency,
        )


@dataclass(frozen=True, slots=True)
class CounterSnapshot:
    """What was counted up to some moment: a value that can be pickled, added and subtracted.

    The sum of snapshots is what several processes did together. The difference of two snapshots of the same
    counters is what happened between them.

    Attributes:
        operations: The transfers that have ended, by the name of the S3 operation.
        in_flight: How many have started and not ended; in a difference, how many more.
        most_in_flight: How many were in flight at the same time, at most, since the counters began; in a sum,
            the sum of that, and in a difference that of the later one.
    """

    operations: Mapping[str, OperationCounts] = field(default_factory=dict, hash=False)
    in_flight: int = 0
    most_in_flight: int = 0

    def of(self, operation: str) -> OperationCounts:
        """Returns the counts of an S3 operation, as in ``"GetObject"``; zeros if there was none."""
        return self.operations.get(operation, OperationCounts())

    @property
    def total(self) -> OperationCounts:
        """The counts of all operations together."""
        return sum(self.operations.values(), OperationCounts())

    @property
    def requests(self) -> int:
        """How many requests were made, with those that were made again."""
        return sum(counts.requests for counts in self.operations.values())

    @property
    def retries(self) -> int:
        """How many requests were made again."""
        return sum(counts.retries for counts in self.operations.values())

    @property
    def throttles(self) -> int:
        """How many requests were answered with a request to slow down."""
        return sum(counts.throttles for counts in self.operations.values())

    @property
    def bytes_read(self) -> int:
        """The bytes of objects that came from S3."""
        return self.of("GetObject").nbytes

    @property
    def bytes_written(self) -> int:
        """The bytes of objects that went to S3, with those of uploads that were never completed."""
        return self.of("PutObject").nbytes + self.of("UploadPart").nbytes

    @property
    def errors(self) -> Mapping[str, int]:
        """How many transfers failed, by the name of the class of the error."""
        return self.total.errors

    def __add__(self, other: CounterSnapshot) -> CounterSnapshot:
        names = sorted({*self.operations, *other.operations})
        return CounterSnapshot(
            {name: self.of(name) + other.of(name) for name in names},
            self.in_flight + other.in_flight,
            self.most_in_flight + other.most_in_flight,
        )

    def __sub__(self, earlier: CounterSnapshot) -> CounterSnapshot:
        names = sorted({*self.operations, *earlier.operations})
        return CounterSnapshot(
            {name: self.of(name) - earlier.of(name) for name in names},
            self.in_flight - earlier.in_flight,
            self.most_in_flight,
        )


class TransferCounters(TransferObserver):
    """Counts the transfers of this process; may be shared by threads.

    Every process counts for itself: in a forked child, and after unpickling, the counters begin at zero. To
    count the workers of a ``DataLoader`` as well, use ``SharedCounters``.

    Example:
        >>> from s3torch.core.observers import TransferCounters, observe
        >>> with observe(TransferCounters()) as counters:
        ...     before = counters.snapshot()
        ...     # ... train for an epoch ...
        ...     epoch = counters.snapshot() - before
        >>> epoch.requests, epoch.bytes_read, epoch.throttles
        (0, 0, 0)
        >>> epoch.of("GetObject").latency.percentile(99)
        0.0
    """

    def __init__(self) -> None:
        self._tally = PerProcess(_Tally)

    def started(self, transfer: TransferInfo) -> None:
        """Counts a transfer as in flight."""
        self._tally.get().start()
        del transfer

    def ended(self, transfer: TransferInfo, end: TransferEnd) -> None:
        """Counts a transfer."""
        self._tally.get().end(transfer.operation, end)

    def snapshot(self) -> CounterSnapshot:
        """Returns what was counted so far in this process; what a caller has waited for is in it."""
        return self._tally.get().snapshot()


class _Tally:
    """The counts of one process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # A signal handler may cancel or send in here.
        self._in_flight = 0
        self._most_in_flight = 0
        self._operations: dict[str, _OperationTally] = {}

    def start(self) -> None:
        with self._lock:
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)

    def end(self, operation: str, end: TransferEnd) -> None:
        with self._lock:
            self._in_flight -= 1
            self._operations.setdefault(operation, _OperationTally()).add(end)

    def snapshot(self) -> CounterSnapshot:
        with self._lock:
            operations = {name: tally.counts() for name, tally in sorted(self._operations.items())}
            return CounterSnapshot(operations, self._in_flight, self._most_in_flight)


class _OperationTally:
    """The counts of one operation while they grow."""

    def __init__(self) -> None:
        self._transfers = self._requests = self._throttles = self._nbytes = 0
        self._seconds = 0.0
        self._errors: Counter[str] = Counter()
        self._buckets: Counter[int] = Counter()

    def add(self, end: TransferEnd) -> None:
        self._transfers += 1
        self._requests += end.attempts
        self._throttles += end.throttles
        self._nbytes += end.nbytes
        self._seconds += end.seconds
        self._buckets[bucket_of(end.seconds)] += 1
        if end.error is not None:
            self._errors[type(end.error).__name__] += 1

    def counts(self) -> OperationCounts:
        return OperationCounts(
            self._transfers,
            self._requests,
            self._throttles,
            self._nbytes,
            dict(self._errors),
            LatencyHistogram(dict(self._buckets), self._seconds),
        )
