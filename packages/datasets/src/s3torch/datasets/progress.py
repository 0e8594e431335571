"""How far an iterable dataset is: what ``state_dict()`` has and ``load_state_dict()`` takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError
from s3torch.datasets.ordering import Course, Leg
from s3torch.datasets.sharding import Place, Shard, Stripe, covers_all
from s3torch.datasets.uneven_leg import UnevenLeg

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "CourseMark",
    "course_from_state",
    "course_to_state",
    "merge_courses",
    "resume",
    "with_shares",
    "without_share",
]

_VERSION = 1


@dataclass(frozen=True, slots=True)
class CourseMark:
    """How far one worker was when it made a batch.

    Attributes:
        stripe: Its share.
        taken: How many objects of it were taken, those that were skipped included.
    """

    stripe: Stripe
    taken: int


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
        "legs": [asdict(leg) if isinstance(leg, Leg) else {"taken": list(leg.taken)} for leg in course.legs],
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
            legs=tuple(UnevenLeg(leg["taken"]) if "taken" in leg else Leg(**leg) for leg in state["legs"]),
            shard=Shard(Place(*state["rank"]), Place(*state["worker"])),
            taken=state["taken"],
        )
        shares = {Stripe(*share[:2]): share[2] for share in state.get("shares", ())}
    except (KeyError, TypeError, ValueError) as exc:
        raise ConfigurationError(f"this is no state of an S3IterableDataset: {exc!r}") from exc
    if version != _VERSION:
        raise ConfigurationError(f"the state has version {version!r}, this release reads {_VERSION}")
    if saved != dict(order):
        raise ConfigurationError(
            f"the state was saved with {saved} and the dataset has {dict(order)}: the order would differ"
        )
    return replace(course, legs=(*course.legs, *_leg_of(shares)))


def with_shares(state: Mapping[str, Any], marks: Iterable[CourseMark]) -> dict[str, Any]:
    """Adds to the state of all, in which nothing was taken yet, how far some workers are."""
    shares = {Stripe(*share[:2]): share[2] for share in state.get("shares", ())}
    shares |= {mark.stripe: mark.taken for mark in marks}
    listed = [[stripe.first, stripe.step, taken] for stripe, taken in shares.items()]
    return {**state, "shares": listed}


def merge_courses(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Makes one state of those of all ranks.

    Raises:
        ConfigurationError: They do not belong together.
    """
    first, shares = dict(states[0]), []
    for state in states:
        if {**state, "shares": ()} != {**first, "shares": ()}:
            raise ConfigurationError(
                "the states differ: the ranks were not at the same point of the same epoch"
            )
        shares += [share for share in state.get("shares", ()) if share not in shares]
    return {**first, "shares": shares} if "shares" in first else first


def _leg_of(shares: Mapping[Stripe, int]) -> tuple[UnevenLeg, ...]:
    """Returns the leg in which ranks and workers took so many samples; none where they took nothing."""
    if not any(shares.values()):
        return ()
    steps = {stripe.step for stripe in shares}
    if not covers_all(shares) or len(steps) > 1:
        raise ConfigurationError(
            "the state is that of one rank of several: objects were left out, so that each is at another "
            "place; merge_states() of all ranks, which have the same number of workers"
        )
    return (UnevenLeg(tuple(taken for _, taken in sorted(shares.items()))),)


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
