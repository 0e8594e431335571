"""Observers: who is told of the start, the retries, the progress and the end of every transfer.

``observe(observer)`` listens for as long as a ``with`` block runs; plugins listen from the start, with the
hook ``s3torch_transfer_observers``. An observer of your own is a subclass of ``TransferObserver``; shipped
are ``TransferCounters``, ``SharedCounters``, ``live.LiveView`` (extra ``cli``),
``progress.TransferProgressBar`` (extra ``progress``) and ``otel.OpenTelemetryObserver`` (extra ``otel``).
"""

from s3torch.core.observers._counters import (
    CounterSnapshot,
    LatencyHistogram,
    OperationCounts,
    TransferCounters,
)
from s3torch.core.observers._listening import (
    TransferEnd,
    TransferInfo,
    TransferObserver,
    TransferProgress,
    TransferRetry,
    add_observer,
    observe,
    remove_observer,
)
from s3torch.core.observers._shared_counters import SharedCounters

__all__ = [
    "CounterSnapshot",
    "LatencyHistogram",
    "OperationCounts",
    "SharedCounters",
    "TransferCounters",
    "TransferEnd",
    "TransferInfo",
    "TransferObserver",
    "TransferProgress",
    "TransferRetry",
    "add_observer",
    "observe",
    "remove_observer",
]
