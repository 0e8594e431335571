"""Summaries of listings: numbers, sizes and suffixes of objects."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from s3torch.core import S3BucketKeyData

_QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SHOWN = 8
_BAR = 30


@dataclass(frozen=True, slots=True, repr=False)
class DatasetSummary:
    """How many objects there are, and how large; ``print`` shows it as a table.

    Attributes:
        objects: How many.
        bytes: All their bytes.
        unknown_sizes: How many have a size that is not known yet; ``bytes`` does not count them.
        quantiles: The sizes of objects at ``"min"``, ``"5%"``, ``"25%"``, ``"median"``, ``"75%"``, ``"95%"``,
            ``"max"``; empty without sizes.
        histogram: How many objects have at least so many bytes and less than twice as many, in order; 0 for
            empty ones.
        suffixes: How many objects have each suffix, the most frequent first; ``""`` for none.
        estimated_samples: How many samples there are; an estimate for shards, ``None`` where it is unknown.
    """

    objects: int
    bytes: int
    unknown_sizes: int
    quantiles: Mapping[str, int]
    histogram: Mapping[int, int]
    suffixes: Mapping[str, int]
    estimated_samples: int | None = None

    def __repr__(self) -> str:
        lines = [f"{self.objects:,} objects, {_human(self.bytes)}"]
        if self.estimated_samples not in {None, self.objects}:
            lines[0] += f", about {self.estimated_samples:,} samples"
        if self.unknown_sizes:
            lines.append(f"{self.unknown_sizes:,} of unknown size")
        if self.quantiles:
            lines.append("sizes: " + ", ".join(f"{name} {_human(at)}" for name, at in self.quantiles.items()))
        most = max(self.histogram.values(), default=0)
        for low, count in self.histogram.items():
            lines.append(f"  from {_human(low):>10} {'#' * -(-count * _BAR // most):<{_BAR}} {count:,}")
        shown = [f"{suffix or 'none'} {count:,}" for suffix, count in self.suffixes.items()][:_SHOWN]
        if len(self.suffixes) > _SHOWN:
            shown.append("…")
        if shown:
            lines.append("suffixes: " + ", ".join(shown))
        return "\n".join(lines)


def describe_objects(
    objects: Iterable[S3BucketKeyData], *, estimated_samples: int | None = None
) -> DatasetSummary:
    """Summarises objects from their listing, without a request.

    Args:
        objects: The objects.
        estimated_samples: How many samples they have, if that is not known to be one each.
    """
    sizes = array("Q")
    suffixes: Counter[str] = Counter()
    unknown = 0
    for item in objects:
        name = item.key.rpartition("/")[2]
        suffixes[f".{name.rpartition('.')[2].lower()}" if "." in name[1:] else ""] += 1
        if item.object_info is None:
            unknown += 1
        else:
            sizes.append(item.object_info.size)
    ordered = array("Q", sorted(sizes))
    # A size belongs to the highest power of two that is not above it.
    powers = Counter(1 << size.bit_length() >> 1 for size in ordered)
    return DatasetSummary(
        objects=len(sizes) + unknown,
        bytes=sum(sizes),
        unknown_sizes=unknown,
        quantiles={
            name: ordered[round(part * (len(ordered) - 1))] for name, part in _QUANTILES.items() if ordered
        },
        histogram=dict(sorted(powers.items())),
        suffixes=dict(suffixes.most_common()),
        estimated_samples=estimated_samples,
    )


def _human(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{count} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
