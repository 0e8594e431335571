"""Ctrl-C and SIGTERM as one exception, which unwinds all ``with`` blocks and comes only once."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["StoppedError", "stoppable"]

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StoppedError(KeyboardInterrupt):
    """Somebody wants this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise ``StoppedError`` in the block at the first signal; later ones do not disturb the clean-up."""
    before = {number: signal.signal(number, stop) for number in SIGNALS if is_wanted(number)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_wanted(number: int) -> bool:
    """Tell whether a signal means something: under nohup, a closed terminal does not."""
    return number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN


def stop(number: int, _frame: object) -> None:
    """Handle the first signal."""
    for other in SIGNALS:
        signal.signal(other, ignore)
    raise StoppedError(number)


def ignore(_number: int, _frame: object) -> None:
    """Handle all others. Unlike SIG_IGN, this is not inherited by programs that are started."""
