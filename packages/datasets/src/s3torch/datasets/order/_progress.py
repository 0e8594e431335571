"""How far workers are in an epoch of shards, and what is left of it: values without any effect.

Every piece of a shard has a number, by which ranks and workers share the pieces out. When an epoch goes on
with other numbers of them, what each had consumed becomes ``ConsumedPieces``. Those who go on share all
pieces out anew, and leave out what was consumed. A block of the shuffle buffer that was being yielded is
replayed by one of them: the samples that the old worker had in it, in the same order, without those it had
yielded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from s3torch.datasets.order._places import StridedShard


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place between two samples: which shard of the epoch, which piece of it, and the format's position."""

    shard: int = 0
    piece: int = 0
    position: int = 0


# After all shards there can be.
_END = Cursor(1 << 62)


@dataclass(frozen=True, slots=True)
class BlockProgress:
    """How far a worker is with the block of its shuffle buffer that is being yielded.

    Attributes:
        block: Its number.
        begin: Where it begins.
        end: Where it ends; where it begins as long as none of it was yielded.
        count: How many samples it has; 0 as long as none of it was yielded.
        given: How many of them were yielded.
    """

    block: int = 0
    begin: Cursor = Cursor()
    end: Cursor = Cursor()
    count: int = 0
    given: int = 0


@dataclass(frozen=True, slots=True)
class ConsumedPieces:
    """What ranks and workers had consumed when others went on.

    Of the share of each, all samples before its end were taken, or are in an open block.
    """

    ends: Mapping[StridedShard, Cursor]


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """A block that the worker with this share had begun to yield, after so many ``ConsumedPieces``."""

    share: StridedShard
    consumed: int
    progress: BlockProgress

    def after(self, given: int) -> tuple[OpenBlock, ...]:
        """Returns what is left of the block once so many of its samples were yielded: one or nothing."""
        if given == self.progress.count:
            return ()
        return (replace(self, progress=replace(self.progress, given=given)),)


@dataclass(frozen=True, slots=True)
class ShareProgress:
    """How far one worker is with its share.

    Attributes:
        turn: How often the worker has begun with its share again in this epoch.
        taken: How many samples it took in all turns.
        replays: The blocks of earlier workers that it finishes first, the next one first.
        block: How far it is with its own, in this turn.
    """

    turn: int = 0
    taken: int = 0
    replays: tuple[OpenBlock, ...] = ()
    block: BlockProgress = field(default_factory=BlockProgress)

    @property
    def end(self) -> Cursor:
        """The place before which all samples of the first turn were taken, or are in an open block."""
        return _END if self.turn else self.block.end

    def open_blocks(self, share: StridedShard, consumed: int) -> tuple[OpenBlock, ...]:
        """Returns the blocks that were begun and are not yielded whole yet."""
        if self.turn or not self.block.given:
            return self.replays
        return (*self.replays, OpenBlock(share, consumed, self.block))


class Remainder:
    """Where to begin with each piece, after what was consumed."""

    def __init__(self, consumed: Sequence[ConsumedPieces]) -> None:
        # By step and first number, because there may be a thousand workers and a million pieces.
        self._lookups: list[dict[int, dict[int, Cursor]]] = []
        for one in consumed:
            lookup: dict[int, dict[int, Cursor]] = {}
            for share, end in one.ends.items():
                lookup.setdefault(share.step, {})[share.first] = end
            self._lookups.append(lookup)
        self.first_shard = max((min(one.ends.values()).shard for one in consumed), default=0)

    def position(self, shard: int, piece: int, number: int) -> int | None:
        """Returns the position within a piece before which everything was taken; ``None`` for all of it."""
        position = 0
        for lookup in self._lookups:
            for step, ends in lookup.items():
                end = ends.get(number % step)
                if end is None or (end.shard, end.piece) < (shard, piece):
                    continue
                if (end.shard, end.piece) > (shard, piece):
                    return None
                position = end.position or position
        return position


def piece_number(shard: int, piece: int, count: int) -> int:
    """Returns the number by which a piece is shared out, where its shard has ``count`` of them.

    It does not depend on other shards, so one that cannot be read does not shift those after it. Where all
    shards have as many pieces, no two have the same number, and shares differ by one piece at most.
    """
    return shard * count + piece


def divided(
    consumed: tuple[ConsumedPieces, ...],
    shares: Mapping[StridedShard, ShareProgress],
    team: Iterable[StridedShard],
) -> tuple[tuple[ConsumedPieces, ...], dict[StridedShard, ShareProgress]]:
    """Divides what is left by all workers between others, of which ``team`` are some.

    Returns:
        What is consumed now, the same for all who go on, and the progress of the team.
    """
    blocks = [
        block
        for share, progress in sorted(shares.items())
        for block in progress.open_blocks(share, len(consumed))
    ]
    ends = {share: progress.end for share, progress in sorted(shares.items())}
    if any(end != Cursor() for end in ends.values()):
        before = [end for one in consumed for end in one.ends.values()]
        # What is ahead of all earlier ends replaces them, but blocks may refer to those.
        is_enough = not blocks and min(ends.values()) >= max(before, default=Cursor())
        consumed = (ConsumedPieces(ends),) if is_enough else (*consumed, ConsumedPieces(ends))
    # Whoever has the first number of the old share in its new one replays the block.
    return consumed, {
        share: ShareProgress(replays=tuple(block for block in blocks if block.share.first in share))
        for share in team
    }
