"""From a list of shards to the samples of one worker, shuffled in blocks, with the next pieces in flight.

Block ``n`` has the ``n``-th ``size`` samples that the worker reads, in an order that seed, epoch, worker and
``n`` decide. While a block is yielded, the next one fills, a sample for each that leaves, so about ``size``
samples are in memory and nothing waits at the end of a block. A block can be read again from where it began,
so the state of a worker is a few numbers.
"""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets._opening import Ahead, look_ahead
from s3torch.datasets.order._epoch import Permutation
from s3torch.datasets.order._state import BlockProgress, Cursor, Remainder, piece_number

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from s3torch.datasets.formats import OpenedShard, ShardPiece
    from s3torch.datasets.order._epoch import StridedShard
    from s3torch.datasets.order._state import ConsumedPieces, OpenBlock, ShareProgress

_SHARDS_OPENED = Ahead(15)
_BYTES_AHEAD = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Begun:
    """A piece, and where to begin with it."""

    cursor: Cursor
    piece: ShardPiece

    def prefetch(self) -> None:
        self.piece.prefetch()

    def close(self) -> None:
        self.piece.close()


class BlockShuffler:
    """Yields samples of a worker in shuffled blocks of ``size``; 1 keeps their order."""

    def __init__(self, size: int, *, seed: int, epoch: int, turn: int, share: StridedShard) -> None:
        self._size = size
        self._salt = f"{seed}/{epoch}/{turn}/{share.first}/{share.step}"

    def order(self, block: int, count: int) -> Permutation | range:
        """Returns the order of a block with this many samples."""
        if self._size == 1:
            return range(count)
        digest = blake2b(f"{self._salt}/{block}".encode(), digest_size=8).digest()
        return Permutation(count, seed=int.from_bytes(digest, "big"), epoch=0)

    def shuffle(
        self, samples: Iterator[tuple[Cursor, Any]], progress: BlockProgress
    ) -> Iterator[tuple[BlockProgress, Any]]:
        """Yields the samples, each with how far the worker is once it was taken.

        They come from where the block in ``progress`` begins, each with the place after it. A block that was
        begun is refused if it has other samples than before.
        """
        current = list(islice(samples, self._size))
        if progress.given and (len(current) != progress.count or current[-1][0] != progress.end):
            # Nobody can say which of them were yielded.
            raise ConfigurationError(
                "the shards no longer have the samples that they had when the state was saved"
            )
        while current:
            end, count = current[-1][0], len(current)
            following: list[tuple[Cursor, Any]] = []
            slots: list[Any] = [sample for _, sample in current]
            # A sample that was yielded is kept by its user alone.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRun:
    """The samples of one worker in one turn through its share.

    It finishes the blocks that earlier workers had begun, and goes on with what is left of the shards, one
    piece after the other. Pieces are shared out by their number, see ``piece_number``. Pieces of tar archives
    are whole shards, so nothing is asked of the shards of others; of a Parquet file every worker reads the
    footer.

    Attributes:
        count: How many shards there are.
        open_shard: Opens the shard at a place in the order of the epoch, and returns at once.
        ahead: How many pieces are in flight at most after the one that is read, while they fit in 128 MiB.
        tolerate: Whether to leave out the rest of a shard after this error; otherwise it is raised.
        report: Called with each error that was tolerated, in one of the workers that came across it.
        share: The share of the worker.
        consumed: What was consumed before, which counts in the first turn alone.
        seed: Decides the order of samples.
        epoch: Also decides it.
        buffer: How many samples are shuffled together.
    """

    count: int
    open_shard: Callable[[int], OpenedShard]
    ahead: int
    tolerate: Callable[[Exception], bool]
    report: Callable[[Exception], object]
    share: StridedShard
    consumed: Sequence[ConsumedPieces]
    seed: int
    epoch: int
    buffer: int

    def samples(self, progress: ShareProgress) -> Generator[tuple[ShareProgress, Any]]:
        """Yields what is left of the turn, each sample with how far the worker is once it was taken."""
        taken = progress.taken
        while progress.replays:
            block, *later = progress.replays
            for here, sample in self._replayed(block):
                taken += 1
                # Once it was yielded whole, another block comes.
                rest = (replace(block, progress=here),) if here.block == block.progress.block else ()
                yield replace(progress, taken=taken, replays=(*rest, *later)), sample
            progress = replace(progress, taken=taken, replays=tuple(later))
        consumed = self.consumed if progress.turn == 0 else ()
        with closing(self._read(self.share, consumed, progress.block.begin)) as samples:
            shuffler = self._shuffler(self.share, progress.turn)
            for block_after, sample in shuffler.shuffle(samples, progress.block):
                taken += 1
                yield replace(progress, taken=taken, block=block_after), sample

    def _replayed(self, block: OpenBlock) -> Iterator[tuple[BlockProgress, Any]]:
        consumed, begin = self.consumed[: block.consumed], block.progress.begin
        with closing(self._read(block.share, consumed, begin)) as samples:
            whole = deque(islice(samples, block.progress.count))
        # A sample that was yielded is kept by its user alone.
        emptied = (whole.popleft() for _ in range(len(whole)))
        yield from self._shuffler(block.share, 0).shuffle(emptied, block.progress)

    def _shuffler(self, share: StridedShard, turn: int) -> BlockShuffler:
        return BlockShuffler(self.buffer, seed=self.seed, epoch=self.epoch, turn=turn, share=share)

    def _read(
        self, share: StridedShard, consumed: Sequence[ConsumedPieces], begin: Cursor
    ) -> Generator[tuple[Cursor, Any]]:
        """Yields the samples of the worker with this share, each with the place after it.

        The worker goes on at ``begin``; what was ``consumed`` before it began is left out.
        """
        ahead = Ahead(self.ahead, _BYTES_AHEAD)
        with (
            closing(self._pieces(share, consumed, begin)) as pieces,
            closing(look_ahead(pieces, ahead, weigh=lambda one: one.piece.size)) as started,
        ):
            for one in started:
                place, index = one.cursor.shard, one.cursor.piece
                try:
                    for after, sample in one.piece.samples(one.cursor.position):
                        yield Cursor(place, index, after), sample
                except Exception as exc:
                    if not self.tolerate(exc):
                        raise
                    self.report(exc)
                finally:
                    one.close()

    def _pieces(
        self, share: StridedShard, consumed: Sequence[ConsumedPieces], begin: Cursor
    ) -> Generator[_Begun]:
        left = Remainder(consumed)
        places = range(max(begin.shard, left.first_shard), self.count)
        opening = map(self.open_shard, places)
        # They start when they are opened, and their pieces only for the worker that reads them.
        with closing(look_ahead(opening, _SHARDS_OPENED, start=lambda _: None)) as shards:
            for place, opened in zip(places, shards, strict=True):
                try:
                    pieces: Sequence[ShardPiece] = opened.pieces()
                except Exception as exc:
                    if not self.tolerate(exc):
                        raise
                    # Every worker comes across it.
                    if place in share:
                        self.report(exc)
                    continue
                finally:
                    opened.close()
                for index, piece in enumerate(pieces):
                    number = piece_number(place, index, len(pieces))
                    if number not in share or (place, index) < (begin.shard, begin.piece):
                        continue
                    position = left.position(place, index, number)
                    if position is None:
                        continue
                    if (place, index) == (begin.shard, begin.piece):
                        position = begin.position or position
                    yield _Begun(Cursor(place, index, position), piece)
