"""What the demonstration shows on the terminal, and what is left of it where there is none."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

__all__ = ["Bar", "Display"]

WIDTH = 24


class Bar(Protocol):
    """Moves a progress bar."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show how much is done, and a note behind the bar."""
        ...


class Display:
    """Numbered headlines with lines below them; progress bars only on a terminal."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._errors = Console(stderr=True, highlight=False)
        self._headlines = 0

    def headline(self, text: str) -> None:
        """Begin a step."""
        self._headlines += 1
        self._console.print(f"\n{self._headlines}. {text}", style="bold")

    def say(self, text: str, *, style: str = "") -> None:
        """Tell something about the step."""
        self._console.print(f"   {text}", style=style, markup=False, soft_wrap=True)

    def show(self, content: RenderableType) -> None:
        """Show a table."""
        self._console.print(Padding(content, (0, 0, 0, 3)))

    def error(self, text: str) -> None:
        """Tell what went wrong."""
        self._errors.print(f"\ndemo: {text}", style="bold red", markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Bar]:
        """Show a bar for as long as the block runs; it is gone afterwards."""
        progress = Progress(
            TextColumn("   {task.description}"),
            BarColumn(WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            transient=True,
            disable=not self._console.is_interactive,
        )
        task = progress.add_task(text, total=total, note="")

        def move(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        with progress:
            yield move
