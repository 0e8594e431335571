"""What ranks and workers took of an epoch, when not all of them took the same."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from s3torch.core.errors import ConfigurationError

__all__ = ["UnevenLeg"]


@dataclass(frozen=True, slots=True)
class UnevenLeg:
    """How many samples each share of a sequence has given out, as a ``Leg`` tells it of equal ones.

    Attributes:
        taken: Of the share of every ``n``-th sample from ``i`` on, how many; ``n`` is their number.
    """

    taken: tuple[int, ...]
    # Rounds of the sequence, one sample of each share, in stretches in which the same shares have some left:
    # where the stretch begins among those left, with which round, and which shares they are.
    _stretches: list[tuple[int, int, list[int]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        taken = tuple(self.taken)
        if not taken or any(type(count) is not int or count < 0 for count in taken):
            raise ConfigurationError(f"taken must be numbers of samples, got {self.taken!r}")
        stretches: list[tuple[int, int, list[int]]] = []
        for begin in sorted(set(taken)):
            number = 0
            if stretches:
                before, since, shares = stretches[-1]
                number = before + (begin - since) * len(shares)
            stretches.append((number, begin, [share for share, count in enumerate(taken) if count <= begin]))
        object.__setattr__(self, "taken", taken)
        object.__setattr__(self, "_stretches", stretches)

    @property
    def is_prefix(self) -> bool:
        """False: what was taken has gaps, as far as anybody cares."""
        return False

    def left(self, number: int) -> int:
        """Returns where in the sequence the sample is that comes as ``number`` among those left."""
        at = bisect_right(self._stretches, number, key=lambda stretch: stretch[0]) - 1
        first, begin, shares = self._stretches[at]
        rounds, share = divmod(number - first, len(shares))
        return (begin + rounds) * len(self.taken) + shares[share]
