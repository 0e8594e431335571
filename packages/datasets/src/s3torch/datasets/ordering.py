"""In which order samples come, and what is left of an epoch: functions of values, without any effect.

An epoch is the sequence of the positions 0, 1, 2 … of all samples, in an order that depends on nothing but
seed, epoch and count; ranks and workers share it out. When it is interrupted, what ranks and workers have
taken is a ``Leg``; what is left is again such a sequence, and may be shared out in another way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count as count_up
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.sharding import Shard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from s3torch.datasets.uneven_leg import UnevenLeg

__all__ = ["Course", "Leg", "Permutation", "Uneven", "check_uneven", "even_length", "pick"]

T = TypeVar("T")
Uneven = Literal["keep", "pad", "drop"]

_MASK = (1 << 64) - 1
_ROUNDS = 6
_SORTED = 1 << 16


class Permutation(Sequence[int]):
    """The numbers below ``count`` in an order that seed and epoch decide.

    Small ones are kept as a list; large ones are computed at each access, with a Feistel network that walks
    its cycles, so that ten million samples need no memory. The order is part of what saved states rely on and
    is the same on every machine.

    Args:
        count: How many numbers.
        seed: Any integer.
        epoch: Any integer.
    """

    def __init__(self, count: int, *, seed: int, epoch: int) -> None:
        self._count = count
        digest = blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[at : at + 8], "big") for at in range(0, len(digest), 8)]
        self._bits = max(2, (count - 1).bit_length())
        self._list: list[int] | None = None
        if count <= _SORTED:
            self._list = sorted(range(count), key=lambda number: _mix(number, self._keys[0]))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, position: int) -> int: ...
    @overload
    def __getitem__(self, position: slice) -> list[int]: ...
    def __getitem__(self, position: int | slice) -> int | list[int]:
        if isinstance(position, slice):
            return [self[at] for at in range(*position.indices(self._count))]
        if not -self._count <= position < self._count:
            raise IndexError(position)
        if self._list is not None:
            return self._list[position]
        number = self._step(position % self._count)
        while number >= self._count:
            number = self._step(number)
        return number

    def _step(self, number: int) -> int:
        low_bits = self._bits // 2
        low_mask, high_mask = (1 << low_bits) - 1, (1 << (self._bits - low_bits)) - 1
        low, high = number & low_mask, number >> low_bits
        for key in self._keys[::2]:
            low ^= _mix(high, key) & low_mask
            high ^= _mix(low, ~key & _MASK) & high_mask
        return high << low_bits | low


def _mix(value: int, key: int) -> int:
    value = ((value ^ key) * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 32) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 29) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 32


@dataclass(frozen=True, slots=True)
class Leg:
    """What ranks and workers took of a sequence, when all ranks took the same number of batches.

    Sample ``p`` of the sequence belongs to the rank ``p % ranks`` and there to the worker
    ``p // ranks % workers``. A ``DataLoader`` takes its batches from its workers in turn.

    Attributes:
        ranks: The world size.
        workers: The workers of each rank, at least 1.
        batch_size: The samples of a batch.
        batches: How many batches each rank took.
    """

    ranks: int = 1
    workers: int = 1
    batch_size: int = 1
    batches: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("ranks", 1), ("workers", 1), ("batch_size", 1), ("batches", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < lowest:
                raise ConfigurationError(f"{name} must be an integer from {lowest} on, got {value!r}")

    @property
    def is_prefix(self) -> bool:
        """Tells whether what was taken is the beginning of the sequence, without gaps."""
        return self.batches % self.workers == 0

    @property
    def prefix(self) -> int:
        """How many samples were taken before the first gap."""
        return self.ranks * self.workers * self.batch_size * (self.batches // self.workers)

    def left(self, number: int) -> int:
        """Returns where in the sequence the sample is that comes as ``number`` among those left."""
        # Some workers are one batch ahead of the others; that batch is a strip of rounds with a gap in each.
        ahead = self.ranks * (self.batches % self.workers)
        round_size = self.ranks * self.workers
        gap = round_size - ahead
        if number < self.batch_size * gap:
            return self.prefix + number // gap * round_size + ahead + number % gap
        return number + self.prefix + self.batch_size * ahead


@dataclass(frozen=True, slots=True)
class Course:
    """The way of one reader through an epoch: what others took before, its share, and how far it is.

    Attributes:
        epoch: The number of the epoch.
        legs: What was taken before, each of what the one before it left.
        shard: The share of the rest.
        taken: How many samples of its share this reader has taken.
    """

    epoch: int = 0
    legs: tuple[Leg | UnevenLeg, ...] = ()
    shard: Shard = field(default_factory=Shard)
    taken: int = 0

    def position(self, number: int) -> int:
        """Returns where in the epoch the sample is that comes as ``number`` among those left by the legs."""
        for leg in reversed(self.legs):
            number = leg.left(number)
        return number

    def positions(self) -> Iterator[int]:
        """Yields the places in the epoch of this share, from where the reader is, without end."""
        first, step = self.shard.first, self.shard.step
        return map(self.position, count_up(first + step * self.taken, step))

    def within(self, count: int, *, uneven: Uneven) -> Iterator[int]:
        """Yields the places in the epoch of this share among ``count``, from where the reader is.

        Args:
            count: The samples of the whole epoch.
            uneven: What becomes of what does not divide evenly between the ranks.
        """
        if uneven == "keep":
            yield from takewhile(lambda place: place < count, self.positions())
            return
        # Positions grow, so the samples that are left can be counted by bisection.
        left = bisect_left(range(count), count, key=self.position)
        length = even_length(left, self.shard.rank.size, uneven)
        first, step = self.shard.first, self.shard.step
        for number in range(first + step * self.taken, length, step):
            yield self.position(number % left)

    def extended(self, leg: Leg) -> tuple[Leg | UnevenLeg, ...]:
        """Returns the legs of this course with one more; neighbours without gaps become one."""
        if leg.batches == 0:
            return self.legs
        if leg.is_prefix:
            done = leg.prefix
            legs = self.legs
            last = legs[-1] if legs else None
            if isinstance(last, Leg) and last.is_prefix:
                done += last.prefix
                legs = legs[:-1]
            return (*legs, Leg(batches=done))
        return (*self.legs, leg)


def check_uneven(value: Any) -> Uneven:
    """Returns the value.

    Raises:
        ConfigurationError: It is none of ``"keep"``, ``"pad"`` and ``"drop"``.
    """
    if value not in {"keep", "pad", "drop"}:
        raise ConfigurationError(f"uneven must be 'keep', 'pad' or 'drop', got {value!r}")
    checked: Uneven = value
    return checked


def even_length(count: int, ranks: int, uneven: Uneven) -> int:
    """Returns how many samples all ranks read together, of ``count``."""
    if uneven == "keep" or count == 0:
        return count
    return count // ranks * ranks if uneven == "drop" else -(-count // ranks) * ranks


def pick(objects: Iterable[T], places: Iterator[int]) -> Iterator[T]:
    """Yields the objects at places that grow, and takes no more of the objects than up to each."""
    source, passed = iter(objects), 0
    for place in places:
        for chosen in islice(source, place - passed, place - passed + 1):
            passed = place + 1
            yield chosen
            break
        else:
            return
