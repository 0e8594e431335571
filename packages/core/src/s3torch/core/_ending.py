"""What is done when the interpreter ends, and in which order."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Stage(IntEnum):
    """When a function is called; ``atexit`` alone would go by the order of imports.

    Uploads are aborted while transports still work; only then all transfers are cancelled.
    """

    UPLOADS = 0
    TRANSFERS = 1


_functions: dict[Stage, list[Callable[[], object]]] = {stage: [] for stage in Stage}


def at_exit(stage: Stage, function: Callable[[], object]) -> None:
    """Calls a function when the interpreter ends."""
    _functions[stage].append(function)


@atexit.register
def _end() -> None:
    # A stack goes on after an interrupt. What was put on it last is called first.
    with ExitStack() as stack:
        for stage in reversed(Stage):
            for function in _functions[stage]:
                stack.callback(function)
