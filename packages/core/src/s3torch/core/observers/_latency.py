"""How long things took: a histogram of fixed, narrow buckets, which can be added up over processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LatencyHistogram", "bucket_of"]

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
