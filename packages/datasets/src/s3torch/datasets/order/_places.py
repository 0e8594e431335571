"""Which of all samples one DataLoader worker of one rank reads, and where this process is among them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import current_process
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch.utils.data import get_worker_info

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SLOTS = 256
_COUNTED = ("skipped", "hedged")


@dataclass(frozen=True, slots=True)
class Place:
    """One of ``size`` members, counted from 0: a rank of a world or a worker of a ``DataLoader``."""

    index: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.size:
            raise ConfigurationError(
                f"expected 0 <= index < size, got index {self.index} of size {self.size}"
            )


@dataclass(frozen=True, slots=True, order=True)
class StridedShard:
    """Every ``step``-th number from ``first`` on, however many ranks and workers make up the step."""

    first: int = 0
    step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.step:
            raise ConfigurationError(f"expected 0 <= first < step, got {self.first} and {self.step}")

    def __contains__(self, number: int) -> bool:
        return number % self.step == self.first


def covers_all(shards: Iterable[StridedShard]) -> bool:
    """Whether these shards, which do not overlap, have all numbers."""
    return sum(Fraction(1, shard.step) for shard in shards) == 1


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
