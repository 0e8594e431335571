"""The samples of one worker in one turn through its shards, with how far it is after each."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from s3torch.datasets.shard_order import Mixer

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from s3torch.datasets.shard_layout import Leg, OpenBlock, ShareProgress
    from s3torch.datasets.shard_pipeline import ShardPipeline
    from s3torch.datasets.sharding import Stripe

__all__ = ["ShardRun"]


class ShardRun:
    """Finishes the blocks that earlier workers had begun, and goes on with what is left of the shards.

    Args:
        pipeline: Reads the pieces.
        stripe: The share of this worker.
        legs: What was taken before it began; counts in the first turn alone.
        seed: Any integer.
        epoch: Any integer.
        buffer: How many samples are mixed.
    """

    def __init__(
        self,
        pipeline: ShardPipeline,
        stripe: Stripe,
        legs: Sequence[Leg],
        *,
        seed: int,
        epoch: int,
        buffer: int,
    ) -> None:
        self._pipeline = pipeline
        self._stripe = stripe
        self._legs = legs
        self._seed = seed
        self._epoch = epoch
        self._buffer = buffer

    def samples(self, progress: ShareProgress) -> Generator[tuple[ShareProgress, Any]]:
        """Yields what is left of the turn, each sample with how far the worker is once it was taken."""
        taken = progress.taken
        while progress.replays:
            block, *later = progress.replays
            for given, sample in self._replayed(block):
                taken += 1
                yield replace(progress, taken=taken, replays=(*block.after(given), *later)), sample
            progress = replace(progress, taken=taken, replays=tuple(later))
        legs = self._legs if progress.turn == 0 else ()
        with closing(self._pipeline.samples(self._stripe, legs, progress.block.begin)) as samples:
            for block_after, sample in self._mixer(self._stripe, progress.turn).mix(samples, progress.block):
                taken += 1
                yield replace(progress, taken=taken, block=block_after), sample

    def _replayed(self, block: OpenBlock) -> Iterator[tuple[int, Any]]:
        legs, begin = self._legs[: block.legs], block.progress.begin
        with closing(self._pipeline.samples(block.stripe, legs, begin)) as samples:
            whole = list(islice(samples, block.progress.count))
        yield from self._mixer(block.stripe, 0).rest(whole, block.progress)

    def _mixer(self, stripe: Stripe, turn: int) -> Mixer:
        return Mixer(self._buffer, seed=self._seed, epoch=self._epoch, turn=turn, stripe=stripe)
