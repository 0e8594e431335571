"""Starting downloads before their bytes are asked for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from s3torch.core import S3Reader

__all__ = ["DEFAULT_PREFETCH", "Ahead", "check_prefetch", "choose_ahead", "look_ahead"]

DEFAULT_PREFETCH = 128
_MIB = 1024 * 1024
_LOWEST_BYTES = 16 * _MIB
_HIGHEST_BYTES = 256 * _MIB
_GENTLE_BYTES = 64 * _MIB
_SHARE_OF_LIMIT = 4


@dataclass(frozen=True, slots=True)
class Ahead:
    """How much may be under way ahead of a consumer.

    Attributes:
        objects: How many objects at most; 0 starts none.
        size: How many bytes; the next two objects are started whatever they weigh.
    """

    objects: int
    size: int = _HIGHEST_BYTES


def check_prefetch(prefetch: int | None) -> int:
    """Returns how many objects to start ahead, the most that is ever started for ``None``.

    Raises:
        ConfigurationError: It is not an integer from 0 on.
    """
    value: Any = DEFAULT_PREFETCH if prefetch is None else prefetch
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"prefetch must be an integer from 0 on, got {value!r}")
    return value


def choose_ahead(prefetch: int | None, *, memory_limit: int) -> Ahead:
    """Decides how much a process starts ahead.

    Many small objects are bounded by their number, large ones by their bytes.

    Args:
        prefetch: What the user asked for; ``None`` for the default.
        memory_limit: The bytes that the process may have in flight.
    """
    share = memory_limit // _SHARE_OF_LIMIT
    return Ahead(check_prefetch(prefetch), max(_LOWEST_BYTES, min(share, _HIGHEST_BYTES)))


def look_ahead(
    readers: Iterable[S3Reader],
    ahead: Ahead,
    *,
    weigh: Callable[[S3Reader], int] = lambda _: 0,
    gently: bool = False,
) -> Generator[S3Reader]:
    """Yields readers in their order while the downloads of more are under way.

    Readers that cannot start on their own wait for their first read. When the iterator is closed or an error
    ends it, the readers that were started and not yielded are closed, which cancels their downloads.

    Args:
        readers: Unread readers, made as they are needed.
        ahead: How many to start ahead; the budget of the process bounds the downloads of all datasets
            together.
        weigh: Tells the bytes that a reader, which was just made, starts.
        gently: Starts few at first, twice as many as were taken, and no more than 64 MiB: for a consumer that
            may stop without a word.
    """
    if gently:
        ahead = replace(ahead, size=min(ahead.size, _GENTLE_BYTES))
    if ahead.objects == 0:
        yield from readers
        return
    waiting: deque[S3Reader] = deque()
    sizes: deque[int] = deque()
    weight = taken = 0
    try:
        for reader in readers:
            waiting.append(reader)
            sizes.append(weigh(reader))
            weight += sizes[-1]
            _start(reader)
            while (
                len(waiting) > ahead.objects
                or (len(waiting) > 2 and weight > ahead.size)
                or (gently and len(waiting) > 2 * (taken + 1))
            ):
                weight -= sizes.popleft()
                taken += 1
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for reader in waiting:
            reader.close()


def _start(reader: S3Reader) -> None:
    prefetch = getattr(reader, "prefetch", None)
    if prefetch is not None:
        prefetch()
