"""The process of a command: how signals end it, and where warnings and log records go."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

# Set once somebody wants the process to end; whoever moves bytes on threads looks at it.
stopping = threading.Event()
# They cancel what is in flight; called at the second signal, or by who knows that nothing is lost by it.
cancellers: list[Callable[[], None]] = []
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(KeyboardInterrupt):
    """A signal ends the command.

    Attributes:
        exit_code: 128 and the number of the signal, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def prepare_process() -> None:
    """Lets signals end the command in order, and shows warnings in one line each."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    warnings.showwarning = _show_warning
    handler = _Handler(logging.WARNING)
    logging.getLogger("s3torch").addHandler(handler)


def log_everything() -> None:
    """Shows each operation and each retry on stderr (``--verbose``)."""
    logger = logging.getLogger("s3torch")
    logger.setLevel(logging.DEBUG)
    for handler in logger.handlers:
        if isinstance(handler, _Handler):
            handler.setLevel(logging.DEBUG)


def _stop(number: int, _: FrameType | None) -> None:
    if stopping.is_set():
        cancel_all()
    stopping.set()
    raise StoppedError(number)


def cancel_all() -> None:
    """Cancels what is in flight."""
    for cancel in cancellers:
        cancel()


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {message}", err=True)


class _Handler(logging.Handler):
    """Writes records as click writes: a line, to what stderr is now."""

    def emit(self, record: logging.LogRecord) -> None:
        level = record.levelname.capitalize()
        click.echo(f"{level}: {record.getMessage()}", err=True)
