"""Starting downloads before their bytes are asked for."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from s3torch.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from s3torch.core import S3Reader

__all__ = ["DEFAULT_PREFETCH", "check_prefetch", "look_ahead"]

DEFAULT_PREFETCH = 16


def check_prefetch(prefetch: int | None) -> int:
    """Returns how many objects to start ahead, the default for ``None``.

    Raises:
        ConfigurationError: It is not an integer from 0 on.
    """
    value: Any = DEFAULT_PREFETCH if prefetch is None else prefetch
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigurationError(f"prefetch must be an integer from 0 on, got {value!r}")
    return value


def look_ahead(readers: Iterable[S3Reader], *, depth: int) -> Generator[S3Reader]:
    """Yields readers in their order while the downloads of up to ``depth`` more are under way.

    Readers that cannot start on their own wait for their first read. When the iterator is closed or an error
    ends it, the readers that were started and not yielded are closed, which cancels their downloads.

    Args:
        readers: Unread readers, made as they are needed.
        depth: How many to start ahead; 0 starts none.
    """
    if depth == 0:
        yield from readers
        return
    waiting: deque[S3Reader] = deque()
    try:
        for reader in readers:
            waiting.append(reader)
            _start(reader)
            if len(waiting) > depth:
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
