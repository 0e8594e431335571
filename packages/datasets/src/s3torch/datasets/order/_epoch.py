"""The order of samples, who reads which, and what is left of an epoch.

An epoch is the sequence of the positions 0, 1, 2 … of all samples, in an order that depends on nothing but
seed, epoch and count; ranks and workers share it out. When it is interrupted, what ranks and workers have
consumed is a ``ConsumedPrefix``, or ``ConsumedShares`` where not all consumed the same; what is left is again
such a sequence, and may be shared out in another way.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import count as count_up
from itertools import islice, takewhile
from multiprocessing import current_process
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SLOTS = 256
_COUNTED = ("skipped", "hedged", "repeated")
_LARGEST = (1 << 63) - 1


def check_count(name: str, value: Any, *, lowest: int = 0) -> int:
    """Returns an integer from ``lowest`` on that is no larger than counters can be; refuses all else."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise ConfigurationError(f"{name} must be an integer, got {value!r:.80}")
    number = operator.index(value)
    if not lowest <= number <= _LARGEST:
        raise ConfigurationError(f"{name} must be from {lowest} to {_LARGEST}, got {value!r:.80}")
    return number


@dataclass(frozen=True, slots=True)
class Place:
    """One of ``size`` members, counted from 0: a rank of a world or a worker of a ``DataLoader``."""

    index: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if {type(self.index), type(self.size)} != {int} or not 0 <= self.index < self.size:
            raise ConfigurationError(
                f"expected 0 <= index < size, got index {self.index!r:.80} of size {self.size!r:.80}"
            )


@dataclass(frozen=True, slots=True, order=True)
class StridedShard:
    """Every ``step``-th number from ``first`` on, however many ranks and workers make up the step."""

    first: int = 0
    step: int = 1

    def __post_init__(self) -> None:
        if {type(self.first), type(self.step)} != {int} or not 0 <= self.first < self.step:
            why = f"expected 0 <= first < step, got {self.first!r:.80} and {self.step!r:.80}"
            raise ConfigurationError(why)

    def __contains__(self, number: int) -> bool:
        return number % self.step == self.first


def covers_all(shards: Iterable[StridedShard]) -> bool:
    """Whether these shards, which do not overlap, have all numbers."""
    steps = [shard.step for shard in shards]
    common = math.lcm(*steps)
    return sum(common // step for step in steps) == common


@dataclass(frozen=True, slots=True)
class WorkerShard:
    """The part of all samples that one ``DataLoader`` worker of one rank reads.

    Object ``i`` of the listing belongs to the rank ``i % W`` of ``W`` and is there number ``j = i // W``;
    number ``j`` goes to the worker ``j % N`` of the ``N`` that this rank has. ``N`` may differ between ranks.
    """

    rank: Place = Place()
    worker: Place = Place()

    @property
    def strided(self) -> StridedShard:
        """The indices of this shard's objects, without who reads them."""
        first = self.rank.index + self.rank.size * self.worker.index
        return StridedShard(first, self.rank.size * self.worker.size)


def current_rank() -> Place | None:
    """Returns the place of this rank in the default process group; ``None`` while there is no group.

    A forked worker has the group of its parent, a spawned or forkserver one has none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return Place(dist.get_rank(), dist.get_world_size())


def current_worker() -> Place:
    """Returns the place of this ``DataLoader`` worker; the only one, outside of workers."""
    info = get_worker_info()
    return Place() if info is None else Place(info.id, info.num_workers)


def current_team() -> str:
    """Names the workers that a loader started together with this one; in another epoch it is another name.

    Workers that stay for several epochs keep it. Ranks that run the same program have the same names.
    """
    info = get_worker_info()
    if info is None:
        return ""
    # A process numbers its children, and a loader starts its workers one after the other. The seed may be the
    # same in every epoch.
    number = current_process().name.rpartition("-")[2]
    return str(int(number) - info.id) if number.isdecimal() else f"seed-{info.seed - info.id}"


def given_place(rank: int | None, world_size: int | None) -> Place | None:
    """Returns the place that a user gave, if any; refuses what does not fit together."""
    if rank is None and world_size is None:
        return None
    # A bool is no rank.
    if type(rank) is not int or type(world_size) is not int or not 0 <= rank < world_size:
        raise ConfigurationError(
            "rank and world_size are integers that are given together, with 0 <= rank < world_size; "
            f"got {rank!r} and {world_size!r}"
        )
    return Place(rank, world_size)


class SharedCounter:
    """Counts events in shared memory, which forked and spawned workers have in common with their parent.

    Each worker writes into its own slot, so that nothing is lost.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(len(_COUNTED), _SLOTS, dtype=torch.int64).share_memory_()

    def add(self, name: str) -> None:
        info = get_worker_info()
        self._counts[_COUNTED.index(name), 0 if info is None else 1 + info.id % (_SLOTS - 1)] += 1

    def total(self, name: str) -> int:
        """Returns how many events all processes have counted."""
        return int(self._counts[_COUNTED.index(name)].sum())


T = TypeVar("T")
Uneven = Literal["keep", "pad", "drop"]

_MASK = (1 << 64) - 1
_ROUNDS = 6
_SORTED = 1 << 16


class Permutation(Sequence[int]):
    """The numbers below ``count`` in an order that seed and epoch decide.

    Small ones are kept as a list; large ones are computed at each access, with a Feistel network that walks
    its cycles, so that ten million samples need no memory. Saved states rely on the order, which is the same
    on every machine.
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
class ConsumedPrefix:
    """What ranks and workers consumed of a sequence, when all ranks took the same number of batches.

    Sample ``p`` of the sequence belongs to the rank ``p % ranks`` and there to the worker
    ``p // ranks % workers``. A ``DataLoader`` takes its batches from its workers in turn; each rank took
    ``batches``.
    """

    ranks: int = 1
    workers: int = 1
    batch_size: int = 1
    batches: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("ranks", 1), ("workers", 1), ("batch_size", 1), ("batches", 0)):
            check_count(name, getattr(self, name), lowest=lowest)

    @property
    def has_gaps(self) -> bool:
        """Whether some workers are one batch ahead of the others."""
        return self.batches % self.workers != 0

    @property
    def length(self) -> int:
        """How many samples were consumed before the first gap."""
        return self.ranks * self.workers * self.batch_size * (self.batches // self.workers)

    def left(self, number: int) -> int:
        """Returns where in the sequence the sample is that comes as ``number`` among those left."""
        # The batch that some workers are ahead is a strip of rounds with a gap in each.
        ahead = self.ranks * (self.batches % self.workers)
        round_size = self.ranks * self.workers
        gap = round_size - ahead
        if number < self.batch_size * gap:
            return self.length + number // gap * round_size + ahead + number % gap
        return number + self.length + self.batch_size * ahead


@dataclass(frozen=True, slots=True)
class ConsumedShares:
    """What was consumed of a sequence, when ranks and workers did not all take the same.

    Share ``i`` of ``n`` has every ``n``-th sample from ``i`` on, of which ``taken[i]`` were taken.
    """

    taken: tuple[int, ...]
    # Rounds of the sequence, one sample of each share, in stretches in which the same shares have some left:
    # where the stretch begins among those left, with which round, and which shares they are.
    _stretches: list[tuple[int, int, list[int]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        taken = tuple(self.taken)
        if not taken:
            raise ConfigurationError("taken must have the number of samples of each share, got none")
        for count in taken:
            check_count("taken", count)
        stretches: list[tuple[int, int, list[int]]] = []
        for begin in sorted(set(taken)):
            number = 0
            if stretches:
                before, since, shares = stretches[-1]
                number = before + (begin - since) * len(shares)
            stretches.append((number, begin, [share for share, count in enumerate(taken) if count <= begin]))
        object.__setattr__(self, "taken", taken)
        object.__setattr__(self, "_stretches", stretches)

    def left(self, number: int) -> int:
        """Returns where in the sequence the sample is that comes as ``number`` among those left."""
        at = bisect_right(self._stretches, number, key=lambda stretch: stretch[0]) - 1
        first, begin, shares = self._stretches[at]
        rounds, share = divmod(number - first, len(shares))
        return (begin + rounds) * len(self.taken) + shares[share]


@dataclass(frozen=True, slots=True)
class EpochPosition:
    """Where one reader is in an epoch.

    Attributes:
        epoch: The number of the epoch.
        consumed: What was consumed before, each of what the one before it left.
        shard: The part of the rest that the reader reads, of which it has ``taken`` so many samples.
        finished: Whether the iteration has ended, so that the next one is that of the next epoch.
    """

    epoch: int = 0
    consumed: tuple[ConsumedPrefix | ConsumedShares, ...] = ()
    shard: WorkerShard = field(default_factory=WorkerShard)
    taken: int = 0
    finished: bool = False

    def position(self, number: int) -> int:
        """Returns where in the epoch the sample is that comes as ``number`` among those left."""
        for one in reversed(self.consumed):
            number = one.left(number)
        return number

    def positions(self) -> Iterator[int]:
        """Yields the positions in the epoch that are left to this reader, without end."""
        share = self.shard.strided
        return map(self.position, count_up(share.first + share.step * self.taken, share.step))

    def within(self, count: int, *, uneven: Uneven) -> Iterator[int]:
        """Yields the positions that are left to this reader of an epoch of ``count`` samples.

        ``uneven`` says what becomes of samples that cannot be shared out evenly between the ranks.
        """
        if uneven == "keep":
            yield from takewhile(lambda place: place < count, self.positions())
            return
        # Positions grow, so the samples that are left can be counted by bisection.
        left = bisect_left(range(count), count, key=self.position)
        length = even_length(left, self.shard.rank.size, uneven)
        share = self.shard.strided
        for number in range(share.first + share.step * self.taken, length, share.step):
            yield self.position(number % left)

    def extended(self, more: ConsumedPrefix) -> tuple[ConsumedPrefix | ConsumedShares, ...]:
        """Returns what was consumed with one more; neighbours without gaps become one."""
        if more.batches == 0:
            return self.consumed
        if more.has_gaps:
            return (*self.consumed, more)
        before, done = self.consumed, more.length
        last = before[-1] if before else None
        if isinstance(last, ConsumedPrefix) and not last.has_gaps:
            before, done = before[:-1], done + last.length
        return (*before, ConsumedPrefix(batches=done))

    def for_shard(self, shard: WorkerShard) -> EpochPosition:
        """Returns where a reader of this shard goes on; refuses a position of one of several others."""
        if self.finished:
            return EpochPosition(self.epoch + 1, shard=shard)
        return self if self.shard == shard else replace(self.for_all(), shard=shard)

    def for_all(self) -> EpochPosition:
        """Returns the position of all ranks and workers together; refuses one of one of several."""
        if self.finished:
            return EpochPosition(self.epoch + 1)
        if self.taken == 0:
            return replace(self, shard=WorkerShard())
        if self.shard.strided.step == 1:
            return EpochPosition(self.epoch, self.extended(ConsumedPrefix(batches=self.taken)))
        raise ConfigurationError(
            f"the state belongs to {self.shard} alone; to resume with another number of ranks or workers, "
            "save the state of a ResumableLoader"
        )


def check_uneven(value: Any) -> Uneven:
    """Returns the value; raises ``ConfigurationError`` if it is none of ``Uneven``."""
    if value not in {"keep", "pad", "drop"}:
        raise ConfigurationError(f"uneven must be 'keep', 'pad' or 'drop', got {value!r}")
    checked: Uneven = value
    return checked


def even_length(count: int, ranks: int, uneven: Uneven) -> int:
    """Returns how many samples all ranks read together, of ``count``."""
    if uneven == "keep" or count == 0:
        return count
    return count // ranks * ranks if uneven == "drop" else -(-count // ranks) * ranks


def pick(objects: Iterable[T], positions: Iterator[int]) -> Iterator[T]:
    """Yields the objects at growing positions, and consumes no more of the objects than up to each."""
    source, passed = iter(objects), 0
    for position in positions:
        for chosen in islice(source, position - passed, position - passed + 1):
            passed = position + 1
            yield chosen
            break
        else:
            return
