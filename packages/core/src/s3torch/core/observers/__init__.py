"""Observers: who is told of the start, the retries, the progress and the end of every transfer."""

from s3torch.core.observers._listening import add_observer, observe, remove_observer
from s3torch.core.observers.events import (
    TransferEnd,
    TransferInfo,
    TransferObserver,
    TransferProgress,
    TransferRetry,
)

__all__ = [
    "TransferEnd",
    "TransferInfo",
    "TransferObserver",
    "TransferProgress",
    "TransferRetry",
    "add_observer",
    "observe",
    "remove_observer",
]
