"""How far workers are in an epoch of shards, as plain values for ``state_dict()``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.shard_layout import Leg, OpenBlock, ShareProgress, divided
from s3torch.datasets.shard_order import BlockProgress, Cursor
from s3torch.datasets.sharding import Stripe, covers_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ShardMark", "ShardState"]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class ShardMark:
    """How far one worker was when it made a batch.

    Attributes:
        shards: What tells these shards from others.
        stripe: The share of the worker.
        progress: How far it was.
    """

    shards: str
    stripe: Stripe
    progress: ShareProgress


@dataclass(slots=True)
class ShardState:
    """How far some workers are, or all of them; an iteration writes its share for each sample.

    Attributes:
        epoch: The number of the epoch.
        order: What else decides the order of samples, to be compared when a state is loaded.
        shards: What tells these shards from others; empty before they were listed.
        quota: How many samples each worker yields, where that is not what the dataset says.
        legs: What was taken before ranks or workers changed.
        shares: How far each worker is.
    """

    epoch: int
    order: Mapping[str, Any]
    shards: str = ""
    quota: int | None = None
    legs: tuple[Leg, ...] = ()
    shares: dict[Stripe, ShareProgress] = field(default_factory=dict)

    def taken_up(self, team: Sequence[Stripe], *, quota: int | None = None) -> ShardState:
        """Returns the state with which workers of a rank go on.

        Where the numbers of ranks and workers are the same as before, each goes on with what it had. Else
        what is left is divided anew.

        Args:
            team: The shares of some workers of this rank, or of all.
            quota: How many samples each worker yields, as the dataset says.

        Raises:
            ConfigurationError: What is left is not known, because states of other ranks are missing.
        """
        steps = {stripe.step for stripe in team}
        is_whole = covers_all(self.shares)
        if set(team) <= set(self.shares) and (not is_whole or steps == {one.step for one in self.shares}):
            return replace(self, shares={stripe: self.shares[stripe] for stripe in team})
        if not self.legs and all(progress == ShareProgress() for progress in self.shares.values()):
            return replace(self, shares={stripe: ShareProgress() for stripe in team})
        if not is_whole:
            raise ConfigurationError(
                "the state is that of a rank or worker of others than these: to resume shards with other "
                "numbers of ranks or workers, merge_states() of all ranks"
            )
        quota = quota if self.quota is None else self.quota
        if quota is not None:
            left = sum(max(0, quota - progress.taken) for progress in self.shares.values())
            quota = -(-left // max(steps))
        legs, shares = divided(self.legs, self.shares, team)
        return replace(self, quota=quota, legs=legs, shares=shares)

    def note(self, mark: ShardMark) -> None:
        """Takes over how far a worker was."""
        self.shards = mark.shards
        self.shares[mark.stripe] = mark.progress

    @classmethod
    def merged(cls, states: Sequence[ShardState]) -> ShardState:
        """Puts the shares of several ranks or workers together.

        Raises:
            ConfigurationError: They do not belong together.
        """
        shares: dict[Stripe, ShareProgress] = {}
        first = states[0]
        for state in states:
            same = replace(state, shares={}, shards=first.shards) == replace(first, shares={})
            if not same or (state.shards and first.shards and state.shards != first.shards):
                raise ConfigurationError("the states were not saved at the same point of the same epoch")
            for stripe, progress in state.shares.items():
                if shares.setdefault(stripe, progress) != progress:
                    raise ConfigurationError(f"two states are those of the same worker, {stripe}")
        shards = next((state.shards for state in states if state.shards), "")
        return replace(first, shards=shards, shares=shares)

    def to_dict(self) -> dict[str, Any]:
        """Puts it into plain values; how many depends on the workers, not on the samples."""
        return {
            "version": _VERSION,
            "order": dict(self.order),
            "epoch": self.epoch,
            "shards": self.shards,
            "quota": self.quota,
            "legs": [
                [[*_stripe(stripe), *_cursor(end)] for stripe, end in leg.ends.items()] for leg in self.legs
            ],
            "shares": [
                {
                    "stripe": _stripe(stripe),
                    "turn": progress.turn,
                    "taken": progress.taken,
                    "replays": [
                        [_stripe(block.stripe), block.legs, _block(block.progress)]
                        for block in progress.replays
                    ],
                    "block": _block(progress.block),
                }
                for stripe, progress in self.shares.items()
            ],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ShardState:
        """Reads what ``to_dict`` made.

        Raises:
            ConfigurationError: It is no such state.
        """
        try:
            version = state["version"]
            loaded = cls(
                epoch=int(state["epoch"]),
                order=dict(state["order"]),
                shards=state["shards"],
                quota=state["quota"],
                legs=tuple(Leg({Stripe(*end[:2]): Cursor(*end[2:]) for end in leg}) for leg in state["legs"]),
                shares={Stripe(*share["stripe"]): _share(share) for share in state["shares"]},
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError(f"this is no state of an S3ShardDataset: {exc!r}") from exc
        if version != _VERSION:
            raise ConfigurationError(f"the state has version {version!r}, this release reads {_VERSION}")
        return loaded


def _stripe(stripe: Stripe) -> list[int]:
    return [stripe.first, stripe.step]


def _cursor(cursor: Cursor) -> list[int]:
    return [cursor.shard, cursor.piece, cursor.position]


def _block(block: BlockProgress) -> list[Any]:
    return [block.block, _cursor(block.begin), _cursor(block.end), block.count, block.given]


def _share(share: Mapping[str, Any]) -> ShareProgress:
    replays = tuple(
        OpenBlock(Stripe(*stripe), legs, _loaded_block(block)) for stripe, legs, block in share["replays"]
    )
    return ShareProgress(share["turn"], share["taken"], replays, _loaded_block(share["block"]))


def _loaded_block(block: Sequence[Any]) -> BlockProgress:
    number, begin, end, count, given = block
    return BlockProgress(number, Cursor(*begin), Cursor(*end), count, given)
