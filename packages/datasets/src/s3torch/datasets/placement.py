"""Where this process stands among the ranks of a job and the workers of a ``DataLoader``."""

from __future__ import annotations

import torch.distributed as dist
from torch.utils.data import get_worker_info

from s3torch.datasets.sharding import Place

__all__ = ["current_rank", "current_worker"]


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
