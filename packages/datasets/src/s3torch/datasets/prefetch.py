"""Starting downloads before their bytes are asked for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from s3torch.core import S3Reader

__all__ = ["DEFAULT_PREFETCH", "check_prefetch", "look_ahead"]

DEFAULT_PREFETCH = 64
_BYTES_AHEAD = 64 * 1024 * 1024


def check_prefetch(prefetch: int | None) -> int:
    """Returns how many objects to start ahead, the default for ``None``.

    Raises:
        ConfigurationError: It is not an integer from 0 on.
    """
    value: Any = DEFAULT_PREFETCH if prefetch is None else prefetch
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"prefetch must be an integer from 0 on, got {value!r}")
    return value


def look_ahead(
    readers: Iterable[S3Reader], *, depth: int, weigh: Callable[[S3Reader], int] = lambda _: 0
) -> Generator[S3Reader]:
    """Yields readers in their order while the downloads of up to ``depth`` more are under way.

    Readers that cannot start on their own wait for their first read. When the iterator is closed or an error
    ends it, the readers that were started and not yielded are closed, which cancels their downloads.

    Args:
        readers: Unread readers, made as they are needed.
        depth: How many to start ahead at most; 0 starts none.
        weigh: Tells the bytes of a reader that was just made. Beyond the next one, no more are started than
            fit in 64 MiB; the budget of the process bounds the downloads of all datasets together.
    """
    if depth == 0:
        yield from readers
        return
    waiting: deque[S3Reader] = deque()
    sizes: deque[int] = deque()
    weight = 0
    try:
        for reader in readers:
            waiting.append(reader)
            sizes.append(weigh(reader))
            weight += sizes[-1]
            _start(reader)
            while len(waiting) > depth or (len(waiting) > 2 and weight > _BYTES_AHEAD):
                weight -= sizes.popleft()
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
