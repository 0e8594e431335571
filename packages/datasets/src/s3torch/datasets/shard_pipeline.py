"""From a list of shards to the samples of one worker, with the next pieces on their way."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from typing import TYPE_CHECKING, Any

from s3torch.datasets.shard_layout import Remainder, piece_number
from s3torch.datasets.shard_order import Cursor

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from typing import TypeAlias

    from s3torch.datasets.formats import OpenedShard, ShardPiece
    from s3torch.datasets.shard_layout import Leg
    from s3torch.datasets.sharding import Stripe

    # A piece by shard and number, the position where to begin, and the piece.
    _Place: TypeAlias = tuple[tuple[int, int], int, ShardPiece]

__all__ = ["ShardPipeline"]

_SHARDS_OPENED = 16
_BYTES_AHEAD = 128 * 1024 * 1024


class ShardPipeline:
    """Reads the pieces that belong to one worker, one after the other.

    Pieces are shared out by their number, see ``piece_number``. Pieces of tar archives are whole shards, so
    nothing is asked of the shards of others; of a Parquet file every worker reads the footer.

    Args:
        count: How many shards there are.
        open_shard: Opens the shard at a place in the order of the epoch, and returns at once.
        ahead: How many pieces are on their way at most behind the one that is read, while they fit in 128
            MiB.
        tolerate: Tells of an error of a shard whether to leave out the rest of it; otherwise it is raised.
        tell: Is told of each error that was tolerated, in one of the workers that came across it.
    """

    def __init__(
        self,
        count: int,
        open_shard: Callable[[int], OpenedShard],
        *,
        ahead: int,
        tolerate: Callable[[Exception], bool],
        tell: Callable[[Exception], object],
    ) -> None:
        self._count = count
        self._open_shard = open_shard
        self._ahead = ahead
        self._tolerate = tolerate
        self._tell = tell

    def samples(self, stripe: Stripe, legs: Sequence[Leg], begin: Cursor) -> Generator[tuple[Cursor, Any]]:
        """Yields the samples of one worker from a place on, each with the place behind it.

        Args:
            stripe: The share of the worker.
            legs: What was taken before it began.
            begin: Where it goes on.
        """
        with closing(self._started(self._pieces(stripe, legs, begin))) as started:
            for (place, index), position, piece in started:
                try:
                    for after, sample in piece.samples(position):
                        yield Cursor(place, index, after), sample
                except Exception as exc:
                    if not self._tolerate(exc):
                        raise
                    self._tell(exc)
                finally:
                    piece.close()

    def _started(self, pieces: Generator[_Place]) -> Generator[_Place]:
        """Yields the pieces, with the downloads of the next ones begun."""
        waiting: deque[_Place] = deque()
        weight = 0
        try:
            for entry in pieces:
                waiting.append(entry)
                weight += entry[2].size
                if self._ahead:
                    entry[2].prefetch()
                while len(waiting) > self._ahead or (len(waiting) > 2 and weight > _BYTES_AHEAD):
                    weight -= waiting[0][2].size
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, _, piece in waiting:
                piece.close()
            pieces.close()

    def _pieces(self, stripe: Stripe, legs: Sequence[Leg], begin: Cursor) -> Generator[_Place]:
        """Yields the pieces of one worker that are left, and where to begin with each."""
        left = Remainder(legs)
        for place, opened in self._opened(max(begin.shard, left.first_shard)):
            try:
                pieces: Sequence[ShardPiece] = opened.pieces()
            except Exception as exc:
                if not self._tolerate(exc):
                    raise
                # Every worker comes across it.
                if place in stripe:
                    self._tell(exc)
                continue
            finally:
                opened.close()
            for index, piece in enumerate(pieces):
                number = piece_number(place, index, len(pieces))
                if number not in stripe or (place, index) < (begin.shard, begin.piece):
                    continue
                position = left.position(place, index, number)
                if position is None:
                    continue
                if (place, index) == (begin.shard, begin.piece):
                    position = begin.position or position
                yield (place, index), position, piece

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
