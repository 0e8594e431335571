"""How far one worker is among the samples of its shards, and in which order they come.

Samples are shuffled in blocks: block ``n`` has the ``n``-th ``size`` samples that the worker reads, in an
order that seed, epoch, worker and ``n`` decide. While a block is given out, the next one fills, a sample for
each that leaves, so about ``size`` samples are in memory and nothing waits at the end of a block. As a block
can be read again from where it began, the state of a worker is a few numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.ordering import Permutation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from s3torch.datasets.sharding import Stripe

__all__ = ["BlockProgress", "Cursor", "Mixer"]


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place between two samples.

    Attributes:
        shard: The place of the shard in the order of the epoch.
        piece: The piece within the shard.
        position: The position within the piece, as its format counts.
    """

    shard: int = 0
    piece: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class BlockProgress:
    """How far a worker is.

    Attributes:
        block: The number of the block that is being given out.
        begin: Where it begins.
        end: Where it ends; where it begins as long as none of it was given out.
        count: How many samples it has; 0 as long as none of it was given out.
        given: How many of its samples were given out.
    """

    block: int = 0
    begin: Cursor = Cursor()
    end: Cursor = Cursor()
    count: int = 0
    given: int = 0


class Mixer:
    """Gives out samples block by block.

    Args:
        size: The samples of a block; 1 keeps their order.
        seed: Any integer.
        epoch: Any integer.
        turn: How often the worker has begun with its shards again in this epoch.
        stripe: The share of this worker.
    """

    def __init__(self, size: int, *, seed: int, epoch: int, turn: int, stripe: Stripe) -> None:
        self._size = size
        self._salt = f"{seed}/{epoch}/{turn}/{stripe.first}/{stripe.step}"

    def order(self, block: int, count: int) -> Permutation | range:
        """Returns the order of a block with this many samples."""
        if self._size == 1:
            return range(count)
        digest = blake2b(f"{self._salt}/{block}".encode(), digest_size=8).digest()
        return Permutation(count, seed=int.from_bytes(digest, "big"), epoch=0)

    def mix(
        self, samples: Iterator[tuple[Cursor, Any]], progress: BlockProgress
    ) -> Iterator[tuple[BlockProgress, Any]]:
        """Yields the samples, each with how far the worker is once it was taken.

        Args:
            samples: Those from where the block begins, each with the place behind it.
            progress: Where to go on.

        Raises:
            ConfigurationError: A block that was begun has other samples than before.
        """
        current = list(islice(samples, self._size))
        _check(current, progress)
        while current:
            end, count = current[-1][0], len(current)
            following: list[tuple[Cursor, Any]] = []
            slots: list[Any] = [sample for _, sample in current]
            # A sample that was given out is kept by its user alone.
            current.clear()
            after = BlockProgress(progress.block + 1, end, end)
            for given, place in enumerate(self.order(progress.block, count), 1):
                sample, slots[place] = slots[place], None
                following += islice(samples, 1)
                if given < count:
                    here = BlockProgress(progress.block, progress.begin, end, count, given)
                else:
                    here = after
                if given > progress.given:
                    yield here, sample
            progress = after
            current = following

    def rest(self, samples: list[tuple[Cursor, Any]], progress: BlockProgress) -> Iterator[tuple[int, Any]]:
        """Yields what is left of one block that was begun, each with how many were given out with it.

        Args:
            samples: All that the block has, each with the place behind it; it is emptied.
            progress: How far the block is.

        Raises:
            ConfigurationError: The block has other samples than before.
        """
        _check(samples, progress)
        slots: list[Any] = [sample for _, sample in samples]
        samples.clear()
        for given, place in enumerate(self.order(progress.block, len(slots)), 1):
            sample, slots[place] = slots[place], None
            if given > progress.given:
                yield given, sample


def _check(samples: Sequence[tuple[Cursor, Any]], progress: BlockProgress) -> None:
    """Refuses to guess which samples of a block were given out, where it is another block now."""
    if progress.given and (len(samples) != progress.count or samples[-1][0] != progress.end):
        raise ConfigurationError(
            "the shards do not have the samples any more that they had when the state was saved"
        )
