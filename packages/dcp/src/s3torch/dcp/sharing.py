"""Lets one rank of a process group fetch something for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist

from s3torch.core.errors import S3Error
from s3torch.dcp.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import ProcessGroup

__all__ = ["shared"]

T = TypeVar("T")


def shared(fetch: Callable[[], T], group: ProcessGroup | None) -> T:
    """Returns what the first rank of the group has fetched, on all of its ranks.

    All ranks of the group must call it. An error is raised on all.

    Args:
        fetch: Called on the first rank only.
        group: The ranks; ``None`` lets the caller fetch for itself.
    """
    if group is None:
        return fetch()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if dist.get_rank(group) == 0:
        try:
            outcome[0] = fetch()
        except Exception as exc:  # noqa: BLE001 - The other ranks would wait for ever.
            error = exc
            # An error of S3 can be pickled.
            outcome[1] = exc if isinstance(exc, S3Error) else CheckpointError(f"another rank: {exc!r}")
    dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    found, failure = outcome
    if failure is not None:
        raise error or failure
    return cast("T", found)
