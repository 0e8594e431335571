"""How far an iteration is: what ``state_dict()`` returns and ``load_state_dict()`` takes.

A state is a few numbers in plain values: what was consumed before the numbers of ranks and workers changed
last, and how far each worker has been since. ``ObjectState`` is that of a sequence of objects, where a
worker's progress is a number; ``ShardState`` is that of shards. The names in the values are those of release
0.1.0, whose states are still loaded.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.order._epoch import (
    ConsumedPrefix,
    ConsumedShares,
    EpochPosition,
    Place,
    StridedShard,
    WorkerShard,
    check_count,
    covers_all,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Self


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
    """What others had consumed: of each share all before its end was taken, or is in an open block."""

    ends: Mapping[StridedShard, Cursor]


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """A block that the worker with this share had begun to yield, after so many ``ConsumedPieces``."""

    share: StridedShard
    consumed: int
    progress: BlockProgress


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

    Returns what is consumed now, the same for all who go on, and the progress of the team.
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


P = TypeVar("P")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Mark(Generic[P]):
    """How far the worker with a share was when it made a batch."""

    share: StridedShard
    progress: P
    listing: str = ""


@dataclass(slots=True)
class IterationState(Generic[P]):
    """How far some workers are in an epoch, or all of them.

    Attributes:
        order: What decides the order of samples, compared when a state is loaded.
        shares: How far each worker is.
        listing: The digest of what is shared out; empty before it was listed, or where nobody compares it.
    """

    _of: ClassVar[str]
    order: Mapping[str, Any]
    shares: dict[StridedShard, P] = field(default_factory=dict)
    listing: str = ""

    def noted(self, marks: Iterable[Mark[P]]) -> Self:
        for mark in marks:
            self.listing = mark.listing
            self.shares[mark.share] = mark.progress
        return self

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], order: Mapping[str, Any] | None = None) -> Self:
        """Reads what ``to_dict`` returned; refuses all else and, if given, another order of samples."""
        try:
            loaded, version = cls._read(state), state["version"]
        except (AttributeError, KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError(f"this is not a state of an {cls._of}: {exc!r}") from exc
        if version != _VERSION:
            raise ConfigurationError(f"the state has version {version!r:.80}, this release reads {_VERSION}")
        if order is not None and dict(loaded.order) != dict(order):
            raise ConfigurationError(
                f"the state was saved with {loaded.order!r:.400} and the dataset has {dict(order)}: "
                "the order would differ"
            )
        return loaded

    @classmethod
    @abstractmethod
    def _read(cls, state: Mapping[str, Any]) -> Self: ...


@dataclass(slots=True)
class ObjectState(IterationState[int]):
    """The state of an iterable dataset of objects: where the reader is, or where all readers began.

    With ``counts``, the ``shares`` say how many objects each worker has taken since.
    """

    _of = "S3IterableDataset"
    position: EpochPosition = field(default_factory=EpochPosition)
    counts: bool = False

    def to_dict(self) -> dict[str, Any]:
        here, shard = self.position, self.position.shard
        state = {
            "version": _VERSION,
            "order": dict(self.order),
            "epoch": here.epoch,
            "legs": [
                asdict(one) if isinstance(one, ConsumedPrefix) else {"taken": list(one.taken)}
                for one in here.consumed
            ],
            "rank": [shard.rank.index, shard.rank.size],
            "worker": [shard.worker.index, shard.worker.size],
            "taken": here.taken,
        }
        if self.counts:
            state["shares"] = [[share.first, share.step, taken] for share, taken in self.shares.items()]
        return state | ({"finished": True} if here.finished else {})

    @classmethod
    def _read(cls, state: Mapping[str, Any]) -> Self:
        return cls(
            order=dict(state["order"]),
            shares={
                StridedShard(first, step): check_count("taken", taken)
                for first, step, taken in state.get("shares", ())
            },
            position=EpochPosition(
                epoch=check_count("epoch", state["epoch"]),
                consumed=tuple(
                    ConsumedShares(one["taken"]) if "taken" in one else ConsumedPrefix(**one)
                    for one in state["legs"]
                ),
                shard=WorkerShard(Place(*state["rank"]), Place(*state["worker"])),
                taken=check_count("taken", state["taken"]),
                finished=state.get("finished") is True,
            ),
            counts="shares" in state,
        )

    def resumed(self) -> EpochPosition:
        """Returns where to go on; refuses where it is not known what other ranks have taken."""
        if not any(self.shares.values()):
            return self.position
        if not covers_all(self.shares) or len({share.step for share in self.shares}) > 1:
            raise ConfigurationError(
                "the state belongs to one rank of several, and after skipped objects each is at another "
                "place; resume from merge_states() of all ranks, with the same number of workers"
            )
        consumed = ConsumedShares(tuple(taken for _, taken in sorted(self.shares.items())))
        return replace(self.position, consumed=(*self.position.consumed, consumed))


@dataclass(slots=True)
class ShardState(IterationState[ShareProgress]):
    """The state of a dataset of shards; an iteration writes its share for each sample.

    Attributes:
        epoch: The number of the epoch.
        quota: How many samples each worker yields, where that is not what the dataset says.
        consumed: What was consumed before ranks or workers changed.
        finished: Whether the iteration has ended, so that the next one is that of the next epoch.
    """

    _of = "S3ShardDataset"
    epoch: int = 0
    quota: int | None = None
    consumed: tuple[ConsumedPieces, ...] = ()
    finished: bool = False

    def taken_up(self, team: Sequence[StridedShard], *, quota: int | None = None) -> ShardState:
        """Returns the state with which workers of a rank go on.

        Where the numbers of ranks and workers are the same as before, each goes on with what it had. Else
        what is left is divided anew, which needs the states of all ranks. ``team`` are the shares of some
        workers of this rank, and ``quota`` is how many samples each worker yields, as the dataset says.
        """
        if self.finished:
            return ShardState(self.order, {share: ShareProgress() for share in team}, epoch=self.epoch + 1)
        steps = {share.step for share in team}
        is_whole = covers_all(self.shares)
        if set(team) <= set(self.shares) and (not is_whole or steps == {one.step for one in self.shares}):
            return replace(self, shares={share: self.shares[share] for share in team})
        if not self.consumed and all(progress == ShareProgress() for progress in self.shares.values()):
            return replace(self, shares={share: ShareProgress() for share in team})
        if not is_whole:
            raise ConfigurationError(
                "the state belongs to one rank or worker of another number of them; to resume shards with "
                "other numbers, load merge_states() of all ranks"
            )
        quota = quota if self.quota is None else self.quota
        if quota is not None:
            left = sum(max(0, quota - progress.taken) for progress in self.shares.values())
            quota = -(-left // max(steps))
        consumed, shares = divided(self.consumed, self.shares, team)
        return replace(self, quota=quota, consumed=consumed, shares=shares)

    def to_dict(self) -> dict[str, Any]:
        state = {
            "version": _VERSION,
            "order": dict(self.order),
            "epoch": self.epoch,
            "shards": self.listing,
            "quota": self.quota,
            "legs": [
                [[*_plain(share), *_plain(end)] for share, end in one.ends.items()] for one in self.consumed
            ],
            "shares": [
                {
                    "stripe": _plain(share),
                    "turn": progress.turn,
                    "taken": progress.taken,
                    "replays": _plain(progress.replays),
                    "block": _plain(progress.block),
                }
                for share, progress in self.shares.items()
            ],
        }
        return state | ({"finished": True} if self.finished else {})

    @classmethod
    def _read(cls, state: Mapping[str, Any]) -> Self:
        order, quota, legs = dict(state["order"]), state["quota"], state["legs"]
        most = check_count("buffer", order.get("buffer", _END.shard))
        return cls(
            order=order,
            shares={
                StridedShard(*share["stripe"]): _share_progress(share, most=most) for share in state["shares"]
            },
            listing=str(state["shards"]),
            epoch=check_count("epoch", state["epoch"]),
            quota=None if quota is None else check_count("quota", quota),
            consumed=tuple(
                ConsumedPieces({StridedShard(*end[:2]): _cursor(*end[2:]) for end in ends}) for ends in legs
            ),
            finished=state.get("finished") is True,
        )


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return [_plain(getattr(value, one.name)) for one in fields(value)]
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _share_progress(share: Mapping[str, Any], *, most: int) -> ShareProgress:
    replays = tuple(
        OpenBlock(StridedShard(*owner), check_count("replays", consumed), _block(*block, most=most))
        for owner, consumed, block in share["replays"]
    )
    turn, taken = check_count("turn", share["turn"]), check_count("taken", share["taken"])
    return ShareProgress(turn, taken, replays, _block(*share["block"], most=most))


def _cursor(*place: Any) -> Cursor:
    shard, piece, position = (check_count("a place", value) for value in place)
    return Cursor(shard, piece, position)


def _block(number: Any, begin: Any, end: Any, count: Any, given: Any, *, most: int) -> BlockProgress:
    # All of it is read again, so it may not be larger than a block.
    if not check_count("given", given) <= check_count("count", count) <= most:
        raise ConfigurationError(
            f"a block of up to {most} samples cannot have {count}, {given} of them taken"
        )
    return BlockProgress(check_count("block", number), _cursor(*begin), _cursor(*end), count, given)
