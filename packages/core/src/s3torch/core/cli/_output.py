"""What commands write: texts that fit a terminal of 80 columns, JSON for programs, progress on stderr."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import click
from rich.console import Console
from rich.table import Table

from s3torch.core.errors import S3Error

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FACTS = ("operation", "bucket", "key", "code", "status", "request_id", "attempts")


class Advance(Protocol):
    """Moves a progress bar on."""

    def __call__(self, nbytes: int, /) -> None:
        """So many bytes more have been moved."""
        ...


def console(*, stderr: bool = False) -> Console:
    """Makes a console that shows colours on a terminal alone, and heeds ``NO_COLOR`` and ``COLUMNS``."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def time_text(seconds: float) -> str:
    """Writes a time in the zone of this machine."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def count_text(count: int, noun: str) -> str:
    """Writes a count with its noun: ``1 object``, ``1,200 objects``."""
    plural = f"{noun}{'es' if noun.endswith('s') else 's'}"
    return f"{count:,} {noun if count == 1 else plural}"


def shown(text: str) -> str:
    """Writes a key or a path for a terminal: what would move the cursor is escaped."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def write_json(value: Any) -> None:
    """Writes a value as one line of JSON to stdout."""
    click.echo(json.dumps(_plain(value), ensure_ascii=False))


def error_text(error: BaseException) -> str:
    """Returns what an error says; one of the system names its file, without a number."""
    if isinstance(error, OSError) and not isinstance(error, S3Error) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def error_facts(error: BaseException) -> dict[str, Any]:
    """Returns what an error tells, for ``--json``."""
    facts: dict[str, Any] = {"error": type(error).__name__, "message": str(error)}
    if isinstance(error, S3Error):
        told = {name: getattr(error, name, None) for name in _FACTS}
        facts |= {name: value for name, value in told.items() if value is not None}
    return facts


def write_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[str] = ()
) -> None:
    """Writes a table to stdout; columns named in ``numbers`` end at the right.

    Long cells are folded on a terminal. Elsewhere, where no width has to be kept, lines are as long as they
    are.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        right = column in numbers
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        table.add_row(*map(shown, row))
    out = console()
    if not out.is_terminal:
        widest = (max(len(shown(cell)) for cell in cells) for cells in zip(columns, *rows, strict=True))
        out.width = max(out.width, sum(widest) + 2 * len(columns))
    out.print(table)


@contextmanager
def progress(text: str, total: int | None, *, quiet: bool = False) -> Iterator[Advance]:
    """Shows bytes, speed and what is left on stderr while a block runs; nothing where that is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        "{task.description}",
        BarColumn(bar_width=20),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(text, total=total)
        yield lambda nbytes: bar.advance(task, nbytes)


def _plain(value: Any) -> Any:
    """Makes of values what JSON has; secrets have no field in any of them."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
