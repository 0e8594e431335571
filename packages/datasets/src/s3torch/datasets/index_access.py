"""Single indices that are asked for one after the other, foreseen."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from s3torch.core import S3Reader

__all__ = ["IndexAccess"]

# So many indices in a row are a habit; two may be chance, or a sampler of pairs.
_HABIT = 3


class IndexAccess:
    """Notices when a thread asks for one index after another, or is told what it asks for next.

    Threads do not disturb each other, and neither do forked processes.
    """

    def __init__(self) -> None:
        self._run = _Run()

    def reader(self, index: int, start: Callable[[], Generator[S3Reader]]) -> S3Reader | None:
        """Returns the reader of an index that was foreseen, else ``None``.

        Args:
            index: What is asked for now.
            start: Returns the readers from this index on, more of them started.
        """
        run = self._run
        if run.pid != os.getpid():
            run.begin()
        foreseen = index == (run.batch[0] if run.batch else run.following)
        if not foreseen:
            run.misled = run.misled or bool(run.batch)
            run.begin()
        run.length = run.length + 1 if index == run.following else 1
        run.following = index + 1
        if run.batch:
            run.batch.popleft()
        elif run.readers is None and run.length >= _HABIT:
            run.readers = start()
        # None, too, after an error has ended the generator.
        reader = None if run.readers is None else next(run.readers, None)
        if reader is None or (run.is_batch and not run.batch):
            run.drop()
        return reader

    def expect(self, indices: Sequence[int], start: Callable[[], Generator[S3Reader]]) -> None:
        """Tells what this thread asks for next; after it once did not, this is not believed any more.

        Args:
            indices: All of a batch.
            start: Returns the readers of the batch.
        """
        run = self._run
        if run.pid != os.getpid():
            run.begin()
        run.misled = run.misled or bool(run.batch)
        in_a_row = list(indices) == list(range(run.following, run.following + len(indices)))
        if run.misled or (in_a_row and run.length >= _HABIT):
            return
        run.drop()
        run.batch.extend(indices)
        run.readers, run.is_batch = start(), True

    def stop(self) -> None:
        """Drops what was read ahead for this thread."""
        self._run.begin()

    def __reduce__(self) -> tuple[Any, ...]:
        return (IndexAccess, ())


class _Run(threading.local):
    """What a thread has asked for, and what was started for it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.following = -1
        self.length = 0
        self.readers: Generator[S3Reader] | None = None
        self.batch: deque[int] = deque()
        self.is_batch = False
        self.misled = False

    def begin(self) -> None:
        """Forgets everything."""
        self.drop()
        self.pid = os.getpid()
        self.following = -1
        self.length = 0

    def drop(self) -> None:
        """Cancels what was started and not asked for."""
        self.batch.clear()
        self.is_batch = False
        readers, self.readers = self.readers, None
        if readers is not None:
            readers.close()
