"""How far an iterable dataset is: what ``state_dict()`` has and ``load_state_dict()`` takes."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.ordering import Course, Leg
from s3torch.datasets.sharding import Place, Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["course_from_state", "course_to_state", "resume", "without_share"]

_VERSION = 1


def course_to_state(course: Course, order: Mapping[str, Any]) -> dict[str, Any]:
    """Puts a course into plain values; their size does not depend on the number of samples.

    Args:
        course: How far a reader is.
        order: What decides the order of samples, to be compared when the state is loaded.
    """
    rank, worker = course.shard.rank, course.shard.worker
    return {
        "version": _VERSION,
        "order": dict(order),
        "epoch": course.epoch,
        "legs": [asdict(leg) for leg in course.legs],
        "rank": [rank.index, rank.size],
        "worker": [worker.index, worker.size],
        "taken": course.taken,
    }


def course_from_state(state: Mapping[str, Any], order: Mapping[str, Any]) -> Course:
    """Reads what ``course_to_state`` made.

    Raises:
        ConfigurationError: It is no such state, or one of another order of samples.
    """
    try:
        version, saved = state["version"], dict(state["order"])
        course = Course(
            epoch=state["epoch"],
            legs=tuple(Leg(**leg) for leg in state["legs"]),
            shard=Shard(Place(*state["rank"]), Place(*state["worker"])),
            taken=state["taken"],
        )
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigurationError(f"this is no state of an S3IterableDataset: {exc!r}") from exc
    if version != _VERSION:
        raise ConfigurationError(f"the state has version {version!r}, this release reads {_VERSION}")
    if saved != dict(order):
        raise ConfigurationError(
            f"the state was saved with {saved} and the dataset has {dict(order)}: the order would differ"
        )
    return course


def resume(saved: Course, shard: Shard) -> Course:
    """Returns where a reader with this share goes on.

    Raises:
        ConfigurationError: The state is that of one of several workers or ranks, and the share is another.
    """
    if saved.shard == shard:
        return saved
    return replace(without_share(saved), shard=shard)


def without_share(saved: Course) -> Course:
    """Returns the same course for all ranks and workers together.

    Raises:
        ConfigurationError: It is that of one of several.
    """
    if saved.taken == 0:
        return replace(saved, shard=Shard())
    if saved.shard.step == 1:
        return Course(saved.epoch, saved.extended(Leg(batches=saved.taken)))
    raise ConfigurationError(
        f"the state is that of {saved.shard} alone: to resume with another number of ranks or workers, "
        "save the state of a ResumableLoader"
    )
