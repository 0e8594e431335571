"""One state of a loader, made of those of all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes one state of those of all ranks, with which any number of ranks can go on.

    Each rank saves the state of its ``ResumableLoader`` with the checkpoint, or all exchange them
    (``torch.distributed.all_gather_object``). Of an ``S3ShardDataset``, the states may also be those of
    torchdata's ``StatefulDataLoader``; what is merged is then loaded into the dataset.

    Args:
        states: One of each rank, saved at the same point.

    Raises:
        ConfigurationError: They do not belong together.
    """
    found = list(states)
    if not found or not all(isinstance(state, Mapping) for state in found):
        raise ConfigurationError(f"expected the state of each rank, got {found or 'none'!r:.80}")
    try:
        return _merged([part for state in found for part in _shard_states(state)] or found)
    except (AttributeError, KeyError, TypeError, RecursionError) as exc:
        raise ConfigurationError(f"these are not states of a dataset: {exc!r}") from exc


def _merged(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, shares = dict(states[0]), dict[tuple[int, ...], Any]()
    if "shards" in first:
        first["shards"] = next((state["shards"] for state in states if state.get("shards")), "")
    if first.get("finished") and not all(state.get("finished") for state in states):
        del first["finished"]
    for state in states:
        same = {"shards": first["shards"]} if state.get("shards") == "" else {}
        same |= {"shares": (), "finished": False}
        if {**state, **same} != {**first, **same}:
            raise ConfigurationError(
                "the states differ: they were not saved at the same point of the same epoch"
            )
        for share in state.get("shares", ()):
            owner = tuple(share["stripe"] if "shards" in first else share[:2])
            if shares.setdefault(owner, share) != share:
                raise ConfigurationError(f"two states belong to the same worker, {owner}")
    return {**first, "shares": list(shares.values())} if "shares" in first else first


def _shard_states(state: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the states of shard datasets within a state, whatever torchdata has put around them."""
    if "quota" in state:
        yield state
        return
    if state.get("_steps_since_snapshot"):
        raise ConfigurationError("the state needs snapshot_every_n_steps=1 of the StatefulDataLoader")
    for part in state.values():
        if isinstance(part, Mapping):
            yield from _shard_states(part)
