"""Where this process stands among the ranks of a job and the workers of a ``DataLoader``."""

from __future__ import annotations

from multiprocessing import current_process

import torch.distributed as dist
from torch.utils.data import get_worker_info

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.sharding import Place

__all__ = ["current_rank", "current_team", "current_worker", "given_place"]


def current_rank() -> Place | None:
    """Returns the place of this rank in the default process group; ``None`` while there is no group.

    A forked worker has the group of its parent, a spawned or forkserver one has none.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return Place(dist.get_rank(), dist.get_world_size())


def current_worker() -> Place:
    """Returns the place of this ``DataLoader`` worker; the only one, outside of workers."""
    info = get_worker_info()
    return Place() if info is None else Place(info.id, info.num_workers)


def current_team() -> str:
    """Names the workers that a loader started together with this one; in another epoch it is another name.

    Workers that stay for several epochs keep it. Ranks that run the same program have the same names.
    """
    info = get_worker_info()
    if info is None:
        return ""
    # A process numbers its children, and a loader starts its workers one after the other. The seed may be the
    # same in every epoch.
    number = current_process().name.rpartition("-")[2]
    return str(int(number) - info.id) if number.isdecimal() else f"seed-{info.seed - info.id}"


def given_place(rank: int | None, world_size: int | None) -> Place | None:
    """Returns the place that a user gave; ``None`` if there is none.

    Raises:
        ConfigurationError: The two do not fit together.
    """
    if rank is None and world_size is None:
        return None
    # A bool is no rank.
    if type(rank) is not int or type(world_size) is not int or not 0 <= rank < world_size:
        raise ConfigurationError(
            "rank and world_size are integers that are given together, with 0 <= rank < world_size; "
            f"got {rank!r} and {world_size!r}"
        )
    return Place(rank, world_size)
