"""How far one worker is in an epoch of shards, as plain values for ``state_dict()``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.shard_order import BlockProgress, Cursor
from s3torch.datasets.sharding import Place, Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ShardState"]

_VERSION = 1


@dataclass(slots=True)
class ShardState:
    """How far a worker is; the iteration writes ``progress`` for each sample.

    Attributes:
        epoch: The number of the epoch.
        share: The share of the worker.
        shards: What tells these shards from others; empty before they were listed.
        turn: How often the worker has begun with its shards again in this epoch.
        taken: How many samples it took in all turns.
        progress: How far it is in this turn.
    """

    epoch: int
    share: Shard
    shards: str = ""
    turn: int = 0
    taken: int = 0
    progress: BlockProgress = field(default_factory=BlockProgress)

    def to_dict(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Puts it into plain values, of which there are always as many.

        Args:
            order: What decides the order of samples, to be compared when the state is loaded.
        """
        rank, worker = self.share.rank, self.share.worker
        return {
            "version": _VERSION,
            "order": dict(order),
            "epoch": self.epoch,
            "rank": [rank.index, rank.size],
            "worker": [worker.index, worker.size],
            "shards": self.shards,
            "turn": self.turn,
            "taken": self.taken,
            "progress": asdict(self.progress),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], order: Mapping[str, Any]) -> ShardState:
        """Reads what ``to_dict`` made.

        Raises:
            ConfigurationError: It is no such state, or one of another order of samples.
        """
        try:
            version, saved, progress = state["version"], dict(state["order"]), state["progress"]
            loaded = cls(
                epoch=state["epoch"],
                share=Shard(Place(*state["rank"]), Place(*state["worker"])),
                shards=state["shards"],
                turn=state["turn"],
                taken=state["taken"],
                progress=BlockProgress(progress["block"], Cursor(**progress["begin"]), progress["given"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise ConfigurationError(f"this is no state of an S3ShardDataset: {exc!r}") from exc
        if version != _VERSION:
            raise ConfigurationError(f"the state has version {version!r}, this release reads {_VERSION}")
        if saved != dict(order):
            raise ConfigurationError(
                f"the state was saved with {saved} and the dataset has {dict(order)}: the order would differ"
            )
        return loaded
