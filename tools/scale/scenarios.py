"""The questions of the simulation: how files are named, how many nodes, and which policy."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from s3torch.core._resources import GBPS_PER_CONNECTION
from s3torch.core.errors import ServerError
from s3torch.core.ranges import MIB
from s3torch.core.transfer._window import FETCH_IN_FLIGHT, UPLOAD_IN_FLIGHT
from s3torch.core.transports import RetryDecision, decide_retry
from s3torch.dcp import DefaultPrefixStrategy, HexPrefixStrategy
from scale.simulation import Outcome, Policy, Storm, shrunk_rules, simulate
from scale.store import PartitionedStore, StoreRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from s3torch.core.errors import S3Error

TB = 10**12
RANKS_PER_NODE = 8
PART = 8 * MIB


@dataclass(frozen=True, slots=True)
class Layout:
    """A way to name the files of checkpoints.

    Attributes:
        title: As it is called in plots and tables.
        name: Makes the name of a rank's file, by step, rank, and number of ranks.
    """

    title: str
    name: Callable[[int, int, int], str]


def _default(step: int, rank: int, ranks: int) -> str:  # noqa: ARG001
    return f"run/step-{step:07}/{DefaultPrefixStrategy()(rank)}0.distcp"


def _hex_below_step(step: int, rank: int, ranks: int) -> str:
    return f"run/step-{step:07}/{HexPrefixStrategy(prefix_count=ranks)(rank)}0.distcp"


def _hex_above_step(step: int, rank: int, ranks: int) -> str:
    return f"run/{HexPrefixStrategy(epoch_num=step, prefix_count=ranks)(rank)}0.distcp"


DEFAULT = Layout("default names, a folder for each step", _default)
HEX_BELOW = Layout("hex prefixes below a folder for each step", _hex_below_step)
HEX_ABOVE = Layout("hex prefixes above the step (epoch_num)", _hex_above_step)
LAYOUTS = (DEFAULT, HEX_BELOW, HEX_ABOVE)


def decide_as_before(error: S3Error, attempt: int, *, attempts: int, **_: object) -> RetryDecision:
    """Decides as s3torch did before it was simulated: pauses double from 0.2 to 20 seconds."""
    if attempt >= attempts:
        return RetryDecision("fail")
    # Other failures that pass still have these pauses.
    return decide_retry(ServerError(str(error), status=500), attempt, attempts=attempts)


BEFORE = Policy(decide_as_before, slows_down=False)
NOW = Policy()


def load(nodes: int, size: int, *, part_size: int = PART) -> Storm:
    """All ranks load a checkpoint at once, each its own share of the bytes.

    Args:
        nodes: How many nodes, of 8 ranks each.
        size: Bytes of the checkpoint.
        part_size: Bytes of one request.
    """
    ranks = nodes * RANKS_PER_NODE
    return Storm(
        ranks=ranks,
        requests=max(1, size // part_size // ranks),
        key=_keys(DEFAULT, 1, ranks),
        part_size=part_size,
        in_flight=FETCH_IN_FLIGHT // part_size,
        transfer=part_size * 8 / (GBPS_PER_CONNECTION * 1e9),
    )


def save(layout: Layout, nodes: int, size: int, step: int) -> Storm:
    """All ranks save the checkpoint of a step at once, a file each."""
    ranks = nodes * RANKS_PER_NODE
    requests = max(1, size // PART // ranks)
    key = _keys(layout, step, ranks)
    return Storm(ranks, requests, key, writes=True, in_flight=UPLOAD_IN_FLIGHT // PART)


def _keys(layout: Layout, step: int, ranks: int) -> Callable[[int, int], str]:
    names: dict[int, str] = {}

    def key(rank: int, _: int) -> str:
        name = names.get(rank)
        if name is None:
            name = names[rank] = layout.name(step, rank, ranks)
        return name

    return key


def alone(storm: Storm, *, shrink: int, policy: Policy = NOW, seed: int = 0) -> Outcome:
    """Runs a storm on a bucket that nobody has used before."""
    store = PartitionedStore(shrunk_rules(StoreRules(), shrink))
    return simulate(storm.shrunk(shrink), store, policy=policy, seed=seed)


def one_after_another(
    make: Callable[[int], Storm], steps: Iterable[int], *, shrink: int, policy: Policy = NOW
) -> list[Outcome]:
    """Runs the storm of each step on one bucket, whose partitions remember what came before."""
    store = PartitionedStore(shrunk_rules(StoreRules(), shrink))
    outcomes = []
    for step in steps:
        outcomes.append(simulate(make(step).shrunk(shrink), store, policy=policy, seed=step))
        store.rest()
    return outcomes


def saves(layout: Layout, *, nodes: int, size: int) -> Callable[[int], Storm]:
    """Returns what makes the save of each step."""
    return partial(save, layout, nodes, size)
