"""From a list of shards to the samples of one worker, with the next pieces on their way."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any

from s3torch.datasets.shard_order import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from s3torch.datasets.formats import OpenedShard, ShardPiece
    from s3torch.datasets.sharding import Shard

__all__ = ["ShardPipeline"]

_SHARDS_OPENED = 16
_BYTES_AHEAD = 128 * 1024 * 1024


class ShardPipeline:
    """Reads the pieces that belong to one worker, one after the other.

    Pieces are numbered over all shards in the order of the epoch, and shared out by their number. Pieces of
    tar archives are whole shards, so nothing is asked of the shards of others; of a Parquet file every worker
    reads the footer.

    Args:
        count: How many shards there are.
        open_shard: Opens the shard at a place in the order of the epoch, and returns at once.
        share: The share of this worker.
        ahead: How many pieces are on their way at most behind the one that is read, while they fit in 128
            MiB.
        tolerate: Tells of an error of a shard whether to leave out the rest of it; otherwise it is raised.
    """

    def __init__(
        self,
        count: int,
        open_shard: Callable[[int], OpenedShard],
        *,
        share: Shard,
        ahead: int,
        tolerate: Callable[[Exception], bool],
    ) -> None:
        self._count = count
        self._open_shard = open_shard
        self._share = share
        self._ahead = ahead
        self._tolerate = tolerate

    def samples(self, begin: Cursor) -> Generator[tuple[Cursor, Any]]:
        """Yields the samples from a place on, each with the place behind it."""
        begun = (begin.shard, begin.first, begin.piece)
        with closing(self._started(begin)) as started:
            for place, piece in started:
                try:
                    for after, sample in piece.samples(begin.position if place == begun else 0):
                        yield Cursor(*place, after), sample
                except Exception as exc:
                    if not self._tolerate(exc):
                        raise
                finally:
                    piece.close()

    def _started(self, begin: Cursor) -> Generator[tuple[tuple[int, int, int], ShardPiece]]:
        """Yields the pieces of this worker, with the downloads of the next ones begun."""
        waiting: deque[tuple[tuple[int, int, int], ShardPiece]] = deque()
        weight = 0
        pieces = self._pieces(begin)
        try:
            for entry in pieces:
                waiting.append(entry)
                weight += entry[1].size
                if self._ahead:
                    entry[1].prefetch()
                while len(waiting) > self._ahead or (len(waiting) > 2 and weight > _BYTES_AHEAD):
                    weight -= waiting[0][1].size
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, piece in waiting:
                piece.close()
            pieces.close()

    def _pieces(self, begin: Cursor) -> Generator[tuple[tuple[int, int, int], ShardPiece]]:
        first = begin.first
        for place, opened in self._opened(begin.shard):
            try:
                pieces: Sequence[ShardPiece] = opened.pieces()
            except Exception as exc:
                if not self._tolerate(exc):
                    raise
                continue
            finally:
                opened.close()
            for index, piece in enumerate(pieces):
                passed = place == begin.shard and index < begin.piece
                if first + index in self._share and not passed:
                    yield (place, first, index), piece
            first += len(pieces)

    def _opened(self, begin: int) -> Iterator[tuple[int, OpenedShard]]:
        waiting: deque[tuple[int, OpenedShard]] = deque()
        try:
            for place in range(begin, self._count):
                waiting.append((place, self._open_shard(place)))
                if len(waiting) == _SHARDS_OPENED:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, opened in waiting:
                opened.close()
