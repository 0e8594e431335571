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

from s3torch.datasets.ordering import Permutation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from s3torch.datasets.sharding import Shard

__all__ = ["BlockProgress", "Cursor", "Mixer"]


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two samples.

    Attributes:
        shard: The place of the shard in the order of the epoch.
        first: How many pieces the shards before it have, of all workers.
        piece: The piece within the shard.
        position: The position within the piece, as its format counts.
    """

    shard: int = 0
    first: int = 0
    piece: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class BlockProgress:
    """How far a worker is.

    Attributes:
        block: The number of the block that is being given out.
        begin: Where it begins.
        given: How many of its samples were given out.
    """

    block: int = 0
    begin: Cursor = Cursor()
    given: int = 0


class Mixer:
    """Gives out samples block by block.

    Args:
        size: The samples of a block; 1 keeps their order.
        seed: Any integer.
        epoch: Any integer.
        turn: How often the worker has begun with its shards again in this epoch.
        shard: The share of this worker.
    """

    def __init__(self, size: int, *, seed: int, epoch: int, turn: int, shard: Shard) -> None:
        self._size = size
        self._salt = f"{seed}/{epoch}/{turn}/{shard.first}/{shard.step}"

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
        """
        current = list(islice(samples, self._size))
        while current:
            end = current[-1][0]
            following: list[tuple[Cursor, Any]] = []
            slots: list[Any] = [sample for _, sample in current]
            # A sample that was given out is kept by its user alone.
            current.clear()
            for given, place in enumerate(self.order(progress.block, len(slots)), 1):
                sample, slots[place] = slots[place], None
                following += islice(samples, 1)
                if given <= progress.given:
                    continue
                if given < len(slots):
                    yield BlockProgress(progress.block, progress.begin, given), sample
                else:
                    yield BlockProgress(progress.block + 1, end), sample
            progress = BlockProgress(progress.block + 1, end)
            current = following
