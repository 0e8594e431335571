"""How the parts of an upload come to rest before it is aborted.

A part that S3 is still taking while it aborts the upload may survive, and be paid for, unseen. S3 advises to
let parts end first, or else to abort again. So parts on their way get a moment to end by themselves, which is
all they need on a fast network; the others are cancelled, and then the upload is aborted more than once.
"""

from __future__ import annotations

import time
from concurrent.futures import wait
from typing import TYPE_CHECKING

from s3torch.core.errors import S3Error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from s3torch.core.transfer._queued_part import QueuedPart

_GRACE_SECONDS = 1.0
_CANCEL_SECONDS = 2.0
# How long S3 may go on with a part whose connection has ended.
_PAUSES = (0.2, 0.8)


def settle(parts: Sequence[QueuedPart]) -> bool:
    """Lets parts end, or cancels them.

    Returns:
        Whether all have their answers, so that none can arrive any more.
    """
    for part in parts:
        if not part.was_sent:
            part.cancel()
    sent = [part for part in parts if part.was_sent]
    wait(sent, _GRACE_SECONDS)
    for part in sent:
        part.cancel()
    wait(sent, _CANCEL_SECONDS)
    return all(_is_answered(part) for part in sent)


def abort_for_good(abort: Callable[[], object], *, settled: bool) -> None:
    """Aborts an upload, and again where a part may have come in between.

    Args:
        abort: Aborts; an upload that is gone already is no error.
        settled: What ``settle`` has returned.
    """
    abort()
    for pause in () if settled else _PAUSES:
        time.sleep(pause)
        abort()


def _is_answered(part: QueuedPart) -> bool:
    if not part.done():
        return False
    error = part.exception()
    return error is None or (isinstance(error, S3Error) and error.status is not None)
