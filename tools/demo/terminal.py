"""The demonstration on the terminal: what it shows, and how Ctrl-C and SIGTERM end it."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

__all__ = ["Bar", "Display", "StoppedError", "stoppable"]

WIDTH = 24
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Bar(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, note: str = "") -> None:
        """Shows how much is done, and a note behind the bar."""
        ...


class Display:
    """Numbered headlines with lines below them; progress bars only on a terminal.

    Attributes:
        below: What is shown below each bar.
    """

    below: tuple[RenderableType, ...] = ()

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        self._headlines = 0

    def headline(self, text: str) -> None:
        """Begins a step."""
        self._headlines += 1
        self._console.print(f"\n{self._headlines}. {text}", style="bold")

    def say(self, text: str, *, style: str = "") -> None:
        """Tells something about the step."""
        self._console.print(f"   {text}", style=style, markup=False, soft_wrap=True)

    def show(self, content: RenderableType) -> None:
        """Shows a table."""
        self._console.print(Padding(content, (0, 0, 0, 3)))

    def error(self, text: str) -> None:
        """Says what went wrong."""
        self._errors.print(f"\ndemo: {text}", style="bold red", markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Bar]:
        """Shows a bar for as long as the block runs; it is gone afterwards."""
        progress = Progress(
            TextColumn("   {task.description}"),
            BarColumn(WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            disable=not self._console.is_interactive,
        )
        task = progress.add_task(text, total=total, note="")

        def move(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        if progress.disable:
            yield move
            return
        with Live(Group(progress, *self.below), console=self._console, transient=True, refresh_per_second=5):
            yield move


class StoppedError(KeyboardInterrupt):
    """Somebody wants this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raises ``StoppedError`` in the block at the first signal; later ones do not disturb the clean-up."""
    before = {number: signal.signal(number, stop) for number in SIGNALS if is_wanted(number)}
    try:
        yield
    except StoppedError:
        # The process ends now and starts nothing more; Python itself would die of a signal at its end.
        before = dict.fromkeys(before, signal.SIG_IGN)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_wanted(number: int) -> bool:
    """Whether a signal means something: under nohup, a closed terminal does not."""
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN


def stop(number: int, _frame: object) -> None:
    """Handles the first signal."""
    for other in SIGNALS:
        signal.signal(other, ignore)
    raise StoppedError(number)


def ignore(_number: int, _frame: object) -> None:
    """Handles all others. Unlike SIG_IGN, this is not inherited by programs that are started."""
