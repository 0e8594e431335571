"""What is left of an epoch of shards, whoever reads it next: functions of values, without any effect.

Every piece of a shard has a number, by which ranks and workers share the pieces out. When an epoch goes on
with other numbers of them, how far each was is a ``Leg``. Those who go on share all pieces out anew, and
leave out what a leg says was taken. A block of the shuffle buffer that was being given out is replayed by one
of them: the samples that the old worker had in it, in the same order, without those it gave out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from s3torch.datasets.shard_order import BlockProgress, Cursor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from s3torch.datasets.sharding import Stripe

__all__ = ["Leg", "OpenBlock", "Remainder", "ShareProgress", "divided", "piece_number"]

# Behind all shards there can be.
_BEHIND = Cursor(1 << 62)


@dataclass(frozen=True, slots=True)
class Leg:
    """How far ranks and workers were when others went on.

    Attributes:
        ends: Of each share, before which place all samples were taken, or are in an open block.
    """

    ends: Mapping[Stripe, Cursor]


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """A block that an earlier worker had begun to give out.

    Attributes:
        stripe: The share of that worker.
        legs: How many legs there were before that worker began.
        progress: How far the block is.
    """

    stripe: Stripe
    legs: int
    progress: BlockProgress

    def after(self, given: int) -> tuple[OpenBlock, ...]:
        """Returns what is left of the block once so many of its samples were given out: one or nothing."""
        if given == self.progress.count:
            return ()
        return (replace(self, progress=replace(self.progress, given=given)),)


@dataclass(frozen=True, slots=True)
class ShareProgress:
    """How far one worker is.

    Attributes:
        turn: How often the worker has begun with its shards again in this epoch.
        taken: How many samples it took in all turns.
        replays: The blocks of earlier workers that it finishes first, the next one in front.
        block: How far it is with its own, in this turn.
    """

    turn: int = 0
    taken: int = 0
    replays: tuple[OpenBlock, ...] = ()
    block: BlockProgress = field(default_factory=BlockProgress)

    @property
    def end(self) -> Cursor:
        """Before which place all samples of the first turn were taken, or are in an open block."""
        return _BEHIND if self.turn else self.block.end

    def open_blocks(self, stripe: Stripe, legs: int) -> tuple[OpenBlock, ...]:
        """Returns what was begun and is not given out yet."""
        if self.turn or not self.block.given:
            return self.replays
        return (*self.replays, OpenBlock(stripe, legs, self.block))


class Remainder:
    """Tells of each piece where to begin with it."""

    def __init__(self, legs: Sequence[Leg]) -> None:
        # By step and first number, because there may be a thousand workers and a million pieces.
        self._legs: list[dict[int, dict[int, Cursor]]] = []
        for leg in legs:
            lookup: dict[int, dict[int, Cursor]] = {}
            for stripe, end in leg.ends.items():
                lookup.setdefault(stripe.step, {})[stripe.first] = end
            self._legs.append(lookup)
        self.first_shard = max((min(leg.ends.values()).shard for leg in legs), default=0)

    def position(self, shard: int, piece: int, number: int) -> int | None:
        """Returns the position within a piece before which everything was taken; ``None`` for all of it."""
        position = 0
        for lookup in self._legs:
            for step, ends in lookup.items():
                end = ends.get(number % step)
                if end is None or (end.shard, end.piece) < (shard, piece):
                    continue
                if (end.shard, end.piece) > (shard, piece):
                    return None
                position = end.position or position
        return position


def piece_number(shard: int, piece: int, count: int) -> int:
    """Returns the number by which a piece is shared out, where a shard has ``count`` of them.

    It does not depend on other shards, so one that cannot be read does not shift those behind it. Where all
    shards have as many pieces, no two have the same number, and shares differ by one piece at most.
    """
    return shard * count + piece


def divided(
    legs: tuple[Leg, ...], shares: Mapping[Stripe, ShareProgress], team: Iterable[Stripe]
) -> tuple[tuple[Leg, ...], dict[Stripe, ShareProgress]]:
    """Divides what is left between others.

    Args:
        legs: The legs before.
        shares: How far all workers of all ranks are.
        team: Some of those who go on.

    Returns:
        The legs now, which are the same for all who go on, and the shares of the team.
    """
    blocks = [
        block
        for stripe, progress in sorted(shares.items())
        for block in progress.open_blocks(stripe, len(legs))
    ]
    ends = {stripe: progress.end for stripe, progress in sorted(shares.items())}
    if any(end != Cursor() for end in ends.values()):
        before = [end for leg in legs for end in leg.ends.values()]
        # A leg that is ahead of all others says it all, but blocks may refer to those.
        is_enough = not blocks and min(ends.values()) >= max(before, default=Cursor())
        legs = (Leg(ends),) if is_enough else (*legs, Leg(ends))
    # Whoever has the first number of the old share in its new one replays the block.
    return legs, {
        stripe: ShareProgress(replays=tuple(block for block in blocks if block.stripe.first in stripe))
        for stripe in team
    }
