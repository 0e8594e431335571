"""A live view of throughput, requests, retries and memory on the terminal, with rich (extra ``cli``).

One line in a training script shows it::

    with LiveView():
        train()

It counts the workers of every ``DataLoader`` and all processes that the block starts, which write their
counts into a folder that the variable ``S3TORCH_COUNTERS`` names. A program that runs without a terminal is
watched from elsewhere: start it with ``S3TORCH_COUNTERS=/tmp/counts``, and look at it with
``s3torch watch /tmp/counts``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from s3torch.core.errors import ConfigurationError
from s3torch.core.observers._counters import CounterSnapshot
from s3torch.core.observers._listening import COUNTERS_VARIABLE, add_observer, remove_observer
from s3torch.core.observers._shared_counters import SharedCounters, counts_in, writer_of
from s3torch.core.ranges import KIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from rich.console import Console
    from rich.panel import Panel

__all__ = ["LiveView", "TransferPanel"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BLOCKS = " ▁▂▃▄▅▆▇█"
_HISTORY = 24
_WRITTEN_EVERY = 0.25
_REFRESHES = 4
# What is shown as a rate is what was moved in this time.
_WINDOW = 2.0
# A shorter time shows no rate.
_SHORTEST = 0.1

_Row = tuple[str, str, str]


class TransferPanel:
    """What the processes that write their counts into a folder do: a panel that rich shows.

    Each time it is rendered it looks at the folder again.

    Args:
        folder: The folder of ``SharedCounters``, or of ``S3TORCH_COUNTERS``.
        title: Stands above it.
    """

    def __init__(self, folder: str | os.PathLike[str], *, title: str = "s3torch") -> None:
        self._folder = Path(folder)
        self._title = title
        self._begin = time.monotonic()
        self._samples: deque[tuple[float, CounterSnapshot]] = deque()
        self._history: deque[float] = deque([0.0] * _HISTORY, maxlen=_HISTORY)
        self._drawn_at = self._begin
        self._lock = threading.Lock()

    def __rich__(self) -> Panel:
        from rich.panel import Panel
        from rich.table import Table

        with self._lock:
            written = counts_in(self._folder)
            total = sum(written.values(), CounterSnapshot())
            # What was there before the first look happened at a time that nobody knows.
            self._samples = self._samples or deque([(time.monotonic(), total)])
            earlier, seconds = self._sample(total)
        change = total - earlier
        table = Table.grid(padding=(0, 2))
        for row in [*self._rates(total, change, seconds), *self._state(total, written)]:
            table.add_row(*row)
        elapsed = int(time.monotonic() - self._begin)
        clock = f"{elapsed // 3600}:{elapsed // 60 % 60:02}:{elapsed % 60:02}"
        return Panel(table, title=f"{self._title} {clock}", title_align="left", expand=False)

    def _sample(self, total: CounterSnapshot) -> tuple[CounterSnapshot, float]:
        """Takes note of the counts; returns those of some time before, and how long ago that was."""
        now = time.monotonic()
        while len(self._samples) > 1 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()
        before, earlier = self._samples[0]
        seconds = max(now - before, 1e-3)
        self._samples.append((now, total))
        if now - self._drawn_at >= _WINDOW / 2:
            self._drawn_at = now
            change = total - earlier
            self._history.append((change.bytes_read + change.bytes_written) / seconds)
        return earlier, seconds

    def _rates(self, total: CounterSnapshot, change: CounterSnapshot, seconds: float) -> Iterable[_Row]:
        def speed(count: float, text: Callable[[float], str]) -> str:
            return f"{text(count / seconds)}/s" if seconds >= _SHORTEST else ""

        yield "read", speed(change.bytes_read, size_text), f"{size_text(total.bytes_read)} in all"
        yield "write", speed(change.bytes_written, size_text), f"{size_text(total.bytes_written)} in all"
        yield "both", self._bars(), "the last seconds"
        yield "requests", speed(change.requests, "{:,.0f}".format), f"{total.requests:,} in all"

    @staticmethod
    def _state(total: CounterSnapshot, written: Mapping[Path, CounterSnapshot]) -> Iterable[_Row]:
        # Those that were killed have not said that nothing is in flight any more.
        sizes = {path: _resident(writer_of(path)) for path in written}
        alive = [path for path, size in sizes.items() if size]
        yield "in flight", f"{sum(max(written[path].in_flight, 0) for path in alive)}", ""
        reads = total.of("GetObject").latency
        tail = f"{reads.percentile(99) * 1000:.1f} ms for 99 of 100"
        yield "GET takes", f"{reads.percentile(50) * 1000:.1f} ms", tail if reads.count else ""
        errors = sum(total.errors.values()) - total.errors.get("TransferCancelledError", 0)
        yield "retries", f"{total.retries:,}", f"{total.throttles:,} throttled, {errors:,} errors"
        count = f"in {len(alive)} process{'' if len(alive) == 1 else 'es'}"
        yield "memory", size_text(sum(sizes.values())), count if alive else "none is running"

    def _bars(self) -> str:
        most = max(self._history)
        scale = (len(_BLOCKS) - 1) / most if most else 0.0
        return "".join(_BLOCKS[round(value * scale)] for value in self._history)


class LiveView:
    """Shows what s3torch does in this process and all that it starts, while a ``with`` block runs.

    On a terminal a panel is kept up to date below what the program prints; elsewhere nothing is shown. The
    last panel stays when the block ends. Processes that exist already are not counted; start them in the
    block.

    Args:
        console: Where it is shown; ``None`` for stderr.
        title: Stands above it.

    Raises:
        ConfigurationError: rich is not installed.

    Example:
        >>> from s3torch.core.observers.live import LiveView
        >>> with LiveView():
        ...     pass  # Train.
    """

    def __init__(self, *, console: Console | None = None, title: str = "s3torch") -> None:
        try:
            from rich.console import Console
        except ImportError as exc:
            raise ConfigurationError(
                f"a live view needs rich, which cannot be imported here ({exc}); "
                "install it with pip install 's3torch[cli]'"
            ) from exc
        self._console = console or Console(stderr=True)
        self._title = title
        self._live: Any = None
        self._counters: SharedCounters | None = None
        self._before: str | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        folder = Path(tempfile.mkdtemp(prefix="s3torch-counts-"))
        self._counters = SharedCounters(folder, seconds=_WRITTEN_EVERY)
        add_observer(self._counters)
        # After that, since what begins to listen later takes it from there.
        self._before = os.environ.get(COUNTERS_VARIABLE)
        os.environ[COUNTERS_VARIABLE] = str(folder)
        if self._console.is_terminal:
            panel = TransferPanel(folder, title=self._title)
            self._live = Live(panel, console=self._console, refresh_per_second=_REFRESHES)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._counters is None:
            return
        if self._before is None:
            os.environ.pop(COUNTERS_VARIABLE, None)
        else:
            os.environ[COUNTERS_VARIABLE] = self._before
        self._counters.write()
        if self._live is not None:
            self._live.stop()
            self._live = None
        remove_observer(self._counters)
        shutil.rmtree(self._counters.folder, ignore_errors=True)
        self._counters = None


def size_text(count: float) -> str:
    """Writes a number of bytes with three digits or so, as in ``"1.5 MiB"``."""
    unit = 0
    while round(count) >= 1000 and unit < len(_UNITS) - 1:
        count /= KIB
        unit += 1
    digits = 0 if unit == 0 or count >= 100 else 1
    return f"{count:.{digits}f} {_UNITS[unit]}"


def _resident(process: int) -> int:
    """Returns the bytes of memory that a process has; 0 if it is gone, or nothing tells."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
