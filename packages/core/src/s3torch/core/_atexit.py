"""What is done with what was dropped, and when the interpreter ends: one reaper thread, and phases.

A finalizer may run anywhere, also in the midst of a call that holds a lock. So it neither sends nor waits: it
hands what is left to do over to the reaper of the process.
"""

from __future__ import annotations

import atexit
import logging
import threading
from contextlib import ExitStack
from enum import IntEnum
from queue import SimpleQueue
from typing import TYPE_CHECKING

from s3torch.core._process import PerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger(__name__)

_EXIT_SECONDS = 30.0


class Reaper:
    """Ends what was dropped, one after the other, on a thread of its own.

    Make it where work begins (``reaper.get()``), not in a finalizer, which could not start a thread.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object]] = SimpleQueue()
        threading.Thread(target=self._work, name="s3torch-reaper", daemon=True).start()

    def take(self, end: Callable[[], object]) -> None:
        """Calls a function soon; may be called from finalizers, for ``put`` of this queue is reentrant."""
        self._queue.put(end)

    def drain(self, seconds: float) -> bool:
        """Waits until all that was handed over before has been ended; returns whether it has."""
        done = threading.Event()
        self._queue.put(done.set)
        return done.wait(seconds)

    def _work(self) -> None:
        while True:
            end = self._queue.get()
            try:
                end()
            except BaseException:  # noqa: BLE001 - There is nobody to raise it to.
                _log.warning("what was dropped could not be ended", exc_info=True)
            del end


reaper: PerProcess[Reaper] = PerProcess(Reaper)


def reap(end: Callable[[], object]) -> None:
    """Hands over what a finalizer must not do itself; the reaper of this process was made before."""
    found = reaper.value
    if found is not None:
        found.take(end)


class ExitPhase(IntEnum):
    """When a function is called; ``atexit`` alone would go by the order of imports.

    Open uploads are handed to the reaper and aborted while transports still work; only then all transfers are
    cancelled.
    """

    UPLOADS = 0
    REAPER = 1
    TRANSFERS = 2


_functions: dict[ExitPhase, list[Callable[[], object]]] = {phase: [] for phase in ExitPhase}


def at_exit(phase: ExitPhase, function: Callable[[], object]) -> None:
    """Calls a function when the interpreter ends."""
    _functions[phase].append(function)


def _drain_reaper() -> None:
    found = reaper.value
    if found is not None and not found.drain(_EXIT_SECONDS):
        _log.warning("the program ends before all dropped uploads were aborted; their parts may stay")


at_exit(ExitPhase.REAPER, _drain_reaper)


@atexit.register
def _run_exit_phases() -> None:
    # A stack goes on after an interrupt. What was put on it last is called first.
    with ExitStack() as stack:
        for phase in reversed(ExitPhase):
            for function in _functions[phase]:
                stack.callback(function)
