"""S3 as the simulation sees it: key ranges with a rate each, 503 beyond it, and splits under lasting load.

What is documented: at least 5,500 GET or HEAD and 3,500 PUT, COPY, POST or DELETE a second for each
partitioned prefix; more is served after some time, and refused with 503 until then
(https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html). What is assumed, because
nobody documents it: a partition is a range of keys in their order, it splits in two where half of the load is
on either side, and it does so after ``sustained`` seconds of load beyond its rate.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field

GETS_PER_SECOND = 5500
PUTS_PER_SECOND = 3500


@dataclass(frozen=True, slots=True)
class StoreRules:
    """How the store behaves.

    Attributes:
        gets: GET and HEAD requests a second that a partition serves.
        puts: All other requests a second that it serves.
        sustained: Seconds of load beyond its rate after which a partition splits.
        burst: Seconds whose requests a partition serves at once when it was idle.
    """

    gets: float = GETS_PER_SECOND
    puts: float = PUTS_PER_SECOND
    sustained: float = 300.0
    burst: float = 1.0


@dataclass(slots=True)
class _Bucket:
    """Requests of one kind that a partition may serve: so many a second, and saved ones for a moment."""

    rate: float
    burst: float
    tokens: float
    at: float = 0.0

    def take(self, now: float) -> bool:
        self.tokens = min(self.rate * self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(slots=True)
class _Partition:
    """The keys from ``start`` up to the next partition."""

    start: str
    buckets: dict[bool, _Bucket]
    # The keys that were asked for lately, of which the middle one is where it splits.
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=1001))
    refused_since: float | None = None
    refused_at: float = 0.0


class PartitionedStore:
    """Says of each request whether it is served; nothing is stored."""

    def __init__(self, rules: StoreRules) -> None:
        self.rules = rules
        self.splits: list[tuple[float, str]] = []
        self._partitions = [self._partition("", 0.0)]
        self._starts = [""]

    @property
    def partitions(self) -> int:
        """How many there are."""
        return len(self._partitions)

    def ask(self, key: str, now: float, *, writes: bool = False) -> bool:
        """Takes a request; whether it is served, else the answer is 503."""
        partition = self._partitions[bisect_right(self._starts, key) - 1]
        partition.recent.append(key)
        if partition.buckets[writes].take(now):
            return True
        if partition.refused_since is None or now - partition.refused_at > self._forgets:
            partition.refused_since = now
        partition.refused_at = now
        if now - partition.refused_since >= self.rules.sustained:
            self._split(partition, now)
        return False

    def rest(self) -> None:
        """Begins a new count of time after a pause; partitions stay as they are."""
        for partition in self._partitions:
            partition.refused_since = None
            partition.buckets = self._buckets(0.0)

    @property
    def _forgets(self) -> float:
        """Seconds without a refusal after which the load was not lasting."""
        return self.rules.sustained / 5

    def _split(self, partition: _Partition, now: float) -> None:
        ordered = sorted(partition.recent)
        middle = ordered[len(ordered) // 2]
        partition.refused_since = None
        if middle > partition.start and middle > ordered[0]:
            self.splits.append((now, middle))
            self._insert(middle, now)

    def _insert(self, start: str, now: float) -> None:
        if start in self._starts:
            return
        insort(self._starts, start)
        self._partitions.insert(self._starts.index(start), self._partition(start, now))

    def _partition(self, start: str, now: float) -> _Partition:
        return _Partition(start, self._buckets(now))

    def _buckets(self, now: float) -> dict[bool, _Bucket]:
        rates = ((False, self.rules.gets), (True, self.rules.puts))
        burst = self.rules.burst
        return {writes: _Bucket(rate, burst, rate * burst, now) for writes, rate in rates}
