"""Lets the ranks of a process group share work and what came of it.

All ranks of the group must call; without a group the caller is alone. An error of one is raised on all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch.distributed as dist

from s3torch.core.errors import S3Error
from s3torch.dcp._errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed import ProcessGroup

T = TypeVar("T")


def shared(fetch: Callable[[], T], group: ProcessGroup | None) -> T:
    """Returns what the first rank of the group has fetched, on all of its ranks."""
    if group is None:
        return fetch()
    outcome: list[Any] = [None, None]
    error: Exception | None = None
    if dist.get_rank(group) == 0:
        outcome, error = _outcome(fetch)
    dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    found, failure = outcome
    if failure is not None:
        raise error or failure
    return cast("T", found)


def everywhere(work: Callable[[], T], group: ProcessGroup | None) -> list[T]:
    """Does something on each rank of the group, and returns the results of all ranks on all of them."""
    if group is None:
        return [work()]
    outcome, error = _outcome(work)
    outcomes: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group=group)
    failures = [failure for _, failure in outcomes if failure is not None]
    if failures:
        raise error or failures[0]
    return [found for found, _ in outcomes]


def _outcome(work: Callable[[], Any]) -> tuple[list[Any], Exception | None]:
    """Returns what other ranks are told, a result and an error, and the error as it was raised."""
    try:
        return [work(), None], None
    except Exception as exc:  # noqa: BLE001 - The other ranks would wait for ever.
        return [None, _portable(exc)], exc


def _portable(error: Exception) -> S3Error:
    """Returns an error that can be pickled, as those of S3 can."""
    return error if isinstance(error, S3Error) else CheckpointError(f"another rank: {error!r}")
