"""Which checkpoints of a run are kept and which may go. Pure functions of values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["CheckpointInfo", "superfluous"]

_NUMBER = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A complete checkpoint.

    Attributes:
        uri: Where it is.
        name: Its path relative to the folder that was listed; empty for that folder itself.
        committed: When it became complete, in seconds since 1970.
    """

    uri: str
    name: str
    committed: int

    @property
    def step(self) -> int | None:
        """The last number in its name, as 1000 of ``run-3/step-1000``; ``None`` where there is none."""
        numbers = _NUMBER.findall(self.name)
        return int(numbers[-1]) if numbers else None

    @property
    def order(self) -> tuple[int, list[tuple[int, str]]]:
        """Sorts by time, and within a second by name, with numbers by their value."""
        parts = _NUMBER.split(self.name)
        return self.committed, [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def superfluous(
    checkpoints: Sequence[CheckpointInfo],
    *,
    last: int,
    every: int | None = None,
    protect: Collection[str] = (),
) -> list[CheckpointInfo]:
    """Chooses the checkpoints that may go, oldest first.

    Args:
        checkpoints: All that there are.
        last: How many of the newest are kept, at least 1.
        every: Keeps those whose step is a multiple of this, too.
        protect: URIs of checkpoints that are kept whatever else holds, such as the one a run resumed from.

    Raises:
        ConfigurationError: A number is out of range. It is a ``ValueError``, too.
    """
    if last < 1:
        raise ConfigurationError(f"last must be at least 1, so that a checkpoint remains, got {last}")
    if every is not None and every < 1:
        raise ConfigurationError(f"every must be None or at least 1, got {every}")
    if isinstance(protect, str):
        raise ConfigurationError(f"protect must be several URIs, got {protect!r}")
    kept = {uri.rstrip("/") for uri in protect}
    by_age = sorted(checkpoints, key=lambda one: one.order)
    return [
        one
        for one in by_age[:-last]
        if one.uri.rstrip("/") not in kept
        and not (every is not None and one.step is not None and one.step % every == 0)
    ]
