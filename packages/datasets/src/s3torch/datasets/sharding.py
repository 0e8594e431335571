"""Who reads which sample: decisions about ranks and workers, as functions of values."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Place", "Shard", "Stripe", "covers_all"]

T = TypeVar("T")


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
class Stripe:
    """Every ``step``-th number from ``first`` on, however many ranks and workers make up the step."""

    first: int = 0
    step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.step:
            raise ConfigurationError(f"expected 0 <= first < step, got {self.first} and {self.step}")

    def __contains__(self, number: int) -> bool:
        return number % self.step == self.first


def covers_all(stripes: Iterable[Stripe]) -> bool:
    """Tells whether these stripes, which do not overlap, have all numbers."""
    return sum(Fraction(1, stripe.step) for stripe in stripes) == 1


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of all samples that one ``DataLoader`` worker of one rank reads.

    Object ``i`` of the listing belongs to the rank ``i % W`` of ``W`` and is there number ``j = i // W``;
    number ``j`` goes to the worker ``j % N`` of the ``N`` that this rank has. ``N`` may differ between ranks.

    Attributes:
        rank: This rank among all ranks.
        worker: This worker among those of the rank.
    """

    rank: Place = Place()
    worker: Place = Place()

    @property
    def first(self) -> int:
        """The index of the first object of this shard."""
        return self.rank.index + self.rank.size * self.worker.index

    @property
    def step(self) -> int:
        """How far the indices of two successive objects of this shard are apart."""
        return self.rank.size * self.worker.size

    @property
    def stripe(self) -> Stripe:
        """The indices of this shard's objects, without who reads them."""
        return Stripe(self.first, self.step)

    def __contains__(self, index: int) -> bool:
        return index >= 0 and index % self.step == self.first

    def indices(self, count: int) -> range:
        """Returns the indices of this shard's objects among ``count``, in listing order."""
        return range(self.first, count, self.step)

    def select(self, objects: Iterable[T]) -> Iterator[T]:
        """Yields this shard's objects in listing order; takes the others from the iterable, too."""
        return islice(objects, self.first, None, self.step)
